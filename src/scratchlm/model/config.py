"""The shape of a GPT, and the published sizes."""

from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Size(NamedTuple):
    """A named size."""

    n_layers: int
    n_heads: int
    emb_dim: int


SIZES = {
    "nano": Size(3, 4, 128),
    "small": Size(6, 8, 256),
    # Radford et al. 2019, table 2, under the parameter counts of OpenAI's released checkpoints
    "124M": Size(12, 12, 768),
    "355M": Size(24, 16, 1024),
    "774M": Size(36, 20, 1280),
    "1558M": Size(48, 25, 1600),
}
GPT2_VOCAB_SIZE = 50257
GPT2_CONTEXT_LENGTH = 1024
NANO_VOCAB_SIZE, NANO_CONTEXT_LENGTH = 1024, 256  # of the checkpoint in data/sample

_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True)
SizeName = Literal["nano", "small", "124M", "355M", "774M", "1558M"]
Positive = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]


class ArchitectureParams(BaseModel):
    """The fields that the `model` section of params.yaml shares with a finished configuration."""

    model_config = _STRICT

    context_length: Positive
    dropout: Probability
    qkv_bias: bool
    tied_head: bool
    initialisation: Literal["torch", "gpt2"]
    attention: Literal["eager", "sdpa"]


class Shape(BaseModel):
    """The numbers of a size: `custom` in params.yaml."""

    model_config = _STRICT

    n_layers: Positive
    n_heads: Positive
    emb_dim: Positive

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "Shape":
        if self.emb_dim % self.n_heads:
            raise ValueError(
                f"emb_dim {self.emb_dim} cannot be split over {self.n_heads} heads; "
                "choose n_heads among the divisors of emb_dim"
            )
        return self


class GPTConfig(ArchitectureParams, Shape):
    """Everything that determines a GPTModel.

    initialisation: `torch` draws as torch's layers do, in the book's order; `gpt2` as OpenAI did
    (normal 0.02, residual projections scaled by depth). attention: `eager` computes scores, mask and
    softmax one by one; `sdpa` is torch's fused kernel for the same function, except where that is slower.
    """

    vocab_size: Positive


class ModelParams(ArchitectureParams):
    """The `model` section: a size by name, or `custom` with its three numbers under `custom:`."""

    size: Literal["nano", "small", "124M", "355M", "774M", "1558M", "custom"]
    custom: Shape | None = None  # absent unless size is custom

    @model_validator(mode="after")
    def _custom_size_given(self) -> "ModelParams":
        if (self.size == "custom") != (self.custom is not None):
            raise ValueError("size: custom needs a section custom: {n_layers, n_heads, emb_dim}, and only it does")
        return self

    def config(self, vocab_size: int) -> GPTConfig:
        """The configuration of this model over a vocabulary of `vocab_size` tokens."""
        size = Size(**self.custom.model_dump()) if self.custom else SIZES[self.size]
        shared = self.model_dump(include=set(ArchitectureParams.model_fields))
        return GPTConfig(vocab_size=vocab_size, **size._asdict(), **shared)


def gpt2_config(size: SizeName, vocab_size: int, context_length: int) -> GPTConfig:
    """The configuration of an OpenAI GPT-2 checkpoint: biases everywhere, head tied, dropout off."""
    return GPTConfig(
        vocab_size=vocab_size,
        context_length=context_length,
        dropout=0.0,
        qkv_bias=True,
        tied_head=True,
        initialisation="gpt2",
        attention="sdpa",
        **SIZES[size]._asdict(),
    )


def published_config(size: SizeName) -> GPTConfig:
    """The configuration of the released checkpoint of a size; of `nano`, of the sample's."""
    if size == "nano":
        return gpt2_config(size, NANO_VOCAB_SIZE, NANO_CONTEXT_LENGTH)
    return gpt2_config(size, GPT2_VOCAB_SIZE, GPT2_CONTEXT_LENGTH)
