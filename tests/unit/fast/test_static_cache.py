"""Decoding in indices of fixed shape against the textbook, without a GPU: the step is run instead of captured."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from scratchlm.fast import static_cache
from scratchlm.fast.decoding import CastLinear, DecodingGPT, for_inference
from scratchlm.fast.static_cache import BufferPool, Buffers, StaticCache, padded_batch_size
from scratchlm.model.cache import KVCache
from scratchlm.model.generate import DecodeState, SamplingParams, Stopping, generate
from scratchlm.model.gpt import GPTModel

TODAYS = {"position": "rope", "norm": "rms", "feed_forward": "swiglu", "hidden_dim": 12, "n_kv_heads": 1}


def new_static_cache(model: DecodingGPT, n_rows: int) -> StaticCache:
    return StaticCache(model.config, n_rows, model.buffer_pool)


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding models have a static cache with few slots, and the layers that a GPU has."""
    monkeypatch.setattr(static_cache, "SLOTS", 4)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(DecodingGPT, "new_cache", new_static_cache)
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
def test_rows_join_and_leave_a_static_cache_as_they_do_the_textbooks(tiny_gpt: Any) -> None:
    plain = tiny_gpt(context_length=12).double().eval()
    found = []
    for model in (plain, for_inference(plain)):
        state, rows, logits = DecodeState(model), {0: [1, 2], 1: [3]}, []
        for step in range(8):
            logits.append(state.next_logits(rows))
            rows = {row: [*tokens, (step + row) % 11] for row, tokens in rows.items() if (step, row) != (4, 0)}
            if step in (2, 3):  # once into buffers, once into the copies that the first has left
                new = {10 * step: [4, 5, 6], 10 * step + 1: [7]}
                logits.append(state.add(new))
                rows |= {row: [*tokens, 8] for row, tokens in new.items()}
        found.append(logits)
    for expected, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    whole = torch.cat([plain.next_logits([tokens[:-1]]) for tokens in rows.values()])
    torch.testing.assert_close(found[0][-1], whole, rtol=1e-9, atol=1e-9)


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
def test_a_step_is_captured_for_few_shapes(tiny_gpt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, int]] = []
    captured: list[tuple[int, int]] = []
    take, create = BufferPool.take, Buffers.__init__

    def noted_take(buffer_pool: BufferPool, model: Any, cache: StaticCache, *size: int) -> Buffers:
        taken.append(size)  # type: ignore[arg-type]
        return take(buffer_pool, model, cache, *size)

    def noted_buffers(buffers: Buffers, model: Any, like: Any, *size: int) -> None:
        captured.append(size)  # type: ignore[arg-type]
        create(buffers, model, like, *size)

    monkeypatch.setattr(BufferPool, "take", noted_take)
    monkeypatch.setattr(Buffers, "__init__", noted_buffers)
    model = for_inference(tiny_gpt(context_length=14))
    steps(model, [1] * 5, {0: 3, 1: 4, 2: 6, 3: 8})
    # five rows have a batch of eight; the first that ends leaves the four others half of it, later two, and then one
    sizes = [(8, 4), (4, 8), (2, 8), (2, 12), (1, 12), (1, 14)]
    assert taken == captured == sizes
    steps(model, [1] * 5, {0: 3, 1: 4, 2: 6, 3: 8})
    assert taken == 2 * sizes and captured == sizes  # all buffers were still there
    monkeypatch.setattr(static_cache, "KEPT_BYTES", 1)
    steps(model, [1] * 5, {0: 3, 1: 4, 2: 6, 3: 8})
    assert captured == [*sizes, *sizes[1:]]  # the first was, and then each pushed out the others
    assert [padded_batch_size(n) for n in (1, 3, 16, 17, 110)] == [1, 4, 16, 32, 112]


@torch.no_grad()
def test_two_generations_at_the_same_time_have_buffers_of_their_own(tiny_gpt: Any) -> None:
    plain = tiny_gpt(context_length=12).eval()
    twin = for_inference(plain)
    states = [(DecodeState(plain), DecodeState(twin)) for _ in range(2)]
    rows = [{0: [1, 2]}, {0: [7, 3]}]
    for step in range(6):
        for (expected, found), tokens in zip(states, rows, strict=True):
            torch.testing.assert_close(found.next_logits(tokens), expected.next_logits(tokens))
            tokens[0] = [*tokens[0], step]
    assert len(twin.buffer_pool._pool) == 2  # of 4 and of 8 slots, each taken last by the second


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
