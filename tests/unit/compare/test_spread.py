import json

import numpy as np
import pytest

from scratchlm.compare.spread import as_json, as_text, check_plot, draw, spread, spreads
from scratchlm.run.errors import UserError

RESULTS = [
    {"test": {"accuracy": 0.90, "loss": 0.5}, "parameters": 17_670_914, "judge": "reference", "masked": True},
    {"test": {"accuracy": 0.92, "loss": 0.7}, "parameters": 17_670_914, "judge": "reference", "masked": True},
    {"test": {"accuracy": 0.94, "loss": 0.6}, "parameters": 17_670_914, "judge": "reference", "masked": True},
]


def test_three_values_by_hand():
    row = spread([1.0, 2.0, 3.0])
    assert (row.mean, row.deviation, row.low, row.high) == (2.0, 1.0, 1.0, 3.0)
    assert row.counts_from == pytest.approx(4.302653 * 2**0.5)  # Student's t at 0.975 for 2 degrees, from a table


@pytest.mark.parametrize("n", [2, 5, 10])
def test_nineteen_of_twenty_differences_of_the_same_thing_do_not_count(n):
    draws = np.random.default_rng(3).normal(size=(20_000, n + 2))
    kept = [abs(a - b) <= spread(runs).counts_from for a, b, *runs in draws.tolist()]
    assert np.mean(kept) == pytest.approx(0.95, abs=0.005)


def test_every_number_has_a_spread_and_nothing_else_has_one():
    figures = spreads(RESULTS)
    assert list(figures) == ["test.accuracy", "test.loss", "parameters"]
    assert figures["test.loss"].values == (0.5, 0.7, 0.6)
    assert figures["parameters"].counts_from == 0


def test_a_number_that_one_run_lacks_has_no_spread():
    assert list(spreads([*RESULTS, {"test": {"accuracy": 0.91, "loss": None}}])) == ["test.accuracy"]


def test_the_table_shows_what_varies_and_names_what_does_not():
    assert as_text(spreads(RESULTS)).splitlines() == [
        "metric         mean    sd  min   max  counts from",
        "test.accuracy  0.92  0.02  0.9  0.94       0.1217",
        "test.loss       0.6   0.1  0.5   0.7       0.6085",
        "",
        "the same in all runs: parameters 17670914",
        "",
        "counts from: two single runs must be this far apart before their difference counts (95%);",
        "t(2) · √2 · sd, which for 3 runs is 6.08 · sd",
    ]


def test_runs_that_agree_in_everything_say_so():
    assert as_text(spreads(RESULTS[:1] * 2)) == (
        "the same in all runs: test.accuracy 0.9, test.loss 0.5, parameters 17670914"
    )


def test_programs_get_the_values_too():
    figures = json.loads(json.dumps(as_json(spreads(RESULTS))))
    assert figures["test.accuracy"]["values"] == [0.9, 0.92, 0.94]
    assert figures["test.accuracy"]["counts_from"] == pytest.approx(0.1217, abs=1e-4)


def test_a_plot_has_one_strip_per_varying_figure(tmp_path):
    draw(tmp_path / "noise.svg", "three runs", spreads(RESULTS))
    picture = (tmp_path / "noise.svg").read_text()
    assert "<!-- test.accuracy -->" in picture
    assert "<!-- test.loss -->" in picture
    assert "<!-- parameters -->" not in picture
    draw(tmp_path / "noise.png", "three runs", spreads(RESULTS))
    assert (tmp_path / "noise.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_to_plot_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no figure varies"):
        draw(tmp_path / "noise.svg", "two runs", spreads(RESULTS[:1] * 2))
    assert not list(tmp_path.iterdir())


def test_an_unknown_kind_of_picture_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(UserError, match=r"noise\.bmp: a plot ends in one of \.png, \.svg, \.pdf"):
        check_plot(tmp_path / "noise.bmp")
