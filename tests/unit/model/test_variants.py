"""What other transformers have in place of GPT-2's parts: by hand, and that every path through a model carries it."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from scratchlm.fast.decoding import for_inference
from scratchlm.fast.frozen_prefix import Texts
from scratchlm.fast.varlen import VarlenLayout, varlen_states
from scratchlm.model.attention import MultiHeadAttention
from scratchlm.model.cache import KVCache
from scratchlm.model.classifier import GPTClassifier, freeze
from scratchlm.model.config import GPTConfig, RopeScaling
from scratchlm.model.generate import SamplingParams, Stopping, generate
from scratchlm.model.gpt import GPTModel, build_model, parameter_count
from scratchlm.model.lora import LoRAParams, apply_lora, merge_lora
from scratchlm.model.variants import (
    RMSNorm,
    Rotation,
    SinusoidalEmbedding,
    SwiGLU,
    rope_factors,
    rope_frequencies,
    sines_and_cosines,
)

LLAMA = {
    "position": "rope", "norm": "rms", "feed_forward": "swiglu", "n_heads": 6, "n_kv_heads": 2, "head_dim": 8,
    "qkv_bias": False, "bias": False,
}  # fmt: skip
SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context_length": 10}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama 3.1": LLAMA | {"rope_base": 50.0, "rope_scaling": SCALING},
    "one key-value head": {"n_kv_heads": 1, "position": "rope", "rope_base": 50.0, "n_heads": 3},
    "wide heads, narrow layers": {"head_dim": 16, "hidden_dim": 20, "feed_forward": "swiglu", "tied_head": False},
    "sinusoidal": {"position": "sinusoidal", "norm": "rms", "bias": False},
}
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]])


def config(**changes: Any) -> GPTConfig:
    values = {
        "vocab_size": 13, "context_length": 12, "n_layers": 2, "n_heads": 2, "emb_dim": 24, "dropout": 0.0,
        "qkv_bias": True, "tied_head": True, "initialisation": "gpt2", "attention": "sdpa",
    }  # fmt: skip
    return GPTConfig.model_validate(values | changes)


@pytest.fixture(params=VARIANTS)
def model(request: pytest.FixtureRequest) -> GPTModel:
    model = build_model(config(**VARIANTS[request.param]), seed=2).eval()
    for n, parameter in enumerate(model.parameters()):  # GPT-2's small weights would make all logits alike
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(n))
    return model


# By hand


@pytest.mark.parametrize("epsilon", [1e-5, 3.5])
def test_rms_norm_divides_by_the_root_of_the_mean_square(epsilon: float) -> None:
    norm = RMSNorm(2, epsilon)
    norm.load_state_dict({"scale": torch.tensor([1.0, 2.0])})
    size = math.sqrt(12.5 + epsilon)  # (9 + 16) / 2
    torch.testing.assert_close(norm(torch.tensor([[3.0, 4.0]])), torch.tensor([[3 / size, 8 / size]]))


def test_swiglu_opens_one_half_by_the_other() -> None:
    found = SwiGLU()(torch.tensor([[math.log(3), 0.0, 2.0, 5.0]]))  # σ(ln 3) = 3/4
    torch.testing.assert_close(found, torch.tensor([[1.5 * math.log(3), 0.0]]))


def test_sinusoids_are_slower_with_each_pair_of_channels() -> None:
    found = SinusoidalEmbedding(9, 4)(torch.tensor([0, 7]))
    expected = [[0.0, 1.0, 0.0, 1.0], [math.sin(7), math.cos(7), math.sin(0.07), math.cos(0.07)]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_a_rotation_turns_each_pair_by_its_angle() -> None:
    x = torch.tensor([1.0, 1.0, 0.0, 2.0]).view(1, 1, 1, 4)  # the pairs (1, 0) and (1, 2)
    found = Rotation(9, 4, base=100.0)(x, torch.tensor([3])).flatten()
    slow = 3 / math.sqrt(100)
    expected = [
        math.cos(3), math.cos(slow) - 2 * math.sin(slow), math.sin(3), math.sin(slow) + 2 * math.cos(slow)
    ]  # fmt: skip
    torch.testing.assert_close(found, torch.tensor(expected))


def test_scaled_rope_slows_the_pairs_that_do_not_turn_often_enough() -> None:
    scaling = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context_length=10)
    frequencies = 2 * math.pi / 10 * torch.tensor([7.0, 4.0, 3.0, 2.5, 1.0, 0.5], dtype=torch.float64)  # of turns in 10
    third, half = 2 / 3 + 1 / 3 / 8, 1 / 2 + 1 / 2 / 8
    expected = torch.tensor([1.0, 1.0, 1 / third, 1 / half, 8.0, 8.0], dtype=torch.float64)
    torch.testing.assert_close(rope_factors(frequencies, scaling), expected, atol=0, rtol=1e-14)
    sine, cosine = sines_and_cosines(9, 6, 1000.0, torch.device("cpu"), scaling)  # 1, 1/10 and 1/100 in radians
    speeds = [1 / 8 + 7 / 8 * (10 / 2 / math.pi - 1) / 3, 0.1 / 8, 0.01 / 8]
    torch.testing.assert_close(sine[7], torch.tensor([math.sin(7 * speed) for speed in speeds]))
    torch.testing.assert_close(cosine[7], torch.tensor([math.cos(7 * speed) for speed in speeds]))


@pytest.mark.parametrize(("factor", "width"), [(32.0, 64), (8.0, 128)])  # Llama 3.2 and 3.1
def test_scaled_rope_is_transformers(factor: float, width: int) -> None:
    scaling = {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    theirs = LlamaConfig(
        head_dim=width, max_position_embeddings=131_072,
        rope_parameters=scaling | {"rope_type": "llama3", "rope_theta": 5e5, "original_max_position_embeddings": 8192},
    )  # fmt: skip
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](theirs)
    frequencies = rope_frequencies(width, 5e5)
    found = frequencies / rope_factors(frequencies, RopeScaling(**scaling, original_context_length=8192))
    torch.testing.assert_close(found.float(), expected, atol=0, rtol=1e-5)


def test_products_of_turned_vectors_depend_on_their_distance() -> None:
    query, key = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0)).double()
    rotation = Rotation(2000, 16, 10_000.0)

    def product(i: int, j: int) -> Tensor:
        return (rotation(query, torch.tensor([i])) * rotation(key, torch.tensor([j]))).sum()

    torch.testing.assert_close(product(1005, 1002), product(4, 1), atol=1e-5, rtol=1e-5)
    assert abs(product(8, 1) - product(4, 1)) > 1e-2


def test_a_rotation_is_transformers() -> None:
    query, key = torch.randn(2, 2, 3, 7, 8, generator=torch.Generator().manual_seed(1))
    positions = torch.arange(5, 12)
    sine, cosine = (
        torch.cat((wave, wave), dim=-1)[None, positions] for wave in sines_and_cosines(20, 8, 1e4, query.device)
    )
    expected = apply_rotary_pos_emb(query, key, cosine, sine)
    rotation = Rotation(20, 8, 1e4)
    torch.testing.assert_close((rotation(query, positions), rotation(key, positions)), expected)


def test_grouped_heads_are_those_of_attention_with_the_shared_ones_repeated() -> None:
    grouped, full = MultiHeadAttention(config(**LLAMA)), MultiHeadAttention(config(**LLAMA | {"n_kv_heads": 6}))
    query, key, value = grouped.qkv.weight.split(grouped.qkv.parts)
    repeated = [part.unflatten(0, (2, 8)).repeat_interleave(3, 0).flatten(0, 1) for part in (key, value)]
    full.load_state_dict({"qkv.weight": torch.cat([query, *repeated]), "projection.weight": grouped.projection.weight})
    x = torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(grouped(x), full(x))


# Every path through a model


def test_the_parameters_are_as_many_as_the_configuration_says(model: GPTModel) -> None:
    assert parameter_count(model) == model.config.n_parameters


def test_a_token_does_not_see_the_next_ones_and_positions_count(model: GPTModel) -> None:
    changed = TOKENS.clone()
    changed[:, 5] = 0
    assert torch.equal(model(changed)[:, :5], model(TOKENS)[:, :5])
    swapped = TOKENS[:, [1, 0, 2, 3, 4, 5, 6, 7]]
    assert not torch.allclose(model(swapped)[:, 7], model(TOKENS)[:, 7], atol=1e-3)


def test_rows_without_padding_are_padded_rows(model: GPTModel) -> None:
    layout = VarlenLayout(torch.tensor([8, 3]))
    hidden = model.hidden_states(TOKENS)
    expected = torch.cat([hidden[0], hidden[1, :3]])
    torch.testing.assert_close(varlen_states(model, layout.unpad(TOKENS), layout), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_with_a_cache_decodes_what_each_row_does_without(model: GPTModel, temperature: float) -> None:
    sampling = SamplingParams(temperature=temperature, top_k=0, top_p=1.0, repetition_penalty=1.0)
    prompts, stopping = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11, 12]], Stopping(9, None)  # all outgrow the context
    expected = []
    for seed, prompt in enumerate(prompts):
        tokens, source = list(prompt), torch.Generator().manual_seed(seed)
        for _ in range(9):
            logits = model(torch.tensor([tokens[-12:]]))[0, -1].double()
            cumulative = logits.softmax(-1).cumsum(-1)
            draw = torch.rand(1, generator=source, dtype=torch.float64)
            tokens.append(int(torch.searchsorted(cumulative, draw)) if temperature else int(logits.argmax()))
        expected.append(tokens[len(prompt) :])
    for decoder in (model, for_inference(model)):
        found = generate(decoder, prompts, stopping, sampling, seeds=[0, 1, 2])
        assert [row.token_ids for row in found] == expected
    assert len({token for row in expected for token in row}) > 3


def test_a_classifier_trains_its_last_block_on_cached_texts(model: GPTModel) -> None:
    classifier, lengths, found = GPTClassifier(model, 2, "last_real"), torch.tensor([8, 4]), []
    freeze(classifier, "last_block")
    texts = Texts(TOKENS, lengths)
    for _ in range(2):
        classifier.zero_grad()
        logits = texts.class_logits(classifier, *texts.batch([0, 1]))
        logits.square().sum().backward()
        found.append([logits.detach(), *(p.grad for p in classifier.parameters() if p.grad is not None)])
        texts.cache_frozen_blocks(classifier, batch_size=1)
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[0][0], classifier(TOKENS, lengths).detach(), atol=1e-5, rtol=1e-4)


def test_merged_lora_is_lora(model: GPTModel) -> None:
    apply_lora(model, LoRAParams(rank=2, alpha=2.0, layers="blocks"), seed=0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith(".B"):
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    expected = model(TOKENS)
    merge_lora(model)
    torch.testing.assert_close(model(TOKENS), expected, atol=1e-4, rtol=1e-4)


# What is refused


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"n_kv_heads": 4}, "6 heads cannot share 4 key-value heads; choose n_kv_heads among the divisors of n_heads"),
        ({"head_dim": 5}, "position rope needs pairs of numbers, and the width of a head is 5; make it even"),
        (
            {"position": "sinusoidal", "emb_dim": 21},
            "position sinusoidal needs pairs of numbers, and emb_dim is 21; make it even",
        ),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        config(**LLAMA | changes)


def test_the_cache_of_a_token_is_counted(model: GPTModel) -> None:
    cache = KVCache(model.config.n_layers, 1, model.config.context_length)
    model(TOKENS[:1, :1], cache)
    slots = [part for layer in cache.layers for part in (layer.keys, layer.values)]
    assert sum(part[:, :, 0].nbytes for part in slots) == model.config.kv_cache_bytes_per_token


def test_what_a_file_of_gpt2_leaves_out_is_as_in_gpt2() -> None:
    found = config()
    assert (found.position, found.norm, found.feed_forward, found.bias) == ("learned", "layer", "gelu", True)
    assert (found.n_kv_heads, found.head_dim, found.hidden_dim) == (2, 12, 96)
    assert config(feed_forward="swiglu", n_kv_heads=None).hidden_dim == 64  # two thirds of 96
