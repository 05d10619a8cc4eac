"""The intervals of a comparison as a picture: a forest plot."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from scratchlm.compare.compare import BETTER, NO_EVIDENCE, WORSE, Comparison, Row
from scratchlm.compare.records import better
from scratchlm.compare.text import difference_cells
from scratchlm.report.charts import FIRST, SECOND
from scratchlm.report.tables import format_number
from scratchlm.run.errors import UserError
from scratchlm.run.files import atomic_write

COLOURS = {BETTER: FIRST, WORSE: SECOND, NO_EVIDENCE: "#777777"}
ENDINGS = (".png", ".svg")
ROW_INCHES, HEAD_INCHES, WIDTH_INCHES = 0.3, 0.75, 9.0


def check_chart_path(path: Path) -> None:
    """Raises UserError if the file exists or is neither .png nor .svg."""
    if path.suffix not in ENDINGS:
        raise UserError(f"{path} ends in {path.suffix or 'nothing'}; name a file that ends in {' or '.join(ENDINGS)}")
    if path.exists():
        raise UserError(f"{path} exists already; name a new one, nothing is overwritten")


def write_comparison_chart(path: Path, comparisons: Sequence[Comparison]) -> None:
    """One panel per comparison, one line per metric that has an interval and is not the same on every example.

    Metrics have different units, so each line has its own scale, on which its interval reaches as far as any; right
    of the line in the middle is better, whichever way the metric counts.
    Raises UserError as check_chart_path does, or if there is nothing to draw.
    """
    check_chart_path(path)
    panels = [(c, [row for row in c.rows if row.interval and row.verdict in COLOURS]) for c in comparisons]
    panels = [(comparison, rows) for comparison, rows in panels if rows]
    if not panels:
        raise UserError("no metric has an interval that could be drawn; compare revisions whose results differ")
    heights = [HEAD_INCHES + ROW_INCHES * len(rows) for _, rows in panels]
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"font.size": 9.0, "svg.fonttype": "none", "svg.hashsalt": "compare"})
        figure = Figure(figsize=(WIDTH_INCHES, sum(heights)), layout="constrained")
        axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
        for axis, (comparison, rows) in zip(axes, panels, strict=True):
            _draw(axis, comparison, rows)
        undated = {"Date": None} if path.suffix == ".svg" else None
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=150, metadata=undated)


def _draw(axis: "matplotlib.axes.Axes", comparison: Comparison, rows: Sequence[Row]) -> None:
    for y, row in enumerate(rows):
        assert row.interval is not None and row.difference is not None
        sign = 1 if better(row.metric, 1.0) else -1
        reach = max(abs(end) for end in row.interval)
        ends = sorted(sign * end / reach for end in row.interval)
        colour = COLOURS[row.verdict]
        axis.plot(ends, [y, y], color=colour, linewidth=2, solid_capstyle="butt")
        axis.plot([sign * row.difference / reach], [y], "o", color=colour, markersize=5)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set(xlim=(-1.08, 1.08), ylim=(len(rows) - 0.5, -0.5), xticks=[])
    axis.set_title(f"{comparison.second} compared with {comparison.first}")
    axis.set_xlabel("← worse     difference with its 95 % interval, each metric on its own scale     better →")
    axis.set_yticks(
        range(len(rows)), [f"{row.metric}  {format_number(row.first)} → {format_number(row.second)}" for row in rows]
    )
    right = axis.secondary_yaxis("right")
    right.set_yticks(range(len(rows)), ["{} ({})".format(*difference_cells(row)) for row in rows])
    for side in (axis, right):
        side.tick_params(axis="y", length=0)
        for spine in side.spines.values():
            spine.set_visible(False)
