import re

import numpy as np
import pytest

from scratchlm.report import charts
from scratchlm.report.charts import (
    Panel,
    calibration_chart,
    confusion_chart,
    curve_chart,
    length_chart,
    roc_chart,
    score_chart,
    sparkline,
    step_chart,
)
from scratchlm.tasks.calibration import calibration_bins


def drawn(n_steps: int) -> dict[str, str]:
    steps = np.arange(n_steps)
    curve = [{"step": int(i), "loss": 2.0 ** -(i / 9), "val_loss": 1 / (1 + i / 7), "rate": i / 1e5} for i in steps]
    panels = [
        Panel("loss", {"train": "loss", "val": "val_loss"}, charts.WIDTH_INCHES / 1.7, log=True),
        Panel("rate", {"rate": "rate"}, charts.WIDTH_INCHES / 3.3),
    ]
    counts = {("ham", "ham"): 78, ("ham", "spam"): 1, ("spam", "ham"): 3, ("spam", "spam"): 70}
    return {
        "curve": curve_chart("pretrain", curve, panels),
        "confusion": confusion_chart("finetune_spam", counts, ("ham", "spam")),
        "calibration": calibration_chart("a", calibration_bins([0.3, 0.4, -0.2, 2.0, -1.1, 5.0])),
        "steps": step_chart("b", curve, dict.fromkeys(curve[0], "a")),
        "roc": roc_chart("c", {"a": [(0, 0), (1 / 3, 2 / 3), (1, 1)], "b": [(0, 0), (1 / 7, 1), (1, 1)]}),
        "lengths": length_chart("d", [3, 17, 17, 40], "messages"),
        "scores": score_chart("judge", {"base": [0.0, 3.5, 12.0], "instruct": [100.0, 55.5, 40.0], "dpo": [90.0]}),
    }


@pytest.mark.long
@pytest.mark.parametrize("n_steps", [7, 300])
@pytest.mark.parametrize("change", [1e-15, -1e-15, 1e-13])
def test_last_bits_of_a_layout_do_not_show(n_steps: int, change: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another processor's layout, imitated by a size of the figure that differs in its last bits."""
    expected = drawn(n_steps)
    figure = charts._figure
    monkeypatch.setattr(charts, "_figure", lambda w, h, more=0.0: figure(w * (1 + change), h * (1 + change), more))
    monkeypatch.setattr(charts, "WIDTH_INCHES", charts.WIDTH_INCHES * (1 - change))
    assert drawn(n_steps) == expected


def test_every_point_of_a_long_curve_is_drawn() -> None:
    points = [len(re.findall(r"[ML] ", path)) for path in re.findall(r'<path d="([^"]*)"', drawn(300)["curve"])]
    assert points.count(300) == 3


def test_coordinates_are_rounded_and_texts_are_not() -> None:
    chart = drawn(300)["curve"]
    assert not re.search(r"[\d.]*\.\d{3,}", "".join(re.findall(r"<[^>]*>", chart)))
    assert not re.search(r"[ \"(,]-0[ \",)]", chart)
    assert ">0.002<" in chart


def test_ids_are_counted_from_zero_and_all_are_referred_to() -> None:
    for chart, key in zip(
        drawn(7).values(),
        (
            "pretrain-curves",
            "finetune_spam-confusion",
            "a-calibration",
            "b-steps",
            "c-roc",
            "d-lengths",
            "judge-scores",
        ),
        strict=True,
    ):
        ids = re.findall(r' id="([^"]*)"', chart)
        assert ids == [f"{key}-{i}" for i in range(len(ids))]
        assert set(re.findall(r"[(\"]#([^)\"]*)", chart)) == set(ids)


def test_a_loss_of_far_apart_values_has_a_logarithmic_axis() -> None:
    curve = [{"step": i, "loss": loss, "rate": loss} for i, loss in enumerate((6.4, 0.9, 0.4))]
    panels = [Panel("loss", {"loss": "loss"}, 2.0, log=True), Panel("rate", {"rate": "rate"}, 2.0)]
    chart = curve_chart("a", curve, panels)
    ticks = re.findall(r">([\d.]+)</text>", chart)
    assert ticks[:4] == ["0.5", "1", "2", "5"] and ticks[-3:] == ["2", "4", "6"]


def test_names_in_the_words_for_a_chart_are_escaped() -> None:
    assert 'aria-label="&lt;b&gt;&#34;: number of messages' in length_chart('<b>"', [1], "messages")
    assert 'aria-label="&lt;i&gt;"' in sparkline([1.0], "<i>")


def test_a_sparkline_goes_from_left_to_right_and_larger_is_higher() -> None:
    assert 'points="2.0,2.0 60.0,26.0 118.0,14.0"' in sparkline([3.0, 1.0, 2.0], "loss")
    assert 'points="2.0,2.0 118.0,2.0"' in sparkline([1.0, 1.0], "loss")
