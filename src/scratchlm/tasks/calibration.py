"""Does a model's confidence in its choices equal its accuracy? Guo et al. 2017."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from scratchlm.arithmetic.portable import exp

N_BINS = 10


class CalibrationBin(NamedTuple):
    """n choices of similar confidence, their mean confidence, and how many are right."""

    n: int
    confidence: float
    right: float

    @property
    def accuracy(self) -> float:
        return self.right / self.n


def calibration_bins(margins: Iterable[float]) -> list[CalibrationBin]:
    """Choices between two by their confidence, in N_BINS bins of equal width from 1/2 to 1; empty ones are left out.

    margins: z, where the model gives the right choice the probability σ(z). It chooses the likelier one, so its
    confidence is σ(|z|), and it is right where z > 0. A tie is half right.
    """
    bins: list[list[tuple[float, float]]] = [[] for _ in range(N_BINS)]
    for margin in margins:
        confidence = 1 / (1 + exp(-abs(margin)))
        index = math.ceil((confidence - 0.5) * 2 * N_BINS) - 1  # a bin includes its upper end
        bins[max(0, index)].append((confidence, 0.5 if margin == 0 else float(margin > 0)))
    return [
        CalibrationBin(len(found), math.fsum(c for c, _ in found) / len(found), math.fsum(r for _, r in found))
        for found in bins
        if found
    ]


def calibration_error(bins: Sequence[CalibrationBin]) -> float:
    """The expected calibration error: the mean of |accuracy - confidence| over bins, weighted by their sizes.

    Source: Guo et al. 2017, equation 3.
    """
    return math.fsum(found.n * abs(found.accuracy - found.confidence) for found in bins) / sum(b.n for b in bins)
