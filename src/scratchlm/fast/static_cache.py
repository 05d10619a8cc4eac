"""A KV cache of fixed shape, and decoding steps that a GPU replays as one captured graph.

Surprising: on a card, a step for a few rows takes as long as launching its hundreds of kernels one by one, however
little each computes. A CUDA graph launches them at once, but has the addresses and shapes of when it was captured. So
the buffers have a fixed number of rows and slots; a row that ends leaves its index in the batch unused, until half the
batch size would do. The cache then moves to smaller buffers, or to some with more slots; a graph is captured only where
no earlier cache has left buffers of that size.

The captured step is the textbook's forward pass, so the tokens are the same: tests/unit/fast/test_static_cache.py runs
it without a GPU. With parameter `compile`, torch's compiler makes one program of it, for any number of rows and slots.
docs/gpu.md has what both pay.
"""

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
from torch import Tensor

from scratchlm.arithmetic.functions import most_likely
from scratchlm.arithmetic.mode import compiler
from scratchlm.fast.compiler import compiled
from scratchlm.fast.cuda_graphs import captured
from scratchlm.model.cache import KVCache, LayerCache
from scratchlm.model.config import GPTConfig

SLOTS = 256  # added at a time
LARGEST_DOUBLING = 16  # a batch size above it is a multiple of it
KEPT_BYTES = 2 << 30  # of buffers that a model keeps for later


