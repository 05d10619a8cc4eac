"""A KV cache of fixed shape, and decoding steps that a GPU replays as one recorded graph.

Surprising: on a card, a step for a few rows takes as long as launching its hundreds of kernels one by one, however
little each computes. A CUDA graph launches them at once, but has the addresses and shapes of when it was recorded. So
the cache has room for a fixed number of rows and slots; a row that ends leaves its place unused, until half the room
would do. A new graph is recorded then, and whenever a row needs more slots.

The recorded step is the textbook's forward pass, so the tokens are the same: tests/unit/fast/test_static_cache.py runs
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
from scratchlm.fast.recording import recorded
from scratchlm.model.cache import KVCache, LayerCache
from scratchlm.model.config import GPTConfig

SLOTS = 256  # added at a time
LARGEST_DOUBLING = 16  # room for more rows is a multiple of this
KEPT_BYTES = 2 << 30  # of rooms that a model keeps for later


class StaticCache(KVCache):
    """A KVCache whose rows, once the prompts are in it, get one token each at a step."""

    def __init__(self, config: GPTConfig, n_rows: int, rooms: "Rooms") -> None:
        super().__init__(config.n_layers, n_rows, config.context_length)
        self._places = list(range(n_rows))  # of each row in the room
        self._rooms, self._room = rooms, cast("Room", None)
        self._fed: list[int] | None = None  # the tokens that the last step has chosen and put in their places

    def select(self, rows: list[int]) -> None:
        self.lengths = [self.lengths[row] for row in rows]
        self._places = [self._places[row] for row in rows]
        self._fed = None
        if self._room:
            self._room.use(self._places)

    def step(self, model: Callable[..., Tensor], token_ids: list[int]) -> Tensor:
        logits, _ = self._stepped(model, token_ids)
        return logits.index_select(0, torch.tensor(self._places, device=logits.device))

    def most_likely(self, model: Callable[..., Tensor], token_ids: list[int]) -> list[list[float]]:
        _, best = self._stepped(model, token_ids)
        of_places = best.tolist()  # the only wait of a step
        found = [of_places[place] for place in self._places]
        self._fed = [int(token_id) for _, token_id in found]
        return found

    def _stepped(self, model: Callable[..., Tensor], token_ids: list[int]) -> tuple[Tensor, Tensor]:
        """Logits and the most likely token of each place."""
        longest, n_places = max(self.lengths), places_for(len(self._places))
        if self._room is None or longest >= self._room.n_slots or n_places <= self._room.n_places // 2:
            n_slots = min(self.context_length, SLOTS * (longest // SLOTS + 1))
            self._room = self._rooms.take(model, self, n_places, n_slots)
            self._room.receive(self.layers, self._places, self.lengths)
            self.layers, self._places, self._fed = self._room.layers, list(range(len(self._places))), None
        if token_ids != self._fed:
            self._room.put(self._places, token_ids)
        self._fed = None
        self.lengths = [length + 1 for length in self.lengths]
        return self._room.replay()


class Rooms:
    """The rooms of one model. A later cache takes one that an earlier cache has left, so few steps are recorded."""

    def __init__(self) -> None:
        self._rooms: dict[tuple[int, int], Room] = {}

    def take(self, model: Callable[..., Tensor], cache: StaticCache, n_places: int, n_slots: int) -> "Room":
        """A room of this size that no other living cache has."""
        size = (n_places, n_slots)
        room = self._rooms.pop(size, None)
        if room is None or room.owner() is not None:
            room = Room(model, cache.layers, n_places, n_slots)
        self._rooms[size] = room
        while len(self._rooms) > 1 and sum(kept.n_bytes for kept in self._rooms.values()) > KEPT_BYTES:
            del self._rooms[next(iter(self._rooms))]  # the oldest
        room.owner = weakref.ref(cache)
        return room


class Room(KVCache):
    """Tensors of fixed shape and address, all that a recorded step reads and writes. It knows no row's length.

    token_ids, positions: (B, 1) of the tokens that come next, for B places. used: (B, 1), 1 where there is a row.
    replay: the next step. owner: the cache that has the room, or None.
    """

    def __init__(
        self, model: Callable[..., Tensor], like: Sequence[LayerCache], n_places: int, n_slots: int
    ) -> None:  # fmt: skip
        super().__init__(len(like), 1, n_slots)
        self.n_places, self.n_slots = n_places, n_slots
        for new, layer in zip(self.layers, like, strict=True):
            new.keys, new.values = (_with_room(it, n_places, n_slots) for it in (layer.keys, layer.values))
        assert self.layers[0].keys is not None
        self.n_bytes = 2 * len(like) * self.layers[0].keys.nbytes
        empty = torch.zeros(n_places, 1, dtype=torch.int64, device=self.layers[0].keys.device)
        self.token_ids, self.positions, self.used = empty, empty.clone(), empty.clone()
        self.owner: Callable[[], StaticCache | None] = lambda: None
        forward = compiled(logits_of, dynamic=True) if compiler() else logits_of
        with _writes_in_any_order():
            self.replay = recorded(partial(step, forward, model, self), empty.device)

    def advance(self, n_tokens: int, device: torch.device) -> Tensor:
        assert n_tokens == 1 and self.layers[0].keys is not None, "prompts do not pass through here"
        slots = torch.arange(self.layers[0].keys.shape[2], device=device)
        mask = (slots <= self.positions[..., None])[:, None]  # (B, 1, 1, S)
        for layer in self.layers:
            layer.positions, layer.mask = self.positions, mask
        return self.positions

    def receive(self, old: Sequence[LayerCache], rows: list[int], lengths: list[int]) -> None:
        """Copy some rows of the old layers, and their lengths, into the first places."""
        device = self.positions.device
        chosen = torch.tensor(rows, device=device)
        for new, layer in zip(self.layers, old, strict=True):
            for place, it in ((new.keys, layer.keys), (new.values, layer.values)):
                assert place is not None and it is not None
                n_kept = min(self.n_slots, it.shape[2])
                place[: len(rows), :, :n_kept] = it[chosen, :, :n_kept]
        self.positions.zero_()
        self.positions[: len(rows), 0] = torch.tensor(lengths, device=device)
        self.use(list(range(len(rows))))

    def use(self, places: list[int]) -> None:
        """Let only these places go on to their next positions."""
        self.used.zero_()
        self.used[torch.tensor(places, device=self.used.device)] = 1

    def put(self, places: list[int], token_ids: list[int]) -> None:
        """Let these tokens come next."""
        device = self.token_ids.device
        self.token_ids[torch.tensor(places, device=device), 0] = torch.tensor(token_ids, device=device)


def places_for(n_rows: int) -> int:
    """A number with room for the rows, such that there are few."""
    if n_rows <= LARGEST_DOUBLING:
        return 1 << (n_rows - 1).bit_length()
    return LARGEST_DOUBLING * math.ceil(n_rows / LARGEST_DOUBLING)


def logits_of(model: Callable[..., Tensor], room: Room) -> Tensor:
    """The forward pass of all places: (B, V)."""
    return model(room.token_ids, room)[:, -1]


def step(forward: Callable[..., Tensor], model: Callable[..., Tensor], room: Room) -> tuple[Tensor, Tensor]:
    """Logits and the most likely token of all places, which becomes the next one unless another is put there."""
    logits = forward(model, room)
    best = most_likely(logits)
    # a row that has ended may stand beyond the last slot, until its place is used again
    room.positions.copy_((room.positions + room.used).clamp(max=room.n_slots - 1))
    room.token_ids.copy_(best[:, 1:])
    return logits, best


def _with_room(like: Tensor | None, n_rows: int, n_slots: int) -> Tensor:
    """Zeros for more rows and slots: (B, K, S, D) -> (n_rows, K, n_slots, D)."""
    assert like is not None
    return like.new_zeros(n_rows, like.shape[1], n_slots, like.shape[3])


@contextmanager
def _writes_in_any_order() -> Iterator[None]:
    """Without torch's deterministic mode, which sorts the indices of each write; no two tokens share a place here."""
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("default")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
