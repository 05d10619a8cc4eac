"""Seed-to-seed variation of each metric, and the smallest difference that is not noise."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from scipy import stats

from scratchlm.run.nested import leaves
from scratchlm.tasks.intervals import CONFIDENCE


class Spread(NamedTuple):
    """One metric over n runs. deviation: the sample standard deviation, with n - 1 in its denominator."""

    values: tuple[float, ...]
    mean: float
    deviation: float
    low: float
    high: float
    minimum_detectable_difference: float


def spread(values: Sequence[float]) -> Spread:
    """Return the spread of at least two values of one metric.

    minimum_detectable_difference: two single runs must differ by more to be told apart. The difference of two runs
    that differ in their seed alone has √2 times the standard deviation of one run. With a deviation estimated from n
    values, 95 % of such differences are below t(n - 1) · √2 · deviation. Source: Student 1908.
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
    """Return t(n - 1) · √2, the minimum detectable difference in standard deviations estimated from n values."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * math.sqrt(2)


def spreads(results: Sequence[Mapping[str, Any]]) -> dict[str, Spread]:
    """Return the spread of each number that all metrics files have, by its dotted name, in the order of the first."""
    runs = [dict(leaves(result)) for result in results]
    names = [name for name in runs[0] if all(_is_number(run.get(name)) for run in runs)]
    return {name: spread([float(run[name]) for run in runs]) for name in names}


def split(metrics: Mapping[str, Spread]) -> tuple[dict[str, Spread], dict[str, Spread]]:
    """Return the metrics that vary, and those that do not."""
    varying = {name: row for name, row in metrics.items() if row.low < row.high}
    return varying, {name: row for name, row in metrics.items() if name not in varying}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
