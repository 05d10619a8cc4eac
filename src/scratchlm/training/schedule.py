"""The learning-rate schedule."""

import math

from scratchlm.arithmetic.portable import cos
from scratchlm.training.optimizer import TrainingParams


def learning_rate_at(step: int, n_steps: int, params: TrainingParams) -> float:
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
