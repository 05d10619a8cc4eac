"""A model made for decoding against the model itself."""

import gc
import weakref

import pytest
import torch
from torch import nn

from scratchlm.fast.decoding import PackedLinear, for_inference
from scratchlm.model.cache import KVCache
from scratchlm.model.config import GPTConfig
from scratchlm.model.generate import GREEDY, DecodeState, Stopping, generate
from scratchlm.model.gpt import GPTModel, build_model
from scratchlm.model.lora import LoRALinear, LoRAParams, apply_lora


def model(tied_head: bool = True, attention: str = "sdpa") -> GPTModel:
    config = GPTConfig(
        vocab_size=29, context_length=16, emb_dim=16, n_heads=2, n_layers=2, dropout=0.3, qkv_bias=True,
        tied_head=tied_head, initialisation="torch", attention=attention,
    )  # fmt: skip
    return build_model(config, seed=0)


LLAMA: dict[str, object] = {
    "position": "rope", "norm": "rms", "feed_forward": "swiglu", "qkv_bias": False, "bias": False, "n_kv_heads": 2,
    "rms_epsilon": 1e-3,
}  # fmt: skip


def deep_model(**changes: object) -> GPTModel:
    """Four heads, and a context that needs several blocks of cache slots."""
    config = {
        "vocab_size": 29, "context_length": 80, "emb_dim": 32, "n_heads": 4, "n_layers": 2, "dropout": 0.3,
        "qkv_bias": True, "tied_head": True, "initialisation": "torch", "attention": "sdpa",
    }  # fmt: skip
    return build_model(GPTConfig.model_validate(config | changes), seed=0).eval()


TOKENS = torch.arange(24).view(2, 12)


@torch.no_grad()
@pytest.mark.parametrize("tied_head", [True, False])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_logits_are_the_models_at_both_precisions(tied_head: bool, precision: str, tolerance: float) -> None:
    plain = model(tied_head).eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        twin = for_inference(plain)
        found, expected = twin(TOKENS), plain(TOKENS)
    assert found.dtype == expected.dtype == getattr(torch, precision)
    torch.testing.assert_close(found.float(), expected.float(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_tokens_are_generated(precision: str) -> None:
    plain, prompts = model(), [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11, 12]]
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        expected = generate(plain, prompts, Stopping(12, 0), GREEDY)
        assert generate(for_inference(plain), prompts, Stopping(12, 0), GREEDY) == expected
    assert len({tuple(row.token_ids) for row in expected}) == 3


def test_the_model_itself_stays_as_it_was_and_what_is_not_a_matrix_is_shared() -> None:
    plain = model().train()
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    twin = for_inference(plain)
    assert plain.training and not twin.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in plain.state_dict().items())
    assert not any(isinstance(module, PackedLinear) for module in plain.modules())
    assert twin.token_embedding.weight is plain.token_embedding.weight
    assert sum(isinstance(module, PackedLinear) for module in twin.modules()) == 2 * 4 + 1
    assert not any(isinstance(module, nn.Linear) for module in twin.modules())


@torch.no_grad()
@pytest.mark.parametrize("tied_head", [True, False])
def test_lora_matrices_beside_a_layer_still_count(tied_head: bool) -> None:
    plain = model(tied_head)
    apply_lora(plain, LoRAParams(rank=2, alpha=4.0, layers="all"), seed=1)
    for module in plain.modules():
        if isinstance(module, LoRALinear):
            nn.init.normal_(module.B)
    plain.eval()
    torch.testing.assert_close(for_inference(plain)(TOKENS), plain(TOKENS), rtol=1e-4, atol=1e-4)


def test_where_packing_does_not_help_the_twin_has_plain_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = model()
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with torch.autocast("cpu", torch.bfloat16):
        twins = [for_inference(plain)]
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    for twin in [*twins, for_inference(plain)]:
        assert not any(isinstance(module, PackedLinear) for module in twin.modules())
        assert all(a is b for a, b in zip(twin.parameters(), plain.parameters(), strict=True))


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_prompts_without_padding_give_the_logits_and_the_cache_of_the_textbook_pass(
    attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    plain = model(attention=attention).eval().double()
    twin, caches = for_inference(plain), [KVCache(n_layers=2, n_rows=3, context_length=16) for _ in range(2)]
    prompts, new = [[1, 2, 3], [4], [5, 6, 7, 8, 9]], torch.tensor([[10], [11], [12]])
    logits = [decoder.next_logits(prompts, cache) for decoder, cache in zip((plain, twin), caches, strict=True)]
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(twin.next_logits(prompts), logits[0], rtol=1e-9, atol=1e-9)
    assert caches[0].lengths == caches[1].lengths == [3, 1, 5]
    torch.testing.assert_close(twin(new, caches[1]), plain(new, caches[0]), rtol=1e-9, atol=1e-9)


def test_a_prompt_costs_its_tokens_and_its_last_block_one(monkeypatch: pytest.MonkeyPatch) -> None:
    twin, computed = for_inference(model()), []
    for module in (twin.token_embedding, twin.blocks[1].feed_forward):
        module.register_forward_pre_hook(lambda _, inputs: computed.append(tuple(inputs[0].shape)))
    generate(twin, [[1, 2], [7, 8, 9]], Stopping(2, None))
    assert computed == [(5,), (2, 16), (2, 1), (2, 16)]


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize("lengths", [[3], [5, 5, 5], [1, 30, 7]], ids=str)
def test_each_step_has_the_textbook_logits_while_the_cache_grows_and_rows_leave(
    changes: dict[str, object], lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    plain = deep_model(**changes).double()
    rows = {row: [(row + i) % 29 for i in range(length)] for row, length in enumerate(lengths)}
    states = [DecodeState(plain), DecodeState(for_inference(plain))]
    for step in range(60):
        expected, found = (state.next_logits(rows) for state in states)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        if step == 40:
            rows = {min(rows): rows[min(rows)]}  # all others end
        rows = {row: [*tokens, (7 * step + row) % 29] for row, tokens in rows.items()}


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize("n_rows", [1, 3])
def test_a_step_in_bfloat16_is_the_textbook_one_within_its_eight_bits(changes: dict[str, object], n_rows: int) -> None:
    plain = deep_model(**changes)
    rows = {row: [row + 1, 2, 3] for row in range(n_rows)}
    with torch.autocast("cpu", torch.bfloat16):
        states = [DecodeState(plain), DecodeState(for_inference(plain))]
        for step in range(40):
            expected, found = (state.next_logits(rows) for state in states)
            torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02 * float(expected.float().std()))
            rows = {row: [*tokens, (5 * step + row) % 29] for row, tokens in rows.items()}


@torch.no_grad()
def test_a_step_beyond_the_context_is_refused_as_by_the_model() -> None:
    twin, cache = for_inference(model()), KVCache(n_layers=2, n_rows=1, context_length=16)
    twin.next_logits([[1] * 16], cache)
    with pytest.raises(ValueError, match="17 tokens do not fit"):
        twin(torch.tensor([[2]]), cache)


def test_a_decoding_model_is_freed_as_soon_as_nobody_has_it() -> None:
    gc.disable()
    try:
        twin = for_inference(model())
        alive = weakref.ref(twin)
        del twin
        assert alive() is None
    finally:
        gc.enable()
