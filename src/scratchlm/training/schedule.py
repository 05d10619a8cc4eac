"""The learning-rate schedule."""

import math
from typing import Literal, Protocol

from scratchlm.arithmetic.portable import cos


class Schedule(Protocol):
    """The keys of TrainingParams that make the schedule. The report reads it, too, and does without torch."""

    learning_rate: float
    min_learning_rate: float
    schedule: Literal["constant", "cosine"]
    warmup_steps: int


def learning_rate_at(step: int, n_steps: int, params: Schedule) -> float:
    """The rate of step 0 ≤ step < n_steps: linear warmup, then constant, or half a cosine down to min_learning_rate.

    Source: Loshchilov and Hutter 2017; the book's appendix D.
    """
    if step < params.warmup_steps:
        return params.learning_rate * (step + 1) / params.warmup_steps
    if params.schedule == "constant":
        return params.learning_rate
    progress = (step - params.warmup_steps) / max(1, n_steps - params.warmup_steps)
    span = params.learning_rate - params.min_learning_rate
    return params.min_learning_rate + span * 0.5 * (1 + cos(math.pi * progress))
