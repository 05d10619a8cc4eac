"""A paired bootstrap: is the difference of two systems larger than the choice of test examples explains?

Each resample draws the examples with replacement, and measures both systems on the same draw.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from scratchlm.tasks.intervals import CONFIDENCE

POWER = 0.80
RESAMPLES, FEWEST_RESAMPLES, DRAWS = 10_000, 1_000, 1 << 24  # DRAWS: of single examples, bounds the time
BLOCK = 1 << 22  # weights in memory at once
SEED = 1979
FEWEST_DIFFERING = 10  # examples in which two systems differ, to say how many would show their difference
SUM_BITS = 50  # of the 53 of a float64: weights may be larger than those of a resample
RECORD_PRECISION = 1e-6  # relative: the digits that metrics files keep


@dataclass(frozen=True, eq=False)
class Ratio:
    """A sum over examples divided by another: a mean loss, an accuracy, a precision.

    numerator, denominator: (N,). scale: from the ratio to the metric, such as exp for perplexity.
    proportion: whether each example of the denominator counts in the numerator fully or not at all.
    """

    numerator: np.ndarray
    denominator: np.ndarray
    scale: Callable[[np.ndarray], np.ndarray] = np.asarray
    proportion: bool = False

    @property
    def columns(self) -> np.ndarray:
        return np.stack([self.numerator, self.denominator])

    def at(self, weights: np.ndarray, pseudo: np.ndarray | None = None) -> np.ndarray:
        """Return the metric for each row of weights, (R, N) -> (R,); NaN for 0/0.

        pseudo: (R, 2), of a proportion the counts of pseudo-observations in numerator and denominator, and in the
        latter alone.
        """
        above, below = (weights @ summable(column) for column in (self.numerator, self.denominator))
        if pseudo is not None and self.proportion:
            above, below = above + pseudo[:, 0], below + pseudo.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.scale(above / below)


@dataclass(frozen=True, eq=False)
class Macro:
    """The mean over classes of a ratio, such as the recall of each; 0/0 counts as 0.

    numerators, denominators: (K, N). members: (K, N), 1 where an example is of the class; a class without any is left
    out of the mean.
    """

    numerators: np.ndarray
    denominators: np.ndarray
    members: np.ndarray
    proportion = False

    @property
    def columns(self) -> np.ndarray:
        return np.concatenate([self.numerators, self.denominators])

    def at(self, weights: np.ndarray, pseudo: np.ndarray | None = None) -> np.ndarray:
        """As Ratio.at."""
        above, below, occurs = (weights @ of.T for of in (self.numerators, self.denominators, self.members))  # (R, K)
        values = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
        return (values * (occurs > 0)).sum(axis=1) / (occurs > 0).sum(axis=1)


@dataclass(frozen=True, eq=False)
class Auroc:
    """The probability that a random example of class 1 scores higher than one of class 0; ties count half.

    labels (0 or 1), scores: (N,).
    """

    labels: np.ndarray
    scores: np.ndarray
    proportion = False

    @property
    def columns(self) -> np.ndarray:
        return np.stack([self.labels, self.scores])

    def at(self, weights: np.ndarray, pseudo: np.ndarray | None = None) -> np.ndarray:
        """As Ratio.at. Source: Mann and Whitney 1947, with weights in place of counts."""
        order = np.argsort(self.scores)
        _, starts = np.unique(self.scores[order], return_index=True)
        positive = np.add.reduceat(weights[:, order] * self.labels[order], starts, axis=1)  # (R, different scores)
        negative = np.add.reduceat(weights[:, order] * (1 - self.labels[order]), starts, axis=1)
        lower = negative.cumsum(axis=1) - negative / 2
        with np.errstate(invalid="ignore"):
            return (positive * lower).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1))


Statistic = Ratio | Macro | Auroc


def summable(column: np.ndarray) -> np.ndarray:
    """Return (N,) rounded to a multiple of a power of two, so that sums of N of them are exact in any order.

    Without it, the last bits of a matrix product, and so the report page, would depend on the processor.
    """
    _, exponent = np.frexp(len(column) * np.abs(column).max())
    return np.ldexp(np.rint(np.ldexp(column, SUM_BITS - exponent)), exponent - SUM_BITS)


class PairedDifference(NamedTuple):
    """The second system's metric minus the first's; NaN where one of them is 0/0.

    interval: of 95 %; None where all resamples have the same difference, which says nothing about its error.
    same: whether the two systems agree on every example. needed: see examples_needed; None where the systems differ in
    fewer than FEWEST_DIFFERING examples, which say too little about the size of the difference.
    """

    difference: float
    interval: tuple[float, float] | None
    same: bool
    needed: int | None


def observed(statistic: Statistic) -> float:
    """Return the metric on the examples themselves, each once."""
    return float(statistic.at(np.ones((1, statistic.columns.shape[1])))[0])


def paired_differences(pairs: Mapping[str, tuple[Statistic, Statistic]]) -> dict[str, PairedDifference]:
    """Return the difference of every pair of statistics over the same N examples in the same order.

    The interval was chosen because its measured coverage is right at 100 to 300 examples (LOG.md). The exception is
    an AUROC near 1, where it is too narrow.

    - Means and AUROC: symmetric, with the longer arm of the percentile interval (Efron 1979) on both sides. The
      percentile interval alone is biased where a few examples decide.
    - Proportions: the percentile interval after adding two pseudo-observations, one that only the first system gets
      right and one that only the second does (Bonett and Price 2012, for paired proportions). Without them a handful
      of disagreements would look certain, and no disagreement would look like proof of equality.

    Resamples in which a metric is 0/0 are left out.
    """
    n = next(iter(pairs.values()))[0].columns.shape[1]
    resampled: dict[str, list[np.ndarray]] = {name: [] for name in pairs}
    for weights, pseudo in _resamples(n):
        for name, (first, second) in pairs.items():
            plain = second.at(weights) - first.at(weights)
            more = second.at(weights, pseudo) - first.at(weights, pseudo[:, ::-1]) if first.proportion else plain
            resampled[name].append(np.stack([plain, more]))
    return {name: _difference(*pairs[name], *np.hstack(values)) for name, values in resampled.items()}


def examples_needed(n: int, difference: float, deviation: float) -> int | None:
    """Return the sample size that detects a difference of this size with a power of 80 %; None for a difference of 0.

    deviation: the standard error of the difference over samples of n examples. It falls with the square root of n,
    so a two-sided test at 5 % needs n ((z(97.5 %) + z(80 %)) deviation / difference)² examples.
    Source: any textbook on clinical trials, for example Chow, Shao and Wang 2008, section 3.1.
    """
    if not difference:
        return None
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) + NormalDist().inv_cdf(POWER)
    return math.ceil(n * (z * deviation / difference) ** 2)


def _difference(first: Statistic, second: Statistic, plain: np.ndarray, resampled: np.ndarray) -> PairedDifference:
    """plain, resampled: (R,), differences without and with pseudo-observations, whose share does not grow with N."""
    difference = observed(second) - observed(first)
    differing = ~np.isclose(first.columns, second.columns, rtol=RECORD_PRECISION, atol=0).all(axis=0)
    same = not differing.any()
    resampled = resampled[np.isfinite(resampled)]
    if not math.isfinite(difference) or not len(resampled) or not np.ptp(resampled):
        return PairedDifference(difference, None, same, None)
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = np.quantile(resampled, tails, method="inverted_cdf")  # a value that occurs: proportions are discrete
    if not first.proportion:
        arm = max(difference - low, high - difference)
        low, high = difference - arm, difference + arm
    needed = None
    if differing.sum() >= FEWEST_DIFFERING:
        needed = examples_needed(len(differing), difference, plain[np.isfinite(plain)].std())
    return PairedDifference(difference, (float(low), float(high)), same, needed)


def _resamples(n: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield blocks of R resamples: counts of the n examples, (R, n), and of two pseudo-observations, (R, 2)."""
    total, size = max(FEWEST_RESAMPLES, min(RESAMPLES, DRAWS // n)), max(1, BLOCK // n)
    for number, start in enumerate(range(0, total, size)):
        yield _block(n, min(size, total - start), number)


@lru_cache(maxsize=4)
def _block(n: int, size: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    source = np.random.default_rng([SEED, n, number])
    drawn = source.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
    weights = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(float)
    return weights, source.poisson(1.0, size=(size, 2)).astype(float)
