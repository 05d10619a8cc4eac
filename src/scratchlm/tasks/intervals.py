"""Confidence intervals of a mean and of a proportion, from operations that every machine rounds the same way."""

import math
from collections.abc import Sequence

import numpy as np

CONFIDENCE = 0.95
QUANTILE = 1.959963984540054  # of the standard normal distribution at (1 + CONFIDENCE) / 2
RESAMPLES = 2000


def mean_interval(values: Sequence[float], seed: int) -> tuple[float, float]:
    """A 95 % percentile-bootstrap interval of the mean; a single value is its own interval. Efron 1979."""
    given, n = np.array(values, dtype=float), len(values)
    source = np.random.default_rng(seed)  # draws integers only
    means = [math.fsum(given[source.integers(n, size=n)].tolist()) / n for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])  # between two means on a line
    return float(low), float(high)


def share_interval(successes: float, n: int) -> tuple[float, float]:
    """A 95 % interval of a share, such as an accuracy. Wilson 1927."""
    share, pull = successes / n, QUANTILE**2 / n
    middle = (share + pull / 2) / (1 + pull)
    arm = math.sqrt((share * (1 - share) + pull / 4) * pull) / (1 + pull)
    return (middle - arm if successes else 0.0), (middle + arm if successes < n else 1.0)


def paired_share_interval(only_first: int, only_second: int, n: int) -> tuple[float, float]:
    """A 95 % interval of the first share less the second, over n examples that both have; Bonett and Price 2012.

    only_first, only_second: the examples that count in one of the shares alone.
    """
    first, second = (only_first + 1) / (n + 2), (only_second + 1) / (n + 2)
    arm = QUANTILE * math.sqrt((first + second - (first - second) ** 2) / (n + 2))
    return first - second - arm, first - second + arm