class StaticCache(KVCache):
    """A KVCache whose rows, once the prompts are in it, get one token each at a step."""

    def __init__(self, config: GPTConfig, n_rows: int, buffer_pool: "BufferPool") -> None:
        super().__init__(config.n_layers, n_rows, config.context_length)
        self._indices = list(range(n_rows))  # of each row in the batch of the buffers
        self._pool, self._buffers = buffer_pool, cast("Buffers", None)
        self._next_token_ids: list[int] | None = None  # the next tokens that the buffers hold, if they are known here

    def select(self, rows: list[int]) -> None:
        self.lengths = [self.lengths[row] for row in rows]
        self._indices = [self._indices[row] for row in rows]
        self._next_token_ids = None
        if self._buffers:
            self._buffers.use(self._indices)

    def join(self, other: KVCache) -> None:
        assert isinstance(other, StaticCache)
        for cache in (self, other):
            cache._leave_buffers()
        super().join(other)
        self._indices = list(range(len(self.lengths)))

    def _leave_buffers(self) -> None:
        """Copy the rows to layers of their own, so that other caches may take the buffers."""
        index = torch.tensor(self._indices, device=self.layers[0].keys.device)  # type: ignore[union-attr]
        layers = [LayerCache() for _ in self.layers]
        for new, old in zip(layers, self.layers, strict=True):
            assert old.keys is not None and old.values is not None
            new.keys, new.values = old.keys[index], old.values[index]
        if self._buffers:
            self._buffers.owner = lambda: None
        self.layers, self._buffers, self._next_token_ids = layers, cast("Buffers", None), None
        self._indices = list(range(len(self._indices)))

    def step(self, model: Callable[..., Tensor], token_ids: list[int]) -> Tensor:
        logits, _ = self._stepped(model, token_ids)
        return logits.index_select(0, torch.tensor(self._indices, device=logits.device))

    def most_likely(self, model: Callable[..., Tensor], token_ids: list[int]) -> list[list[float]]:
        _, best = self._stepped(model, token_ids)
        of_batch = best.tolist()  # the only wait of a step
        found = [of_batch[index] for index in self._indices]
        self._next_token_ids = [int(token_id) for _, token_id in found]
        return found

    def _stepped(self, model: Callable[..., Tensor], token_ids: list[int]) -> tuple[Tensor, Tensor]:
        """Logits and the most likely token at each index of the batch."""
        longest, batch_size = max(self.lengths), padded_batch_size(len(self._indices))
        if self._buffers is None or longest >= self._buffers.n_slots or batch_size <= self._buffers.batch_size // 2:
            n_slots = min(self.context_length, SLOTS * (longest // SLOTS + 1))
            self._buffers = self._pool.take(model, self, batch_size, n_slots)
            self._buffers.receive(self.layers, self._indices, self.lengths)
            self.layers, self._indices = self._buffers.layers, list(range(len(self._indices)))
            self._next_token_ids = None
        if token_ids != self._next_token_ids:
            self._buffers.put(self._indices, token_ids)
        self._next_token_ids = None
        self.lengths = [length + 1 for length in self.lengths]
        return self._buffers.replay()


class BufferPool:
    """The buffers of one model. A later cache takes those that an earlier one has left, so few steps are captured."""

    def __init__(self) -> None:
        self._pool: dict[tuple[int, int], Buffers] = {}

    def take(self, model: Callable[..., Tensor], cache: StaticCache, batch_size: int, n_slots: int) -> "Buffers":
        """Buffers of this size that no other living cache has."""
        size = (batch_size, n_slots)
        buffers = self._pool.pop(size, None)
        if buffers is None or buffers.owner() is not None:
            buffers = Buffers(model, cache.layers, batch_size, n_slots)
        self._pool[size] = buffers
        while len(self._pool) > 1 and sum(kept.n_bytes for kept in self._pool.values()) > KEPT_BYTES:
            del self._pool[next(iter(self._pool))]  # the oldest
        buffers.owner = weakref.ref(cache)
        return buffers


class Buffers(KVCache):
    """Tensors of fixed shape and address, all that a captured step reads and writes. Lengths of rows are kept outside.

    token_ids, positions: (B, 1) of the tokens that come next. used: (B, 1), 1 where there is a row.
    replay: the next step. owner: the cache that has the buffers, or None.
    """

    def __init__(self, model: Callable[..., Tensor], like: Sequence[LayerCache], batch_size: int, n_slots: int) -> None:
        super().__init__(len(like), 1, n_slots)
        self.batch_size, self.n_slots = batch_size, n_slots
        for new, layer in zip(self.layers, like, strict=True):
            new.keys, new.values = (_empty_like(it, batch_size, n_slots) for it in (layer.keys, layer.values))
        assert self.layers[0].keys is not None
        self.n_bytes = 2 * len(like) * self.layers[0].keys.nbytes
        empty = torch.zeros(batch_size, 1, dtype=torch.int64, device=self.layers[0].keys.device)
        self.token_ids, self.positions, self.used = empty, empty.clone(), empty.clone()
        self.owner: Callable[[], StaticCache | None] = lambda: None
        forward = compiled(logits_of, dynamic=True) if compiler() else logits_of
        with _writes_in_any_order():
            self.replay = captured(partial(step, forward, model, self), empty.device)

    def advance(self, n_tokens: int, device: torch.device) -> Tensor:
        assert n_tokens == 1 and self.layers[0].keys is not None, "prompts do not pass through here"
        slots = torch.arange(self.layers[0].keys.shape[2], device=device)
        mask = (slots <= self.positions[..., None])[:, None]  # (B, 1, 1, S)
        for layer in self.layers:
            layer.positions, layer.mask = self.positions, mask
        return self.positions

    def receive(self, old: Sequence[LayerCache], rows: list[int], lengths: list[int]) -> None:
        """Copy some rows of the old layers, and their lengths, to the first indices of the batch."""
        device = self.positions.device
        chosen = torch.tensor(rows, device=device)
        for new, layer in zip(self.layers, old, strict=True):
            for target, source in ((new.keys, layer.keys), (new.values, layer.values)):
                assert target is not None and source is not None
                n_kept = min(self.n_slots, source.shape[2])
                target[: len(rows), :, :n_kept] = source[chosen, :, :n_kept]
        self.positions.zero_()
        self.positions[: len(rows), 0] = torch.tensor(lengths, device=device)
        self.use(list(range(len(rows))))

    def use(self, indices: list[int]) -> None:
        """Let only the rows at these indices advance with each step."""
        self.used.zero_()
        self.used[torch.tensor(indices, device=self.used.device)] = 1

    def put(self, indices: list[int], token_ids: list[int]) -> None:
        """Set the next tokens of the rows at these indices."""
        device = self.token_ids.device
        self.token_ids[torch.tensor(indices, device=device), 0] = torch.tensor(token_ids, device=device)


def padded_batch_size(n_rows: int) -> int:
    """The smallest of a few batch sizes that holds the rows."""
    if n_rows <= LARGEST_DOUBLING:
        return 1 << (n_rows - 1).bit_length()
    return LARGEST_DOUBLING * math.ceil(n_rows / LARGEST_DOUBLING)


def logits_of(model: Callable[..., Tensor], buffers: Buffers) -> Tensor:
    """The forward pass of the whole batch: (B, V)."""
    return model(buffers.token_ids, buffers)[:, -1]


def step(forward: Callable[..., Tensor], model: Callable[..., Tensor], buffers: Buffers) -> tuple[Tensor, Tensor]:
    """Logits and the most likely tokens of the batch, which are the next ones unless others are put there."""
    logits = forward(model, buffers)
    best = most_likely(logits)
    # the position of a finished row may exceed the last slot
    buffers.positions.copy_((buffers.positions + buffers.used).clamp(max=buffers.n_slots - 1))
    buffers.token_ids.copy_(best[:, 1:])
    return logits, best


def _empty_like(like: Tensor | None, n_rows: int, n_slots: int) -> Tensor:
    """Zeros for more rows and slots: (B, K, S, D) -> (n_rows, K, n_slots, D)."""
    assert like is not None
    return like.new_zeros(n_rows, like.shape[1], n_slots, like.shape[3])


@contextmanager
def _writes_in_any_order() -> Iterator[None]:
    """Without torch's deterministic mode, which sorts the indices of each write; no two tokens share a slot here."""
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("default")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
