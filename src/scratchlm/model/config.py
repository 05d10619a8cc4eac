"""The shape of a GPT, and the published sizes."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

GPT2_VOCAB_SIZE = 50257
GPT2_CONTEXT_LENGTH = 1024
NANO_VOCAB_SIZE, NANO_CONTEXT_LENGTH = 1024, 256  # of the checkpoint in data/sample

SizeName = Literal["nano", "small", "124M", "355M", "774M", "1558M"]
Probability = Annotated[float, Field(ge=0, le=0.9)]
# Far above every published model: a configuration beyond them is a mistake, which would fail in hours or fill memory
MAX_VOCAB_SIZE, MAX_CONTEXT_LENGTH, MAX_LAYERS, MAX_HEADS, MAX_EMB_DIM = 10_000_000, 1_000_000, 1_000, 1_000, 100_000


class Strict(BaseModel):
    """Settings of a model: strictly typed, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ArchitectureParams(Strict):
    """The fields that the `model` section of params.yaml shares with a finished configuration."""

    context_length: Annotated[int, Field(ge=1, le=MAX_CONTEXT_LENGTH)]
    dropout: Probability
    qkv_bias: bool
    tied_head: bool
    initialisation: Literal["torch", "gpt2"]
    attention: Literal["eager", "sdpa"]


class Shape(Strict):
    """The numbers of a size: `custom` in params.yaml."""

    n_layers: Annotated[int, Field(ge=1, le=MAX_LAYERS)]
    n_heads: Annotated[int, Field(ge=1, le=MAX_HEADS)]
    emb_dim: Annotated[int, Field(ge=1, le=MAX_EMB_DIM)]

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "Shape":
        if self.emb_dim % self.n_heads:
            raise ValueError(
                f"emb_dim {self.emb_dim} cannot be split over {self.n_heads} heads; "
                "choose n_heads among the divisors of emb_dim"
            )
        return self


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
    """Everything that determines a GPTModel.

    initialisation: `torch` draws as torch's layers do, in the book's order; `gpt2` as OpenAI did
    (normal 0.02, residual projections scaled by depth). attention: `eager` computes scores, mask and
    softmax one by one; `sdpa` is torch's fused kernel for the same function, except where that is slower.
    """

    vocab_size: Annotated[int, Field(ge=1, le=MAX_VOCAB_SIZE)]

    @property
    def n_parameters(self) -> int:
        """The numbers in a GPTModel of this configuration; a tied head counts once."""
        C, n_embeddings = self.emb_dim, self.vocab_size * (1 if self.tied_head else 2) + self.context_length
        return n_embeddings * C + self.n_layers * (12 * C * C + (13 if self.qkv_bias else 10) * C) + 2 * C


class ModelParams(ArchitectureParams):
    """The `model` section: a size by name, or `custom` with its three numbers under `custom:`."""

    size: Literal[SizeName, "custom"]
    custom: Shape | None = None  # absent unless size is custom

    @model_validator(mode="after")
    def _custom_size_given(self) -> "ModelParams":
        if (self.size == "custom") != (self.custom is not None):
            raise ValueError("size: custom needs a section custom: {n_layers, n_heads, emb_dim}, and only it does")
        return self

    def config(self, vocab_size: int) -> GPTConfig:
        """The configuration of this model over a vocabulary of `vocab_size` tokens."""
        shape = self.custom or SIZES[self.size]
        return GPTConfig(vocab_size=vocab_size, **shape.model_dump(), **self.model_dump(exclude={"size", "custom"}))


def gpt2_config(size: SizeName, vocab_size: int, context_length: int) -> GPTConfig:
    """The configuration of an OpenAI GPT-2 checkpoint: biases everywhere, head tied, dropout off."""
    return GPTConfig(
        vocab_size=vocab_size, context_length=context_length, dropout=0.0, qkv_bias=True, tied_head=True,
        initialisation="gpt2", attention="sdpa", **SIZES[size].model_dump(),
    )  # fmt: skip


def published_config(size: SizeName) -> GPTConfig:
    """The configuration of the released checkpoint of a size; of `nano`, of the sample's."""
    if size == "nano":
        return gpt2_config(size, NANO_VOCAB_SIZE, NANO_CONTEXT_LENGTH)
    return gpt2_config(size, GPT2_VOCAB_SIZE, GPT2_CONTEXT_LENGTH)
