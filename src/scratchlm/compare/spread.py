"""What several runs of one thing say about each of its figures, and how far two runs must lie apart to count."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scipy import stats

from scratchlm.compare.flatten import leaves
from scratchlm.run.errors import UserError
from scratchlm.run.files import atomic_write
from scratchlm.tasks.intervals import CONFIDENCE

PLOT_ENDINGS = (".png", ".svg", ".pdf")


class Spread(NamedTuple):
    """One figure over n runs. deviation: the sample's standard deviation, with n - 1 below it."""

    values: tuple[float, ...]
    mean: float
    deviation: float
    low: float
    high: float
    counts_from: float


def spread(values: Sequence[float]) -> Spread:
    """At least two values of one figure, and `counts_from`: how far two single runs must be apart to count.

    The difference of two runs of the same thing has √2 times the deviation of one run; with a deviation known from n
    values only, 95 % of such differences stay below t(n - 1) · √2 · deviation. Student 1908.
    """
    deviation = statistics.stdev(values)
    return Spread(
        tuple(values),
        statistics.fmean(values),
        deviation,
        min(values),
        max(values),
        difference_factor(len(values)) * deviation,
    )


def difference_factor(n: int) -> float:
    """t(n - 1) · √2: what a deviation from n values is multiplied with to give the difference that counts."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * math.sqrt(2)


def spreads(results: Sequence[Mapping[str, Any]]) -> dict[str, Spread]:
    """The spread of each number that all the metrics files `results` hold, by its dotted name, in their order."""
    runs = [dict(leaves(result)) for result in results]
    names = [name for name in runs[0] if all(_is_number(run.get(name)) for run in runs)]
    return {name: spread([float(run[name]) for run in runs]) for name in names}


def as_text(figures: Mapping[str, Spread]) -> str:
    """A table of the figures that vary, a line with those that do not, and what the last column means."""
    varying, constant = _split(figures)
    parts = []
    if varying:
        n = len(next(iter(varying.values())).values)
        parts.append(_table(varying))
        parts.append(
            f"counts from: two single runs must be this far apart before their difference counts ({CONFIDENCE:.0%});\n"
            f"t({n - 1}) · √2 · sd, which for {n} runs is {difference_factor(n):.2f} · sd"
        )
    if constant:
        parts.insert(
            1, "the same in all runs: " + ", ".join(f"{name} {row.mean:.10g}" for name, row in constant.items())
        )
    return "\n\n".join(parts)


def as_json(figures: Mapping[str, Spread]) -> dict[str, Any]:
    """The same for programs."""
    return {name: {**row._asdict(), "values": list(row.values)} for name, row in figures.items()}


def check_plot(path: Path) -> None:
    """Raises UserError if `draw` could not write there, before hours of runs."""
    if path.suffix not in PLOT_ENDINGS:
        raise UserError(f"{path}: a plot ends in one of {', '.join(PLOT_ENDINGS)}; name it so")


def draw(path: Path, title: str, figures: Mapping[str, Spread]) -> None:
    """A strip per varying figure: a point per run, a bar as long as the difference that counts around their mean.

    Raises UserError if no figure varies, or for an ending of the name that is not in PLOT_ENDINGS.
    """
    from matplotlib.figure import Figure

    check_plot(path)
    varying, _ = _split(figures)
    if not varying:
        raise UserError(f"{title}: no figure varies, so there is nothing to plot; leave --plot out")
    figure = Figure(figsize=(7.6, 0.55 * len(varying) + 0.6), layout="constrained")
    figure.suptitle(f"{title}: a point per run; grey: the difference that counts, around the mean", fontsize=9)
    axes = figure.subplots(len(varying), squeeze=False)[:, 0]
    for axis, (name, row) in zip(axes, varying.items(), strict=True):
        half = row.counts_from / 2
        axis.plot([row.mean - half, row.mean + half], [0, 0], color="#bbbbbb", linewidth=6, solid_capstyle="butt")
        axis.plot(row.values, [0] * len(row.values), "o", color="#0072b2", markersize=5, alpha=0.7)
        axis.plot([row.mean], [0], "|", color="#d55e00", markersize=14)
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        axis.set_yticks([])
        axis.tick_params(labelsize=7)
        axis.spines[["left", "right", "top"]].set_visible(False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix("."), dpi=150)


def _split(figures: Mapping[str, Spread]) -> tuple[dict[str, Spread], dict[str, Spread]]:
    """Those that vary and those that do not."""
    varying = {name: row for name, row in figures.items() if row.low < row.high}
    return varying, {name: row for name, row in figures.items() if name not in varying}


def _table(figures: Mapping[str, Spread]) -> str:
    rows = [["metric", "mean", "sd", "min", "max", "counts from"]]
    rows += [[name, *(f"{number:.4g}" for number in row[1:])] for name, row in figures.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    return "\n".join("  ".join(line) for line in lines)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
