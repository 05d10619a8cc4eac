"""Confidence intervals of a mean and of a proportion."""

from collections.abc import Sequence

import numpy as np
import scipy  # scipy.stats, half a second, is loaded where it is first used

CONFIDENCE = 0.95
RESAMPLES = 2000


def mean_interval(values: Sequence[float], seed: int) -> tuple[float, float]:
    """A 95 % percentile-bootstrap interval of the mean; a single value is its own interval. Efron 1979."""
    if len(values) < 2:
        return float(values[0]), float(values[0])
    interval = scipy.stats.bootstrap(
        (np.asarray(values, dtype=float),), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE,
        method="percentile", rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return float(interval.low), float(interval.high)


def share_interval(successes: int, n: int) -> tuple[float, float]:
    """A 95 % interval of a share, such as an accuracy. Wilson 1927."""
    interval = scipy.stats.binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)
