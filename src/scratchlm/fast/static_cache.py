"""A KV cache of fixed shape, and decoding steps that a GPU replays as one recorded graph.

Surprising: on a card, a step for a few rows takes as long as launching its hundreds of kernels one by one, however
little each computes. A CUDA graph launches them at once, but has the addresses and shapes of when it was recorded. So
the cache has room for a fixed number of rows and slots; a row that ends leaves its place unused, until half the room
would do. A new graph is recorded then, and whenever a row needs more slots.

The recorded step is the textbook's forward pass, so the tokens are the same: tests/unit/fast/test_static_cache.py runs
it without a GPU. docs/gpu.md has what it pays.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from scratchlm.model.cache import KVCache
from scratchlm.model.gpt import GPTModel

SLOTS = 256  # added at a time
LARGEST_DOUBLING = 16  # room for more rows is a multiple of this
WARM_UP = 3  # runs before a graph is recorded: libraries choose kernels and workspaces in the first ones


class StaticCache(KVCache):
    """A KVCache whose rows, once the prompts are in it, get one token each at a call of `logits`."""

    def __init__(self, model: GPTModel, n_rows: int) -> None:
        super().__init__(len(model.blocks), n_rows, model.config.context_length)
        self._model = model
        self._places = list(range(n_rows))  # of each row in the tensors
        self._n_places = self._n_slots = 0
        self._replay: Callable[[], Tensor] | None = None

    def select(self, rows: list[int]) -> None:
        self.lengths = [self.lengths[row] for row in rows]
        self._places = [self._places[row] for row in rows]
        self._index = torch.tensor(self._places, device=self._device)
        self._used = torch.tensor(
            [[int(place in self._places)] for place in range(self._n_places)], device=self._device
        )

    def logits(self, token_ids: Tensor) -> Tensor:
        """The next token of each row in, the logits of the one after it out: (n, 1) -> (n, 1, V)."""
        if self._replay is None or max(self.lengths) >= self._n_slots or self._room() <= self._n_places // 2:
            self._make_room(token_ids)
        else:
            self.positions += self._used
            self.token_ids[self._index] = token_ids
        assert self._replay is not None
        logits = self._replay().index_select(0, self._index)
        self.lengths = [length + 1 for length in self.lengths]
        return logits

    def advance(self, n_tokens: int, device: torch.device) -> Tensor:
        """KVCache.advance as part of a recorded step, which knows the positions by their address alone."""
        assert n_tokens == 1, "prompts do not pass through here"
        mask = (torch.arange(self._n_slots, device=device) <= self.positions[..., None])[:, None]  # (B, 1, 1, S)
        for layer in self.layers:
            layer.positions, layer.mask = self.positions, mask
        return self.positions

    @property
    def _device(self) -> torch.device:
        return self._model.token_embedding.weight.device

    def _room(self) -> int:
        """Places for as many rows as there are."""
        n = len(self._places)
        return (
            1 << (n - 1).bit_length() if n <= LARGEST_DOUBLING else LARGEST_DOUBLING * math.ceil(n / LARGEST_DOUBLING)
        )

    def _make_room(self, token_ids: Tensor) -> None:
        """Move what the rows have into new tensors, and record a step for these."""
        n, n_places = len(self._places), self._room()
        n_slots = min(self.context_length, SLOTS * (max(self.lengths) // SLOTS + 1))
        rows = torch.tensor(self._places, device=self._device)
        for layer in self.layers:
            layer.keys, layer.values = (_with_room(old, rows, n_places, n_slots) for old in (layer.keys, layer.values))
        self._n_places, self._n_slots, self._places = n_places, n_slots, list(range(n))
        self.positions = torch.zeros(n_places, 1, dtype=torch.int64, device=self._device)
        self.positions[:n, 0] = torch.tensor(self.lengths, device=self._device)
        self.token_ids = torch.zeros_like(self.positions)
        self.token_ids[:n] = token_ids
        self.select(list(range(n)))
        self._replay = _recorded(self._step) if self._device.type == "cuda" else self._step

    def _step(self) -> Tensor:
        """The forward pass of all places. A second one with the same tokens and positions changes nothing."""
        return self._model.head(self._model.hidden_states(self.token_ids, self))


def _with_room(old: Tensor | None, rows: Tensor, n_rows: int, n_slots: int) -> Tensor:
    """Some rows of (B, K, S, D), zeros after them and after their slots: (n_rows, K, n_slots, D)."""
    assert old is not None
    new = old.new_zeros(n_rows, old.shape[1], n_slots, old.shape[3])
    n_kept = min(n_slots, old.shape[2])
    new[: len(rows), :, :n_kept] = old[rows, :, :n_kept]
    return new


def _recorded(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """`step` as a CUDA graph: each call computes it anew from the tensors that it reads, into the same result."""
    with _writes_in_any_order():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = step()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


@contextmanager
def _writes_in_any_order() -> Iterator[None]:
    """Without torch's deterministic mode, which sorts the indices of each write; no two tokens share a place here."""
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("default")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
