"""The report's charts as SVG: the same bytes for the same numbers, in colours of the page's style sheet.

matplotlib places elements with matrix products and compiled code whose last bits depend on the machine. They enter
the ids of elements, as hashes, and the sixth decimal of coordinates. So ids become numbers, and coordinates are
rounded to hundredths of a point.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle
from typing import Any, NamedTuple

from markupsafe import Markup, escape
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from scratchlm.run.display import shortened
from scratchlm.tasks.calibration import CalibrationBin
from scratchlm.tasks.intervals import share_interval
from scratchlm.tasks.variants import ASSISTANT, BASE

# Placeholders that become variables of the style sheet, so that charts follow the light and the dark theme
INK, FIRST, SECOND, GRID = "#010101", "#0072b2", "#d55e00", "#010203"
OTHERS = ("#009e73", "#cc79a7", "#e69f00")
VARIABLES = {INK: "currentColor", FIRST: "var(--first)", SECOND: "var(--second)", GRID: "var(--line)"}
VARIABLES |= dict(zip(OTHERS, ("var(--third)", "var(--fourth)", "var(--fifth)"), strict=True))
STYLE: Any = {
    "svg.hashsalt": "",  # else ids are random
    "svg.fonttype": "none",  # text as text: smaller, selectable, in the page's font
    "path.simplify": False,  # leaves out points of long lines by a threshold that a last bit could cross
    "text.parse_math": False,  # a $ begins no formula
    "font.size": 9.0,
    "grid.linewidth": 0.6,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), GRID),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "none"),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    **dict.fromkeys(("axes.spines.right", "axes.spines.top", "legend.frameon"), False),
}
_style = partial(style.context, STYLE, after_reset=True)  # without the user's matplotlibrc
WIDTH_INCHES = 3.9  # a telephone shows a chart almost in full size, so that its texts are not below 11 pixels there
LEAST_SCALE = 0.92  # below it a chart scrolls in its box: 9 points are 12 pixels, and then 11
LOG_RATIO = 5  # of a curve's largest to its least value: from here on its axis is logarithmic
CELL_INCHES, FEW_CLASSES = (1.29, 0.68, 0.36), 8  # of the confusion matrix of two, of few and of many classes
NAME_CHARACTERS, INCHES_PER_CHARACTER = 18, 0.08
MEAN_STEPS = 10  # of a running mean
FEW_TICKS_RATIO = 10_000  # the same: from here on only powers of ten have a label
MAX_DOTS = 30  # points that a line marks
PIXELS_PER_POINT = 96 / 72
NUMBER = re.compile(r"(?<![\w#.-])-?\d+(?:\.\d+)?(?![\w.])")  # in a tag, apart from colours and ids
Curve = Sequence[Mapping[str, float]]


class Panel(NamedTuple):
    """One pair of axes; all panels of a chart share the x axis. series: legend text -> column of the curve.

    height: in inches. log: with a logarithmic axis where values are far apart. curve: in place of the chart's, for
    what is known at more steps.
    """

    label: str
    series: Mapping[str, str]
    height: float
    log: bool = False
    curve: Curve | None = None


def curve_chart(name: str, curve: Curve, panels: Sequence[Panel]) -> Markup:
    """Draw columns of a training curve over the optimizer step, in panels from top to bottom."""
    with _style():
        figure = _figure(WIDTH_INCHES, sum(panel.height for panel in panels) + 0.4)
        heights = [panel.height for panel in panels]
        axes = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for axis, panel in zip(axes, panels, strict=True):
            rows = panel.curve or curve
            steps = [row["step"] for row in rows]
            line: dict[str, Any] = {"linewidth": 1.8, "marker": "o" if len(rows) <= MAX_DOTS else "", "markersize": 3}
            styles = ((FIRST, "--"), (SECOND, "-")) if len(panel.series) > 1 else ((INK, "-"),)
            for (label, column), (colour, dashes) in zip(panel.series.items(), styles, strict=True):
                axis.plot(steps, [row[column] for row in rows], dashes, color=colour, label=label, **line)
            axis.set_ylabel(panel.label)
            if panel.log:
                _scale(axis, [row[column] for row in rows for column in panel.series.values()])
            if len(panel.series) > 1:
                axis.legend()
        axes[-1].set_xlabel("optimizer step")
        figure.align_ylabels(axes)
        return _svg(
            figure, f"{name}-curves", f"{name}: {', '.join(panel.label for panel in panels)} over optimizer steps"
        )


def step_chart(name: str, steps: Curve, labels: Mapping[str, str]) -> Markup:
    """Draw columns over the optimizer step, in panels from top to bottom, with running means.

    labels: column -> title. The value of a step depends on its few examples, so the line is the mean of the last
    MEAN_STEPS rows.
    """
    with _style():
        figure = _figure(WIDTH_INCHES, 1.35 * len(labels) + 0.4)
        figure.subplots_adjust(hspace=0.4, top=1 - 0.3 / figure.get_figheight())
        axes = figure.subplots(len(labels), sharex=True, squeeze=False)[:, 0]
        numbers = [row["step"] for row in steps]
        single = "o" if len(steps) <= MAX_DOTS else "-"
        for axis, (column, label) in zip(axes, labels.items(), strict=True):
            values = [row[column] for row in steps]
            axis.plot(numbers, values, single, color=INK, alpha=0.35, markersize=2.5, linewidth=0.8)
            last = [values[max(0, i + 1 - MEAN_STEPS) : i + 1] for i in range(len(values))]
            axis.plot(numbers, [math.fsum(part) / len(part) for part in last], "-", color=SECOND, linewidth=1.8)
            axis.set_title(label, fontsize=9, loc="left")
            if column == "loss":
                _scale(axis, values)
        axes[-1].set_xlabel("optimizer step")
        return _svg(figure, f"{name}-steps", f"{name}: {', '.join(labels.values())} over optimizer steps")


def confusion_chart(name: str, counts: Mapping[tuple[str, str], int], classes: Sequence[str]) -> Markup:
    """Draw counts by actual class (rows) and predicted class (columns), shaded by their proportion of the row.

    Of more than a few classes, cells are smaller, without proportions, and empty where the count is 0.
    """
    few, two = len(classes) <= FEW_CLASSES, len(classes) == 2
    names = [shortened(text, NAME_CHARACTERS) for text in classes]
    longest = 0.0 if two else INCHES_PER_CHARACTER * max(map(len, names))
    side = len(classes) * (CELL_INCHES[0] if two else CELL_INCHES[1] if few else CELL_INCHES[2])
    with _style():
        figure = _figure(side + 0.82 + longest, side + 0.62 + longest, longest)
        axis = figure.subplots()
        axis.grid(False)
        for y, actual in enumerate(classes):
            total = sum(counts.get((actual, predicted), 0) for predicted in classes)
            for x, predicted in enumerate(classes):
                count = counts.get((actual, predicted), 0)
                proportion = count / total if total else 0.0
                if count or few:
                    cell = Rectangle((x - 0.5, y - 0.5), 1, 1, color=FIRST, alpha=0.55 * proportion, linewidth=0)
                    axis.add_patch(cell)
                    text = f"{count}\n{100 * proportion:.1f} %" if few else str(count)
                    axis.text(x, y, text, ha="center", va="center", fontsize=11 if two else 9)
        limits = (-0.5, len(classes) - 0.5)
        axis.set(xlim=limits, ylim=limits[::-1], xlabel="predicted", ylabel="actual", aspect="equal")
        axis.set_xticks(range(len(classes)), names, rotation=0 if two else 90)
        axis.set_yticks(range(len(classes)), names, rotation=90 if two else 0, va="center")
        axis.tick_params(length=0)
        return _svg(figure, f"{name}-confusion", f"{name}: confusion matrix")


def score_chart(name: str, scores: Mapping[str, Sequence[float]]) -> Markup:
    """Draw a histogram of scores in bins of ten and one bin for 100, in a panel for each variant."""
    lows = [*range(0, 100, 10), 100]
    with _style():
        figure = _figure(WIDTH_INCHES, 1.15 * len(scores) + 0.4)
        figure.subplots_adjust(hspace=0.5, top=1 - 0.3 / figure.get_figheight())
        axes = figure.subplots(len(scores), sharex=True, sharey=True, squeeze=False)[:, 0]
        others = cycle(OTHERS)
        for axis, (model, values) in zip(axes, scores.items(), strict=True):
            colour = {BASE: SECOND, ASSISTANT: FIRST}.get(model) or next(others)
            heights = [sum(int(value // 10) == bin_ for value in values) for bin_ in range(len(lows))]
            bars = axis.bar(range(len(lows)), heights, 0.8, color=colour)
            axis.bar_label(bars, [str(height or "") for height in heights], fontsize=9, padding=1)
            axis.set_title(model, fontsize=9, loc="left")
            axis.grid(False, axis="x")
            axis.margins(y=0.35)
            axis.tick_params(axis="x", length=0)
        axes[-1].set_xticks(range(len(lows)), [str(low) for low in lows])
        axes[-1].set_xlabel("score: from each number to below the next")
        return _svg(figure, f"{name}-scores", f"{name}: number of responses by score")


def length_chart(name: str, lengths: Sequence[int], unit: str) -> Markup:
    """Draw a histogram of lengths in tokens, in at most 24 bins of equal width. unit: what has these lengths."""
    width = max(1, math.ceil((max(lengths) + 1) / 24))
    heights = [0] * (max(lengths) // width + 1)
    for length in lengths:
        heights[length // width] += 1
    with _style():
        figure = _figure(WIDTH_INCHES, 2.1)
        axis = figure.subplots()
        axis.bar([i * width for i in range(len(heights))], heights, 0.92 * width, align="edge", color=FIRST)
        axis.grid(False, axis="x")
        axis.set(xlabel="tokens", ylabel=unit)
        return _svg(figure, f"{name}-lengths", f"{name}: number of {unit} by length in tokens")


def roc_chart(name: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> Markup:
    """Draw the true-positive rate over the false-positive rate; on the dashed diagonal a classifier guesses."""
    with _style():
        figure = _figure(WIDTH_INCHES, 3.1)
        axis = figure.subplots()
        axis.plot([0, 1], [0, 1], ":", color=INK, linewidth=1.0)
        for (label, points), (colour, dashes) in zip(curves.items(), ((FIRST, "-"), (SECOND, "--")), strict=False):
            axis.plot(*zip(*points, strict=True), dashes, color=colour, label=label, linewidth=1.8)
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="false-positive rate", ylabel="true-positive rate")
        axis.legend(loc="lower right")
        return _svg(figure, f"{name}-roc", f"{name}: receiver operating characteristic")


def calibration_chart(name: str, bins: Sequence[CalibrationBin]) -> Markup:
    """Draw the accuracy of each bin, with its 95 % interval, over its confidence; on the dashed line the two agree."""
    with _style():
        figure = _figure(WIDTH_INCHES, 3.1)
        axis = figure.subplots()
        axis.plot([0.5, 1], [0.5, 1], "--", color=SECOND, linewidth=1.2)
        confidences = [found.confidence for found in bins]
        ends = [share_interval(found.right, found.n) for found in bins]
        axis.vlines(confidences, [low for low, _ in ends], [high for _, high in ends], color=FIRST, linewidth=1.2)
        axis.plot(confidences, [found.accuracy for found in bins], "o", color=FIRST, markersize=4)
        axis.set(xlim=(0.48, 1.02), ylim=(-0.02, 1.02), xlabel="confidence", ylabel="accuracy")
        return _svg(figure, f"{name}-calibration", f"{name}: accuracy over confidence")


def sparkline(values: Sequence[float], label: str) -> Markup:
    """Draw a small line without axes. label: says in words what it shows."""
    low, high = min(values), max(values)
    width, height = 120, 28
    points = [
        (2 + (width - 4) * i / max(1, len(values) - 1), 2 + (height - 4) * (high - value) / ((high - low) or 1.0))
        for i, value in enumerate(values)
    ]
    return Markup(
        '<svg class="sparkline" role="img" aria-label="{}" viewBox="0 0 {} {}"><polyline points="{}"/></svg>'
    ).format(label, width, height, " ".join(f"{x:.1f},{y:.1f}" for x, y in points))


def _scale(axis: Axes, values: Sequence[float]) -> None:
    """Make an axis logarithmic whose values are far apart: one large value at step 0 would flatten the rest."""
    if min(values) > 0 and max(values) > LOG_RATIO * min(values):
        axis.set_yscale("log")
        few = max(values) > FEW_TICKS_RATIO * min(values)
        axis.yaxis.set_major_locator(LogLocator(subs=(1,) if few else (1, 2, 5)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_locator(NullLocator())


def _figure(width: float, height: float, more: float = 0.0) -> Figure:
    """Return a figure of this size in inches, with room for labels at its left and bottom; more: inches of it."""
    figure = Figure(figsize=(width, height))
    left, bottom = (0.72 + more) / width, (0.5 + more) / height
    figure.subplots_adjust(left=left, right=1 - 0.1 / width, bottom=bottom, top=1 - 0.12 / height)
    return figure


def _svg(figure: Figure, key: str, label: str) -> Markup:
    """Return the drawing. key: begins the ids of its elements, so no other chart of the page may have it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"\s*<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r"<[^>]*>", lambda tag: NUMBER.sub(_rounded, tag[0]), drawing)
    # Ids that nothing refers to are removed: they would repeat from chart to chart on the page
    used = set(re.findall(r"#([\w-]+)", drawing))
    ids = [found for found in re.findall(r' id="([^"]*)"', drawing) if found in used]
    drawing = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", drawing)
    for i, found in enumerate(ids):
        drawing = drawing.replace(f'"{found}"', f'"{key}-{i}"').replace(f"#{found}", f"#{key}-{i}")
    for colour, variable in VARIABLES.items():
        drawing = drawing.replace(colour, variable)
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawing)
    assert box
    width, height = box.groups()
    pixels = float(width) * PIXELS_PER_POINT
    opening = (
        f'<svg class="chart" role="img" aria-label="{escape(label)}" viewBox="0 0 {width} {height}" '
        f'style="width:{pixels:.0f}px;min-width:{LEAST_SCALE * pixels:.0f}px" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return Markup(re.sub(r"^<svg[^>]*>", opening, drawing))


def _rounded(number: re.Match[str]) -> str:
    """Return a coordinate with at most two decimals, and zero without a sign."""
    return f"{round(float(number[0]), 2) + 0.0:.2f}".rstrip("0").rstrip(".")
