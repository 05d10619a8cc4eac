import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from scratchlm.compare.changes import Changes
from scratchlm.compare.chart import COLOURS, check_chart_path, write_comparison_chart, write_seeds_chart
from scratchlm.compare.compare import BETTER, NO_EVIDENCE, SAME, WORSE, Comparison, Row
from scratchlm.compare.seeds import spreads
from scratchlm.run.errors import UserError

ROWS = [
    Row("finetune_spam.test.loss", 0.3, 0.25, -0.05, BETTER, (-0.08, -0.02), 150),
    Row("finetune_spam.test.recall", 0.8, 0.7, -0.1, WORSE, (-0.15, -0.05), 150),
    Row("judge.instruct.mean_score", 70.0, 71.0, 1.0, NO_EVIDENCE, (-1.0, 3.0), 110),
    Row("generate/instruct.finished", 110, 110, 0.0, SAME, (-2.0, 2.0), 110),
    Row("finetune_spam.train.loss", 0.002, 0.001, -0.001),
]


def comparison(*rows: Row) -> Comparison:
    return Comparison("main", "branch", list(rows), Changes([], [], [], []), [])  # type: ignore[arg-type]


def test_each_metric_with_a_verdict_is_a_line_and_better_is_to_the_right(tmp_path: Path) -> None:
    path = tmp_path / "chart.svg"
    write_comparison_chart(path, [comparison(*ROWS), comparison(ROWS[0])])
    drawing = path.read_text()
    assert drawing.count("branch compared with main") == 2 + drawing.count("<!--")  # text stays text
    assert drawing.count("finetune_spam.test.loss  0.3 → 0.25") == 2
    assert "−0.0500 (−0.0800 to −0.0200)" in drawing
    assert "generate/instruct.finished" not in drawing and "train.loss" not in drawing
    upright = re.findall(r'd="M ([\d.]+) ([\d.]+) \nL \1 (?!\2 )[\d.]+ \n"', drawing)
    zero = float(upright[0][0])

    def ends(verdict: str) -> tuple[float, float]:
        colour = COLOURS[verdict]
        found = re.search(
            rf'd="M ([\d.]+) [\d.]+ \nL ([\d.]+) [\d.]+ \n" [^>]*style="[^"]*stroke: {colour}; stroke-width: 2', drawing
        )
        assert found
        return float(found[1]), float(found[2])

    assert ends(WORSE)[1] < zero < ends(BETTER)[0]
    assert ends(NO_EVIDENCE)[0] < zero < ends(NO_EVIDENCE)[1]


def test_a_png_is_a_png_and_the_same_chart_has_the_same_bytes(tmp_path: Path) -> None:
    for ending, start in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        one, other = tmp_path / f"one.{ending}", tmp_path / f"other.{ending}"
        write_comparison_chart(one, [comparison(*ROWS)])
        write_comparison_chart(other, [comparison(*ROWS)])
        assert one.read_bytes().startswith(start)
        assert one.read_bytes() == other.read_bytes()


def test_a_file_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "chart.png").write_text("mine")
    with pytest.raises(UserError, match="chart.png already exists; name a new file, nothing is overwritten$"):
        write_comparison_chart(tmp_path / "chart.png", [comparison(*ROWS)])
    assert (tmp_path / "chart.png").read_text() == "mine"


@pytest.mark.parametrize(("name", "ending"), [("chart.gif", ".gif"), ("chart", "nothing")])
def test_other_endings_are_refused(tmp_path: Path, name: str, ending: str) -> None:
    with pytest.raises(UserError, match=f"ends in {ending}; name a file that ends in .png, .svg, .pdf$"):
        check_chart_path(tmp_path / name)


def test_without_any_interval_there_is_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^no metric has an interval to draw; "):
        write_comparison_chart(tmp_path / "chart.png", [comparison(*ROWS[3:])])
    assert not list(tmp_path.iterdir())


RUNS = [{"test": {"accuracy": accuracy, "loss": 3 * accuracy}, "parameters": 7} for accuracy in (0.90, 0.92, 0.94)]


def test_a_chart_of_seeds_has_one_strip_per_varying_metric(tmp_path: Path) -> None:
    write_seeds_chart(tmp_path / "noise.svg", "three runs", spreads(RUNS))
    drawing = (tmp_path / "noise.svg").read_text()
    assert "test.accuracy" in drawing and "test.loss" in drawing and "parameters" not in drawing
    write_seeds_chart(tmp_path / "noise.png", "three runs", spreads(RUNS))
    assert (tmp_path / "noise.png").read_bytes().startswith(b"\x89PNG")


def test_seeds_without_any_variation_are_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no metric varies"):
        write_seeds_chart(tmp_path / "noise.svg", "two runs", spreads(RUNS[:1] * 2))
    assert not list(tmp_path.iterdir())


def test_no_name_is_a_formula_or_a_control_character_in_a_chart(tmp_path: Path) -> None:
    rows = [Row("a$x^{$_b\x1b\0\u202e", 1.0, 2.0, 1.0, BETTER, (0.5, 1.5), 9)]
    write_comparison_chart(tmp_path / "c.svg", [comparison(*rows)._replace(second="br$an$ch")])  # type: ignore[arg-type]
    drawing = (tmp_path / "c.svg").read_text(encoding="utf-8")
    assert "br$an$ch compared with main" in drawing and "a$x^{$_b\\u001b\\u0000\\u202e" in drawing
    ElementTree.fromstring(drawing)
