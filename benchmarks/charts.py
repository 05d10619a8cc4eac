"""Charts of curves: one panel per quantity, side by side over the same x axis."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from scratchlm.report.charts import FIRST, SECOND
from scratchlm.run.files import atomic_write

COLOURS = (FIRST, SECOND, "#009e73")
LINEAR_RATIO = 30  # highest to lowest: beyond it, a linear axis shows only the highest


class Panel(NamedTuple):
    """series: name -> y by x; every panel has the same. share: y goes from 0 to 1."""

    label: str
    series: Mapping[str, Mapping[float, float]]
    share: bool = False


def write_chart(path: Path, title: str, x_label: str, panels: Sequence[Panel]) -> None:
    """Write an SVG file. x is logarithmic; y is too if it spans a wide range, else it starts at 0."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"font.size": 9.0, "svg.fonttype": "none", "svg.hashsalt": path.stem})
        figure = Figure(figsize=(3.4 * len(panels), 3.3), layout="constrained")
        figure.suptitle(title, fontsize=9)
        for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for (name, points), colour in zip(panel.series.items(), COLOURS, strict=False):
                axis.plot(
                    list(points), list(points.values()), "o-", color=colour, markersize=4, clip_on=False, label=name
                )
            axis.set(xscale="log", xlabel=x_label, ylabel=panel.label)
            xs = sorted({x for points in panel.series.values() for x in points})
            axis.set_xticks(xs, [_short(x) for x in xs], fontsize=8)
            axis.set_xticks([], minor=True)
            values = [y for points in panel.series.values() for y in points.values()]
            if panel.share:
                axis.set_ylim(0, 1)
            elif max(values) > LINEAR_RATIO * min(values):
                axis.set_yscale("log")
            else:
                axis.set_ylim(bottom=0)
            axis.yaxis.set_major_formatter("{x:,.6g}")
            axis.yaxis.set_minor_formatter(NullFormatter())
            axis.grid(True, linewidth=0.5, color="#dddddd")
            axis.spines[["right", "top"]].set_visible(False)
        figure.legend(panels[0].series, loc="outside lower center", ncols=len(panels[0].series), frameon=False)
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})


def _short(x: float) -> str:
    if x < 1e5:
        return f"{x:g}"
    return f"{x / 1e6:.1f}M" if x < 1e7 else f"{x / 1e6:.0f}M"
