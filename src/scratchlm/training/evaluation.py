"""The batches of an evaluation: one process computes them in turn, the workers of a training divide them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scratchlm.model.gpt import evaluating

Columns = tuple[Tensor, ...]
MapBatches = Callable[[Callable[[Any], Columns], Sequence[Any]], Iterable[Columns]]
_map_batches: MapBatches = map


@contextmanager
def dividing_batches(map_batches: MapBatches) -> Iterator[None]:
    """Within the block, in_batches uses map_batches instead of `map`, which must return the same."""
    global _map_batches
    _map_batches = map_batches
    try:
        yield
    finally:
        _map_batches = map


def in_batches(
    model: nn.Module, compute: Callable[[Any], Columns], rows: Sequence[Any] | np.ndarray, batch_size: int
) -> Columns:
    """What `compute` returns for the rows of each batch, joined along the first dimension in the order of the rows.

    compute: returns tensors on the CPU, and changes nothing. The model is in evaluation mode, without gradients.
    """
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    with evaluating(model):
        found = [*_map_batches(compute, batches)]
    return tuple(torch.cat(column) for column in zip(*found, strict=True))
