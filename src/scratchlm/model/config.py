"""The shape of a GPT, and the published sizes."""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

GPT2_VOCAB_SIZE = 50257
GPT2_CONTEXT_LENGTH = 1024
NANO_VOCAB_SIZE, NANO_CONTEXT_LENGTH = 1024, 256  # of the checkpoint in data/sample

SizeName = Literal["nano", "small", "124M", "355M", "774M", "1558M"]
Probability = Annotated[float, Field(ge=0, le=0.9)]
# Far above every published model: a configuration beyond them is a mistake, which would fail in hours or fill memory
MAX_VOCAB_SIZE, MAX_CONTEXT_LENGTH, MAX_LAYERS, MAX_HEADS, MAX_EMB_DIM = 10_000_000, 1_000_000, 1_000, 1_000, 100_000
RMS_EPSILON = 1e-5  # of Llama; Qwen2 has 1e-6
Heads = Annotated[int, Field(ge=1, le=MAX_HEADS)]
Width = Annotated[int, Field(ge=1, le=MAX_EMB_DIM)]
HiddenWidth = Annotated[int, Field(ge=1, le=4 * MAX_EMB_DIM)]


class Strict(BaseModel):
    """Settings of a model: strictly typed, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ArchitectureParams(Strict):
    """The fields that the `model` section of params.yaml shares with a finished configuration."""

    context_length: Annotated[int, Field(ge=1, le=MAX_CONTEXT_LENGTH)]
    dropout: Probability
    position: Literal["learned", "sinusoidal", "rope"]
    norm: Literal["layer", "rms"]
    feed_forward: Literal["gelu", "swiglu"]
    qkv_bias: bool
    bias: bool  # of the other linear layers in the blocks
    tied_head: bool
    initialisation: Literal["torch", "gpt2"]
    attention: Literal["eager", "sdpa"]


class Shape(Strict):
    """The numbers of a size: `custom` in params.yaml.

    Defaults: n_kv_heads = n_heads; head_dim = emb_dim / n_heads; hidden_dim, the width of the feed-forward hidden
    layer, = 4 emb_dim for GELU. SwiGLU has three matrices instead of two, so its default is two thirds of that, rounded
    up to a multiple of 8 (Shazeer 2020, section 3).
    """

    n_layers: Annotated[int, Field(ge=1, le=MAX_LAYERS)]
    n_heads: Heads
    emb_dim: Width
    n_kv_heads: Heads | None = None  # groups of query heads share one key and value
    head_dim: Width | None = None
    hidden_dim: HiddenWidth | None = None

    @model_validator(mode="after")
    def _heads_fit(self) -> "Shape":
        if self.head_dim is None:
            _head_dim(self.emb_dim, self.n_heads)
        if self.n_heads % (self.n_kv_heads or self.n_heads):
            raise ValueError(
                f"{self.n_heads} heads cannot share {self.n_kv_heads} key-value heads; "
                "choose n_kv_heads among the divisors of n_heads"
            )
        return self


class RopeScaling(Strict):
    """How rope's angles are stretched for texts beyond the context of pretraining, as in Llama 3.1 and later.

    Pairs that make fewer than low_freq_factor turns over original_context_length tokens turn `factor` times as slowly,
    those with more than high_freq_factor turns as before, and those between by a blend.
    """

    factor: Annotated[float, Field(ge=1, le=1e6)]
    low_freq_factor: Annotated[float, Field(gt=0, le=1e6)]
    high_freq_factor: Annotated[float, Field(gt=0, le=1e6)]
    original_context_length: Annotated[int, Field(ge=1, le=MAX_CONTEXT_LENGTH)]

    @model_validator(mode="after")
    def _low_is_below_high(self) -> "RopeScaling":
        low, high = self.low_freq_factor, self.high_freq_factor
        if low >= high:
            raise ValueError(f"low_freq_factor {low} is not below high_freq_factor {high}; lower it")
        return self


def _head_dim(emb_dim: int, n_heads: int) -> int:
    if emb_dim % n_heads:
        raise ValueError(
            f"emb_dim {emb_dim} cannot be split over {n_heads} heads; choose n_heads among the divisors of emb_dim"
        )
    return emb_dim // n_heads


def _check_pairs(position: str, emb_dim: int, head_dim: int) -> None:
    """Raise ValueError if the position encoding needs pairs and the width is odd."""
    width = {"learned": 0, "sinusoidal": emb_dim, "rope": head_dim}[position]
    if width % 2:
        name = "emb_dim" if position == "sinusoidal" else "the width of a head"
        raise ValueError(f"position {position} needs pairs of numbers, and {name} is {width}; make it even")


SIZES = {
    "nano": Shape(n_layers=3, n_heads=4, emb_dim=128),
    "small": Shape(n_layers=6, n_heads=8, emb_dim=256),
    # Radford et al. 2019, table 2, under the parameter counts of OpenAI's released checkpoints
    "124M": Shape(n_layers=12, n_heads=12, emb_dim=768),
    "355M": Shape(n_layers=24, n_heads=16, emb_dim=1024),
    "774M": Shape(n_layers=36, n_heads=20, emb_dim=1280),
    "1558M": Shape(n_layers=48, n_heads=25, emb_dim=1600),
}


class GPTConfig(ArchitectureParams, Shape):
    """Everything that determines a GPTModel. The defaults are GPT-2's, so configurations without these fields load.

    The book's model: tied_head False, initialisation `torch`, attention `eager`, and these defaults.
    initialisation: `torch` draws as torch's layers do, in the book's order; `gpt2` as OpenAI did
    (normal 0.02, residual projections scaled by depth). attention: `eager` computes scores, mask and
    softmax one by one; `sdpa` is torch's fused kernel for the same function, except where that is slower.
    """

    vocab_size: Annotated[int, Field(ge=1, le=MAX_VOCAB_SIZE)]
    position: Literal["learned", "sinusoidal", "rope"] = "learned"
    norm: Literal["layer", "rms"] = "layer"
    feed_forward: Literal["gelu", "swiglu"] = "gelu"
    bias: bool = True
    rope_base: Annotated[float, Field(gt=1, le=1e9)] = 10_000.0  # Su et al. 2021, section 3.2.2
    # Stored only if they are others: configurations without them keep their bytes
    rms_epsilon: Annotated[float, Field(gt=0, le=1e-2, exclude_if=lambda epsilon: epsilon == RMS_EPSILON)] = RMS_EPSILON
    rope_scaling: Annotated[RopeScaling | None, Field(exclude_if=lambda scaling: scaling is None)] = None
    n_kv_heads: Heads
    head_dim: Width
    hidden_dim: HiddenWidth

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Compute the widths that Shape may leave out; mistakes in the values are found afterwards."""
        if not isinstance(values, dict):
            return values
        n_heads, emb_dim = values.get("n_heads"), values.get("emb_dim")
        if not (isinstance(n_heads, int) and isinstance(emb_dim, int) and n_heads > 0):
            return values
        values = {name: value for name, value in values.items() if value is not None}
        if "head_dim" not in values:
            values["head_dim"] = _head_dim(emb_dim, n_heads)
        hidden_dim = 4 * emb_dim
        if values.get("feed_forward") == "swiglu":
            hidden_dim = 8 * math.ceil(emb_dim / 3)  # two thirds of it, rounded up
        return {"n_kv_heads": n_heads, "hidden_dim": hidden_dim} | values

    @model_validator(mode="after")
    def _positions_fit(self) -> "GPTConfig":
        _check_pairs(self.position, self.emb_dim, self.head_dim)
        return self

    @property
    def n_parameters(self) -> int:
        """The number of parameters of a GPTModel; a tied head counts once."""
        C, q_width, kv_width = self.emb_dim, self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        inner = self.hidden_dim * (2 if self.feed_forward == "swiglu" else 1)
        norm = C * (2 if self.norm == "layer" else 1)
        matrices = C * (q_width + 2 * kv_width) + q_width * C + C * inner + self.hidden_dim * C
        biases = (q_width + 2 * kv_width) * self.qkv_bias + (C + inner + C) * self.bias
        embeddings = self.vocab_size * (1 if self.tied_head else 2)
        embeddings += self.context_length if self.position == "learned" else 0
        return embeddings * C + self.n_layers * (matrices + biases + 2 * norm) + norm

    @property
    def kv_cache_bytes_per_token(self) -> int:
        """Bytes per token of a float32 KV cache: a key and a value for each key-value head of each layer."""
        return 4 * 2 * self.n_layers * self.n_kv_heads * self.head_dim


