"""Decoding in places of fixed shape against the textbook, without a GPU: the step is run instead of recorded."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from scratchlm.fast import static_cache
from scratchlm.fast.decoding import CastLinear, DecodingGPT, for_inference
from scratchlm.fast.static_cache import Room, Rooms, StaticCache, places_for
from scratchlm.model.cache import KVCache
from scratchlm.model.generate import DecodeState, SamplingParams, Stopping, generate
from scratchlm.model.gpt import GPTModel

TODAYS = {"position": "rope", "norm": "rms", "feed_forward": "swiglu", "hidden_dim": 12, "n_kv_heads": 1}


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding models have a static cache with few slots, and the layers that a GPU has."""
    monkeypatch.setattr(static_cache, "SLOTS", 4)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(DecodingGPT, "new_cache", lambda model, n_rows: StaticCache(model.config, n_rows, model.rooms))
    monkeypatch.setattr(DecodingGPT, "hidden_states", GPTModel.hidden_states)


def steps(model: GPTModel, lengths: Sequence[int], ends: dict[int, int]) -> list[tuple[int, KVCache, torch.Tensor]]:
    """Decode until the context is full and beyond: rows, the cache and logits at each step. ends: row -> its last."""
    state = DecodeState(model)
    rows = {row: [(row + i) % 11 for i in range(length)] for row, length in enumerate(lengths)}
    found = []
    for step in range(14):
        logits = state.next_logits(rows)
        assert state.cache is not None
        found.append((len(rows), state.cache, logits))
        rows = {row: [*tokens, (7 * step + row) % 11] for row, tokens in rows.items() if ends.get(row, 99) > step}
    return found


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"attention": "sdpa"}, TODAYS], ids=["gpt2", "sdpa", "llama"])
@pytest.mark.parametrize(
    ("lengths", "ends"),
    [([3], {}), ([1, 5, 2], {1: 3}), ([2, 2, 2, 3, 4], {0: 1, 1: 1, 4: 2, 2: 5})],
    ids=["one", "three", "five"],
)
def test_each_step_has_the_textbook_logits_while_rows_end_and_slots_are_added(
    tiny_gpt: Any, changes: dict[str, Any], lengths: list[int], ends: dict[int, int]
) -> None:
    plain = tiny_gpt(context_length=12, **changes).double().eval()
    for expected, found in zip(steps(plain, lengths, ends), steps(for_inference(plain), lengths, ends), strict=True):
        assert isinstance(found[1], StaticCache) and not isinstance(expected[1], StaticCache)
        torch.testing.assert_close(found[2], expected[2], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_step_is_recorded_for_few_shapes(tiny_gpt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, int]] = []
    recorded: list[tuple[int, int]] = []
    take, create = Rooms.take, Room.__init__

    def noted_take(rooms: Rooms, model: Any, cache: StaticCache, *size: int) -> Room:
        taken.append(size)  # type: ignore[arg-type]
        return take(rooms, model, cache, *size)

    def noted_room(room: Room, model: Any, like: Any, *size: int) -> None:
        recorded.append(size)  # type: ignore[arg-type]
        create(room, model, like, *size)

    monkeypatch.setattr(Rooms, "take", noted_take)
    monkeypatch.setattr(Room, "__init__", noted_room)
    model = for_inference(tiny_gpt(context_length=14))
    steps(model, [1] * 5, {0: 3, 1: 4, 2: 6, 3: 8})
    # five rows have eight places; the first that ends leaves the four others half of these, later two, and then one
    sizes = [(8, 4), (4, 8), (2, 8), (2, 12), (1, 12), (1, 14)]
    assert taken == recorded == sizes
    steps(model, [1] * 5, {0: 3, 1: 4, 2: 6, 3: 8})
    assert taken == 2 * sizes and recorded == sizes  # all rooms were still there
    monkeypatch.setattr(static_cache, "KEPT_BYTES", 1)
    steps(model, [1] * 5, {0: 3, 1: 4, 2: 6, 3: 8})
    assert recorded == [*sizes, *sizes[1:]]  # the first was, and then each pushed out the others
    assert [places_for(n) for n in (1, 3, 16, 17, 110)] == [1, 4, 16, 32, 112]


@torch.no_grad()
def test_two_generations_at_the_same_time_have_rooms_of_their_own(tiny_gpt: Any) -> None:
    plain = tiny_gpt(context_length=12).eval()
    twin = for_inference(plain)
    states = [(DecodeState(plain), DecodeState(twin)) for _ in range(2)]
    rows = [{0: [1, 2]}, {0: [7, 3]}]
    for step in range(6):
        for (expected, found), tokens in zip(states, rows, strict=True):
            torch.testing.assert_close(found.next_logits(tokens), expected.next_logits(tokens))
            tokens[0] = [*tokens[0], step]
    assert len(twin.rooms._rooms) == 2  # of 4 and of 8 slots, each taken last by the second


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_same_texts_are_generated(tiny_gpt: Any, temperature: float) -> None:
    plain, prompts = tiny_gpt(context_length=12), [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    sampling = SamplingParams(temperature=temperature, top_k=0, top_p=1.0, repetition_penalty=1.0)
    expected = generate(plain, prompts, Stopping(20, 0), sampling, [1, 2, 3])
    assert generate(for_inference(plain), prompts, Stopping(20, 0), sampling, [1, 2, 3]) == expected
    assert len({tuple(row.token_ids) for row in expected}) == 3


@torch.no_grad()
def test_a_gpus_layers_hold_weights_of_the_precision(tiny_gpt: Any) -> None:
    linear = tiny_gpt().head
    cast = CastLinear(linear, torch.bfloat16)
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cast(x), linear(x))
    assert cast.weight.dtype == torch.bfloat16 and cast.bias is None
