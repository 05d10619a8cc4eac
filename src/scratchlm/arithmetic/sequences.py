"""Which rows of a tensor belong to which sequence of the batch: what gradients and dropout depend on in `exact`.

A weight's gradient is a sum over the tokens of a batch. So that neither padding nor micro batches change a bit, the sum
over each sequence is exact, and the sequences are added in their order, in float64. A number that dropout zeroes is
chosen by its sequence, its position, its column, the step, and how many dropouts came before in the forward pass.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from scratchlm.arithmetic.mode import is_exact

POSITIONS = 1 << 20  # more than a sequence has


@dataclass
class _State:
    cu_seqlens: list[int] | None = None  # of (N, C) tensors; see `rows_of`
    first: int = 0  # number of the first sequence within the batch
    key: int = 0  # of dropout in this step
    n_dropouts: int = 0  # since begin_forward


_state = _State()
_apart = False  # see sequences_apart
_items: Tensor | None = None  # see note_items


@contextmanager
def rows_of(cu_seqlens: Sequence[int] | Tensor) -> Iterator[None]:
    """Within the block, rows cu_seqlens[b] to cu_seqlens[b + 1] of an (N, C) tensor are sequence b.

    Elsewhere each row of (N, C) is a sequence of its own. (B, T, C) always has B sequences.
    """
    if not is_exact():  # reading cu_seqlens would wait for a GPU
        yield
        return
    before = _state.cu_seqlens
    _state.cu_seqlens = cu_seqlens.tolist() if isinstance(cu_seqlens, Tensor) else list(cu_seqlens)
    try:
        yield
    finally:
        _state.cu_seqlens = before


def begin_forward(key: int, first: int) -> None:
    """Start a forward pass in training. key: of the step's dropout; first: its first sequence's number in the batch."""
    global _items
    _state.key, _state.first, _state.n_dropouts = key, first, 0
    _items = None


def note_items(items: Tensor) -> None:
    """Store the items of the last sum. A loss is their sum, rounded, which depends on how a batch is divided."""
    global _items
    _items = items.detach()


def summed_items() -> Tensor | None:
    """The items of the last sum over all elements of a tensor in this forward pass; None if there was none."""
    return _items


def forward_state() -> _State:
    """The state of this module at this point of a forward pass, for `in_state`."""
    return replace(_state)


@contextmanager
def in_state(state: _State) -> Iterator[None]:
    """Within the block, this module is as it was when forward_state was called; afterwards as before the block."""
    global _state
    before, _state = _state, replace(state)
    try:
        yield
    finally:
        _state = before


def next_dropout() -> tuple[int, int]:
    """The key of the step, and how many dropouts came before in this forward pass."""
    _state.n_dropouts += 1
    return _state.key, _state.n_dropouts - 1


def boundaries(shape: Sequence[int]) -> list[int]:
    """cu_seqlens of the rows of (N, C) or (B, T, C), the leading dimensions as one."""
    if len(shape) > 2:
        return list(range(0, shape[-2] * shape[0] + 1, shape[-2]))
    if _state.cu_seqlens is not None and _state.cu_seqlens[-1] == shape[0]:
        return _state.cu_seqlens
    return list(range(shape[0] + 1))


def row_numbers(shape: Sequence[int], device: torch.device) -> Tensor:
    """A number for each row that depends on its sequence and its position alone: (N, C) or (B, T, C) -> (rows,)."""
    ends = torch.tensor(boundaries(shape), device=device)
    lengths = ends.diff()
    sequences = torch.arange(len(lengths), device=device).repeat_interleave(lengths)
    positions = torch.arange(int(ends[-1]), device=device) - ends[sequences]
    return (sequences + _state.first) * POSITIONS + positions


def head_row_numbers(shape: Sequence[int], device: torch.device) -> Tensor:
    """The same for attention, by sequence, head and position: (B, H, T, S) -> (B, H, T)."""
    B, H, T, _ = shape
    rows = (torch.arange(B * H, device=device) + _state.first * H)[:, None] * POSITIONS
    return (rows + torch.arange(T, device=device)).view(B, H, T)


class GradientSum:
    """Where a weight's gradient is collected, in float64: that of a parameter, or of the part that a view shows.

    use: which operation of several on a shared weight; each is collected by itself, so that their order is no matter.
    """

    def __init__(self, weight: Tensor, use: str) -> None:
        self.leaf: Tensor = weight if weight.is_leaf else weight._base  # type: ignore[assignment]
        assert self.leaf is not None and self.leaf.is_leaf, "a weight must be a parameter or a view of one"
        self.use, self.size, self.stride, self.offset = use, weight.size(), weight.stride(), weight.storage_offset()

    def add(self, operation: Callable[..., None], cu_seqlens: Sequence[int], *rows: Tensor) -> None:
        """Let operation(sum, *rows, cu_seqlens) add to the sum so far, or to one sum of each sequence.

        The sum is float64 in the shape of the weight. rows: (N, …) each.
        """
        if not _apart:
            operation(self._sum(0), *rows, cu_seqlens)
            return
        for b, (start, end) in enumerate(pairwise(cu_seqlens)):
            if start < end:
                operation(self._sum(b), *(x[start:end] for x in rows), [0, end - start])

    def _sum(self, b: int) -> Tensor:
        sums = self.leaf.__dict__.setdefault("exact_gradients", {}).setdefault(self.use, [])
        while len(sums) <= b:
            sums.append(torch.zeros_like(self.leaf, dtype=torch.float64))
        return sums[b].as_strided(self.size, self.stride, self.offset)


@contextmanager
def sequences_apart() -> Iterator[None]:
    """Within the block, the gradient of each sequence is a sum of its own, so that another process can add them."""
    global _apart
    _apart = True
    try:
        yield
    finally:
        _apart = False
