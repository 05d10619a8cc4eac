"""Charts of a comparison (a forest plot) and of the runs with several seeds (a strip plot)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scratchlm.compare.compare import BETTER, NO_EVIDENCE, WORSE, Comparison, Row
from scratchlm.compare.records import better
from scratchlm.compare.seeds import Spread, varying_and_constant
from scratchlm.compare.text import OF_A_CLASS, difference_cells
from scratchlm.report.charts import FIRST, SECOND
from scratchlm.report.tables import format_number
from scratchlm.run.display import one_line
from scratchlm.run.errors import UserError
from scratchlm.run.files import atomic_write

COLOURS = {BETTER: FIRST, WORSE: SECOND, NO_EVIDENCE: "#777777"}
DATES = {".png": None, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}  # left out: the same chart, same bytes
WIDTH_INCHES = 9.0
ROW_INCHES, HEAD_INCHES = 0.3, 0.75
STRIP_INCHES, TITLE_INCHES = 0.55, 0.6


def check_chart_path(path: Path) -> None:
    """Raises UserError if the file exists or is not a .png, .svg or .pdf: before hours of work, not after."""
    if path.suffix not in DATES:
        raise UserError(f"{path} ends in {path.suffix or 'nothing'}; name a file that ends in {', '.join(DATES)}")
    if path.exists():
        raise UserError(f"{path} already exists; name a new file, nothing is overwritten")


def write_comparison_chart(path: Path, comparisons: Sequence[Comparison]) -> None:
    """Draw one panel per comparison, one line per metric that has an interval and is not the same on every example;
    those of single classes are left out.

    Metrics have different units, so each line has its own scale, which ends at the far end of its interval. Right of
    the centre is better, whether the metric should rise or fall.
    Raises UserError as check_chart_path does, or if there is nothing to draw.
    """
    panels = []
    for comparison in comparisons:
        judged = [row for row in comparison.rows if row.interval and row.verdict in COLOURS]
        if rows := [row for row in judged if OF_A_CLASS not in row.metric]:
            panels.append((comparison, rows))
    if not panels:
        raise UserError("no metric has an interval to draw; compare revisions whose results differ")
    heights = [HEAD_INCHES + ROW_INCHES * len(rows) for _, rows in panels]
    with _saved_figure(path, "compare", sum(heights), font_size=9.0) as figure:
        axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
        for axis, (comparison, rows) in zip(axes, panels, strict=True):
            _draw_intervals(axis, comparison, rows)


def write_seeds_chart(path: Path, title: str, metrics: Mapping[str, Spread]) -> None:
    """Draw a strip per varying metric: a point per run, a bar of the minimum detectable difference around their mean.

    Raises UserError as check_chart_path does, or if no metric varies.
    """
    varying, _ = varying_and_constant(metrics)
    if not varying:
        raise UserError(f"{title}: no metric varies, so there is nothing to plot; leave out --plot")
    with _saved_figure(path, "seeds", TITLE_INCHES + STRIP_INCHES * len(varying), font_size=8.0) as figure:
        figure.suptitle(f"{title}: one point per run; grey: minimum detectable difference, around the mean")
        axes = figure.subplots(len(varying), squeeze=False)[:, 0]
        for axis, (name, row) in zip(axes, varying.items(), strict=True):
            half = row.minimum_detectable_difference / 2
            axis.plot([row.mean - half, row.mean + half], [0, 0], color="#bbbbbb", linewidth=6, solid_capstyle="butt")
            axis.plot(row.values, [0] * len(row.values), "o", color=FIRST, markersize=5, alpha=0.7)
            axis.plot([row.mean], [0], "|", color=SECOND, markersize=14)
            axis.set_ylabel(one_line(name), rotation=0, ha="right", va="center")
            axis.set_yticks([])
            axis.spines[["left", "right", "top"]].set_visible(False)


def _draw_intervals(axis: Axes, comparison: Comparison, rows: Sequence[Row]) -> None:
    for y, row in enumerate(rows):
        assert row.interval is not None and row.difference is not None
        direction = 1 if better(row.metric, 1.0) else -1
        scale = direction / max(abs(end) for end in row.interval)
        colour = COLOURS[row.verdict]
        axis.plot(sorted(scale * end for end in row.interval), [y, y], color=colour, linewidth=2, solid_capstyle="butt")
        axis.plot([scale * row.difference], [y], "o", color=colour, markersize=5)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set(xlim=(-1.08, 1.08), ylim=(len(rows) - 0.5, -0.5), xticks=[])
    axis.set_title(one_line(f"{comparison.second} compared with {comparison.first}"))
    axis.set_xlabel("← worse     difference with its 95 % interval, each metric on its own scale     better →")
    values = [f"{one_line(row.metric)}  {format_number(row.first)} → {format_number(row.second)}" for row in rows]
    axis.set_yticks(range(len(rows)), values)
    right = axis.secondary_yaxis("right")
    right.set_yticks(range(len(rows)), ["{} ({})".format(*difference_cells(row)) for row in rows])
    for side in (axis, right):
        side.tick_params(axis="y", length=0)
        for spine in side.spines.values():
            spine.set_visible(False)


@contextmanager
def _saved_figure(path: Path, name: str, height: float, font_size: float) -> Iterator[Figure]:
    """Yield a figure that is saved when the block ends. The user's matplotlibrc is ignored, a $ begins no formula.

    height: in inches.
    """
    check_chart_path(path)
    settings = {"font.size": font_size, "text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": name}
    with style.context(settings, after_reset=True):
        figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        yield figure
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=150, metadata=DATES[path.suffix])
