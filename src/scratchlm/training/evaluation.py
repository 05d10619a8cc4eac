"""Batches without gradients: one process computes them in turn, the workers of a training divide them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from scratchlm.model.gpt import evaluating

Columns = tuple[Tensor, ...]
MapBatches = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]
T = TypeVar("T")
_map_batches: MapBatches = map


@contextmanager
def dividing_batches(map_batches: MapBatches) -> Iterator[None]:
    """Within the block, each_batch uses map_batches, which must return what `map` returns, in place of `map`."""
    global _map_batches
    _map_batches = map_batches
    try:
        yield
    finally:
        _map_batches = map


def each_batch(
    model: nn.Module, compute: Callable[[Any], T], rows: Sequence[Any] | np.ndarray, batch_size: int
) -> list[T]:
    """Return the results of `compute` for each batch of at most batch_size rows, in order.

    The model is in evaluation mode, without gradients. compute: a function of some of the rows, which changes nothing
    and does not call each_batch.
    """
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    with evaluating(model):
        return [*_map_batches(compute, batches)]


def in_batches(
    model: nn.Module, compute: Callable[[Any], Columns], rows: Sequence[Any] | np.ndarray, batch_size: int
) -> Columns:
    """Return the tensors of each_batch joined along their first dimension. compute: returns tensors on the CPU."""
    return tuple(torch.cat(column) for column in zip(*each_batch(model, compute, rows, batch_size), strict=True))
