"""Configurations: what is accepted, what is refused and in which words, what a size's name means."""

import pytest
from pydantic import ValidationError
from transformers import GPT2Config

from scratchlm.model.config import SIZES, GPTConfig, ModelParams, Shape, SizeName, gpt2_config

SHARED = {
    "context_length": 64,
    "dropout": 0.1,
    "position": "learned",
    "norm": "layer",
    "feed_forward": "gelu",
    "qkv_bias": False,
    "bias": True,
    "tied_head": True,
    "initialisation": "gpt2",
    "attention": "sdpa",
}
CUSTOM = {"n_layers": 2, "n_heads": 3, "emb_dim": 12}


def test_a_named_size_becomes_its_three_numbers() -> None:
    config = ModelParams(size="124M", **SHARED).config(vocab_size=100)
    assert config == GPTConfig(vocab_size=100, n_layers=12, n_heads=12, emb_dim=768, **SHARED)


def test_a_custom_size_brings_its_own_numbers() -> None:
    config = ModelParams(size="custom", custom=CUSTOM, **SHARED).config(vocab_size=100)
    assert config == GPTConfig(vocab_size=100, **CUSTOM, **SHARED)


@pytest.mark.parametrize("params", [{"size": "custom"}, {"size": "nano", "custom": CUSTOM}])
def test_the_custom_section_goes_with_the_custom_size_and_only_with_it(params: dict) -> None:
    with pytest.raises(ValidationError, match="size: custom needs a section custom: .* and only it does"):
        ModelParams(**params, **SHARED)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValidationError, match="emb_dim 12 cannot be split over 5 heads; choose n_heads among"):
        GPTConfig(vocab_size=100, **CUSTOM | {"n_heads": 5}, **SHARED)
    with pytest.raises(ValidationError, match="emb_dim 12 cannot be split over 5 heads; choose n_heads among"):
        Shape(**CUSTOM | {"n_heads": 5})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", 0),
        ("context_length", 0),
        ("n_layers", 0),
        ("n_layers", 2.0),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("qkv_bias", "yes"),
        ("initialisation", "xavier"),
        ("attention", "flash"),
        ("n_head", 3),
    ],
)
def test_a_wrong_value_type_or_key_is_refused_by_name(key: str, value: object) -> None:
    accepted = {"vocab_size": 100, **CUSTOM, **SHARED}
    assert GPTConfig(**accepted).dropout == 0.1
    with pytest.raises(ValidationError) as error:
        GPTConfig(**accepted | {key: value})
    assert [problem["loc"] for problem in error.value.errors()] == [(key,)]


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(ValidationError, match="size\n"):
        ModelParams(size="1.5B", **SHARED)


def test_every_named_size_can_be_chosen_and_splits_into_whole_heads() -> None:
    for name, shape in SIZES.items():
        config = ModelParams(size=name, **SHARED).config(vocab_size=9)
        assert (config.n_layers, config.n_heads, config.emb_dim) == (shape.n_layers, shape.n_heads, shape.emb_dim)
        assert config.n_heads * config.head_dim == config.emb_dim


@pytest.mark.parametrize(
    ("size", "layers", "heads", "width"),
    [("124M", 12, 12, 768), ("355M", 24, 16, 1024), ("774M", 36, 20, 1280), ("1558M", 48, 25, 1600)],
)
def test_gpt2_sizes_are_those_of_the_paper(size: SizeName, layers: int, heads: int, width: int) -> None:
    assert SIZES[size] == Shape(n_layers=layers, n_heads=heads, emb_dim=width)


def test_the_gpt2_configuration_of_124m_is_transformers_default() -> None:
    ours, reference = gpt2_config("124M", vocab_size=50257, context_length=1024), GPT2Config()
    assert (ours.vocab_size, ours.context_length) == (reference.vocab_size, reference.n_positions)
    assert (ours.n_layers, ours.n_heads, ours.emb_dim) == (reference.n_layer, reference.n_head, reference.n_embd)
    assert ours.tied_head == reference.tie_word_embeddings
    assert ours.qkv_bias
    assert ours.dropout == 0


def test_configurations_cannot_be_changed_afterwards() -> None:
    config = gpt2_config("nano", vocab_size=9, context_length=8)
    with pytest.raises(ValidationError, match="frozen"):
        config.n_layers = 2  # type: ignore[misc]
