"""Curves as pictures: one panel per figure, side by side over the same x axis."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure

from scratchlm.artifacts import whole_file
from scratchlm.evaluation.report_charts import FIRST, SECOND

COLOURS = (FIRST, SECOND, "#009e73")


class Panel(NamedTuple):
    """series: name -> y by x. Both axes are logarithmic, but for a share, which goes from 0 to 1."""

    label: str
    series: Mapping[str, Mapping[float, float]]
    share: bool = False


def write_chart(path: Path, title: str, x_label: str, panels: Sequence[Panel]) -> None:
    """An SVG file."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"font.size": 9.0, "svg.fonttype": "none", "svg.hashsalt": path.stem})
        figure = Figure(figsize=(3.4 * len(panels), 3.1), layout="constrained")
        figure.suptitle(title, fontsize=9)
        for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for (name, points), colour in zip(panel.series.items(), COLOURS, strict=False):
                axis.plot(points.keys(), points.values(), "o-", color=colour, markersize=4, label=name)
            axis.set(xscale="log", xlabel=x_label, ylabel=panel.label)
            axis.set(ylim=(0, 1)) if panel.share else axis.set(yscale="log")
            axis.grid(True, linewidth=0.5, color="#dddddd")
            axis.spines[["right", "top"]].set_visible(False)
            axis.legend(frameon=False)
        with whole_file(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
