"""Do two systems differ on the same examples by more than the choice of these examples would make them differ?

A paired bootstrap: examples are drawn anew, with replacement, and both systems are measured on each draw.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

CONFIDENCE, POWER = 0.95, 0.80
RESAMPLES, FEWEST_RESAMPLES, DRAWS = 10_000, 1_000, 1 << 24  # DRAWS of an example in all bound the time
BLOCK = 1 << 22  # weights held at once
SEED = 1979
SAME = 1e-6  # relative: the digits that metrics files keep


@dataclass(frozen=True, eq=False)
class Ratio:
    """A sum over examples divided by another: a mean loss, an accuracy, a precision.

    numerator, denominator: (N,). scale: from the ratio to the metric, such as exp for perplexity.
    share: whether an example that the denominator counts, counts in the numerator wholly or not at all.
    """

    numerator: np.ndarray
    denominator: np.ndarray
    scale: Callable[[np.ndarray], np.ndarray] = np.asarray
    share: bool = False

    @property
    def columns(self) -> np.ndarray:
        return np.stack([self.numerator, self.denominator])

    def at(self, weights: np.ndarray, imagined: np.ndarray | None = None) -> np.ndarray:
        """The metric for each row of weights, (R, N) -> (R,); NaN for 0/0.

        imagined: (R, 2), further examples that the denominator counts, those counted in the numerator first.
        """
        above, below = weights @ self.numerator, weights @ self.denominator
        if imagined is not None:
            above, below = above + imagined[:, 0], below + imagined.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.scale(above / below)


@dataclass(frozen=True, eq=False)
class Auroc:
    """The chance that a random example of class 1 has a higher score than one of class 0, ties counted half.

    labels (0 or 1), scores: (N,).
    """

    labels: np.ndarray
    scores: np.ndarray
    share = False

    @property
    def columns(self) -> np.ndarray:
        return np.stack([self.labels, self.scores])

    def at(self, weights: np.ndarray) -> np.ndarray:
        """As Ratio.at. Source: Mann and Whitney 1947, with weights in place of counts."""
        order = np.argsort(self.scores)
        _, starts = np.unique(self.scores[order], return_index=True)
        positive = np.add.reduceat(weights[:, order] * self.labels[order], starts, axis=1)  # (R, different scores)
        negative = np.add.reduceat(weights[:, order] * (1 - self.labels[order]), starts, axis=1)
        lower = negative.cumsum(axis=1) - negative / 2
        with np.errstate(invalid="ignore"):
            return (positive * lower).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1))


Statistic = Ratio | Auroc


class Difference(NamedTuple):
    """The second system's metric minus the first's; NaN where one of them is 0/0.

    interval: of 95 %; None where no resample shows any other difference, so that nothing says how far off it may be.
    same: whether the two do the same on every example. needed: see examples_needed.
    """

    difference: float
    interval: tuple[float, float] | None
    same: bool
    needed: int | None


def observed(statistic: Statistic) -> float:
    """The metric on the examples as they are."""
    return float(statistic.at(np.ones((1, statistic.columns.shape[1])))[0])


def paired_differences(pairs: Mapping[str, tuple[Statistic, Statistic]]) -> dict[str, Difference]:
    """The difference of every pair of statistics over the same N examples in the same order.

    The interval, chosen because its coverage was measured to be right at 100 to 300 examples (LOG.md; not for an
    AUROC near 1, where it is too narrow):

    - For means and for AUROC it reaches as far on both sides as the percentile interval (Efron 1979) does on its
      longer one. The percentile interval alone leans to the wrong side where a few examples decide.
    - For shares it is the percentile interval after two imaginary examples have been added, of which each system
      gets the other one right (as Bonett and Price 2012 do for the difference of paired proportions): else a handful
      of disagreements would pass for certainty, and none at all for a proof that there is none.

    Resamples in which a metric is 0/0 are left out.
    """
    n = next(iter(pairs.values()))[0].columns.shape[1]
    resampled: dict[str, list[np.ndarray]] = {name: [] for name in pairs}
    for weights, imagined in _resamples(n):
        for name, (first, second) in pairs.items():
            if isinstance(first, Ratio) and isinstance(second, Ratio) and first.share:
                values = second.at(weights, imagined) - first.at(weights, imagined[:, ::-1])
            else:
                values = second.at(weights) - first.at(weights)
            resampled[name].append(values)
    return {name: _difference(*pairs[name], np.concatenate(values)) for name, values in resampled.items()}


def examples_needed(n: int, difference: float, deviation: float) -> int | None:
    """Examples at which a difference of this size would be found with a chance of 80 %; None if it is 0.

    deviation: the standard deviation that the difference has over samples of n examples. As it falls with the
    square root of their number, n ((z(97.5 %) + z(80 %)) deviation / difference)² are needed for a two-sided test
    at 5 %. Source: any textbook of clinical trials, for example Chow, Shao and Wang 2008, section 3.1.
    """
    if not difference:
        return None
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) + NormalDist().inv_cdf(POWER)
    return math.ceil(n * (z * deviation / difference) ** 2)


def _difference(first: Statistic, second: Statistic, resampled: np.ndarray) -> Difference:
    difference = observed(second) - observed(first)
    same = bool(np.allclose(first.columns, second.columns, rtol=SAME, atol=0))
    resampled = resampled[np.isfinite(resampled)]
    if not math.isfinite(difference) or not len(resampled) or not np.ptp(resampled):
        return Difference(difference, None, same, None)
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = np.quantile(resampled, tails, method="inverted_cdf")  # a value that occurs: shares come in steps
    if not first.share:
        reach = max(difference - low, high - difference)
        low, high = difference - reach, difference + reach
    needed = examples_needed(first.columns.shape[1], difference, resampled.std())
    return Difference(difference, (float(low), float(high)), same, needed)


def _resamples(n: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Block by block, how often each draw took each of n examples, (R, n), and each of two imaginary ones, (R, 2)."""
    left = max(FEWEST_RESAMPLES, min(RESAMPLES, DRAWS // n))
    number = 0
    while left:
        size = min(left, max(1, BLOCK // n))
        yield _block(n, size, number)
        left -= size
        number += 1


@lru_cache(maxsize=4)
def _block(n: int, size: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    source = np.random.default_rng([SEED, n, number])
    drawn = source.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
    weights = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(float)
    return weights, source.poisson(1.0, size=(size, 2)).astype(float)