class ModelParams(ArchitectureParams):
    """The `model` section: a size by name, or `custom` with its Shape under `custom:`."""

    size: Literal[SizeName, "custom"]
    custom: Shape | None = None  # absent unless size is custom

    @model_validator(mode="after")
    def _sizes_fit(self) -> "ModelParams":
        if (self.size == "custom") != (self.custom is not None):
            raise ValueError("size: custom needs a section custom: {n_layers, n_heads, emb_dim}, and only it does")
        shape = self.shape
        _check_pairs(self.position, shape.emb_dim, shape.head_dim or shape.emb_dim // shape.n_heads)
        return self

    @property
    def shape(self) -> Shape:
        return self.custom or SIZES[self.size]

    def config(self, vocab_size: int) -> GPTConfig:
        """The configuration of this model over a vocabulary of `vocab_size` tokens."""
        others = self.model_dump(exclude={"size", "custom"})
        return GPTConfig(vocab_size=vocab_size, **self.shape.model_dump(), **others)


def gpt2_config(size: SizeName, vocab_size: int, context_length: int) -> GPTConfig:
    """The configuration of an OpenAI GPT-2 checkpoint: biases everywhere, head tied, dropout off."""
    return GPTConfig(
        vocab_size=vocab_size, context_length=context_length, dropout=0.0, qkv_bias=True, tied_head=True,
        initialisation="gpt2", attention="sdpa", **SIZES[size].model_dump(),
    )  # fmt: skip


# Allal et al. 2025; the values of the files
SMOLLM2_135M = GPTConfig.model_validate(
    {
        "vocab_size": 49_152, "context_length": 8192, "n_layers": 30, "n_heads": 9, "emb_dim": 576, "n_kv_heads": 3,
        "position": "rope", "rope_base": 100_000.0, "norm": "rms", "feed_forward": "swiglu", "qkv_bias": False,
        "bias": False, "tied_head": True, "dropout": 0.0, "initialisation": "gpt2", "attention": "sdpa",
    }
)  # fmt: skip
SMOLLM2_360M = GPTConfig.model_validate(
    SMOLLM2_135M.model_dump()
    | {"n_layers": 32, "n_heads": 15, "emb_dim": 960, "n_kv_heads": 5, "head_dim": 64, "hidden_dim": 2560}
)
PRETRAINED = {"smollm2-135m": SMOLLM2_135M, "smollm2-360m": SMOLLM2_360M}


def published_config(size: SizeName) -> GPTConfig:
    """The configuration of the released checkpoint of a size; of `nano`, of the sample's."""
    if size == "nano":
        return gpt2_config(size, NANO_VOCAB_SIZE, NANO_CONTEXT_LENGTH)
    return gpt2_config(size, GPT2_VOCAB_SIZE, GPT2_CONTEXT_LENGTH)
