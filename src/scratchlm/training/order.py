"""The order of the training examples: one shuffle per epoch."""

from functools import lru_cache

import numpy as np
import torch

from scratchlm.arithmetic.random import generator


def batch_indices(step: int, n_examples: int, batch_size: int, seed: int) -> np.ndarray:
    """The examples of one step, (batch_size,) int64. Each epoch has its own shuffle, a function of the arguments."""
    epoch, batch = divmod(step, n_examples // batch_size)
    order = _epoch_order(n_examples, seed, epoch)
    return order[batch * batch_size : (batch + 1) * batch_size]


@lru_cache(maxsize=1)  # one epoch at a time
def _epoch_order(n_examples: int, seed: int, epoch: int) -> np.ndarray:
    return torch.randperm(n_examples, generator=generator(seed, f"data order {epoch}")).numpy()
