"""One table of tensor names for all formats, for GPT-2, Llama and Qwen2: ours, OpenAI's, Hugging Face's and GGUF's.

Sources: github.com/openai/gpt-2, src/model.py; transformers, models/gpt2, llama and qwen2; llama.cpp, architectures
`gpt2`, `llama` and `qwen2`.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from scratchlm.model.config import GPTConfig
from scratchlm.run.errors import UserError


class TensorName(NamedTuple):
    """One tensor under its name in each format. `a.{b,c}`: it is the tensors a.b and a.c there, one below the other.

    linear: it is the weight of a linear layer of GPT-2. Ours and GGUF's have the shape (C_out, C_in), Hugging Face's
    (Conv1D) (C_in, C_out), OpenAI's (convolutions of width one) (1, C_in, C_out). Other tensors have one shape
    everywhere.
    """

    ours: str
    openai: str
    huggingface: str
    gguf: str
    linear: bool = False


EMBEDDING = TensorName("token_embedding.weight", "model/wte", "wte.weight", "token_embd.weight")
_MODEL = (
    EMBEDDING,
    TensorName("position_embedding.weight", "model/wpe", "wpe.weight", "position_embd.weight"),
    TensorName("final_norm.scale", "model/ln_f/g", "ln_f.weight", "output_norm.weight"),
    TensorName("final_norm.shift", "model/ln_f/b", "ln_f.bias", "output_norm.bias"),
)
# fmt: off
_BLOCK = (
    TensorName("norm1.scale", "ln_1/g", "ln_1.weight", "attn_norm.weight"),
    TensorName("norm1.shift", "ln_1/b", "ln_1.bias", "attn_norm.bias"),
    TensorName("attention.qkv.weight", "attn/c_attn/w", "attn.c_attn.weight", "attn_qkv.weight", linear=True),
    TensorName("attention.qkv.bias", "attn/c_attn/b", "attn.c_attn.bias", "attn_qkv.bias"),
    TensorName("attention.projection.weight", "attn/c_proj/w", "attn.c_proj.weight", "attn_output.weight", linear=True),
    TensorName("attention.projection.bias", "attn/c_proj/b", "attn.c_proj.bias", "attn_output.bias"),
    TensorName("norm2.scale", "ln_2/g", "ln_2.weight", "ffn_norm.weight"),
    TensorName("norm2.shift", "ln_2/b", "ln_2.bias", "ffn_norm.bias"),
    TensorName("feed_forward.expansion.weight", "mlp/c_fc/w", "mlp.c_fc.weight", "ffn_up.weight", linear=True),
    TensorName("feed_forward.expansion.bias", "mlp/c_fc/b", "mlp.c_fc.bias", "ffn_up.bias"),
    TensorName("feed_forward.projection.weight", "mlp/c_proj/w", "mlp.c_proj.weight", "ffn_down.weight", linear=True),
    TensorName("feed_forward.projection.bias", "mlp/c_proj/b", "mlp.c_proj.bias", "ffn_down.bias"),
)
# fmt: on
HEAD = TensorName("head.weight", "", "lm_head.weight", "output.weight")  # stored only if it is not tied


_LLAMA_MODEL = (
    TensorName("token_embedding.weight", "", "embed_tokens.weight", "token_embd.weight"),
    TensorName("final_norm.scale", "", "norm.weight", "output_norm.weight"),
)
_LLAMA_BLOCK = (
    TensorName("norm1.scale", "", "input_layernorm.weight", "attn_norm.weight"),
    TensorName("attention.qkv.weight", "", "self_attn.{q,k,v}_proj.weight", "attn_{q,k,v}.weight"),
    TensorName("attention.qkv.bias", "", "self_attn.{q,k,v}_proj.bias", "attn_{q,k,v}.bias"),  # of Qwen2 alone
    TensorName("attention.projection.weight", "", "self_attn.o_proj.weight", "attn_output.weight"),
    TensorName("norm2.scale", "", "post_attention_layernorm.weight", "ffn_norm.weight"),
    TensorName("feed_forward.expansion.weight", "", "mlp.{gate,up}_proj.weight", "ffn_{gate,up}.weight"),
    TensorName("feed_forward.projection.weight", "", "mlp.down_proj.weight", "ffn_down.weight"),
)


Architecture = Literal["gpt2", "llama", "qwen2"]
WEIGHT_PREFIXES = {"gpt2": "transformer.", "llama": "model.", "qwen2": "model."}  # in transformers, of all but the head
# What every Llama has, as fields of GPTConfig; Qwen2 has qkv_bias
LLAMA = {
    "position": "rope", "norm": "rms", "feed_forward": "swiglu", "qkv_bias": False, "bias": False, "dropout": 0.0,
    "initialisation": "gpt2", "attention": "sdpa",
}  # fmt: skip


def architecture(config: GPTConfig) -> Architecture:
    """Return which architecture of other formats has these parts. Raises UserError if none has."""
    parts = (config.position, config.norm, config.feed_forward)
    widths = (config.n_kv_heads, config.n_heads * config.head_dim, config.hidden_dim)
    if parts == ("learned", "layer", "gelu") and config.bias:
        if widths == (config.n_heads, config.emb_dim, 4 * config.emb_dim):
            return "gpt2"
    elif parts == ("rope", "rms", "swiglu") and not config.bias:
        return "qwen2" if config.qkv_bias else "llama"
    raise UserError(
        f"no other format holds a model of position {config.position}, norm {config.norm}, feed_forward "
        f"{config.feed_forward}, bias {str(config.bias).lower()} and these widths; only models built like GPT-2 "
        "(learned, layer, gelu, bias true, no custom widths), Llama or Qwen2 (rope, rms, swiglu, bias false) can be "
        "exported"
    )


def names_of(config: GPTConfig) -> Iterator[TensorName]:
    """Yield every tensor of a model, once. Raises UserError as `architecture`."""
    if architecture(config) == "gpt2":
        yield from tensor_names(config.n_layers)
    else:
        yield from _LLAMA_MODEL
        block = [name for name in _LLAMA_BLOCK if config.qkv_bias or not name.ours.endswith("bias")]
        yield from _blocks(block, config.n_layers, "", "layers")
    if not config.tied_head:
        yield HEAD


def tensor_names(n_layers: int) -> Iterator[TensorName]:
    """Yield every tensor of a GPT-2 with a tied head, once."""
    yield from _MODEL
    yield from _blocks(_BLOCK, n_layers, "model/h", "h")


def _blocks(block: Sequence[TensorName], n_layers: int, openai: str, huggingface: str) -> Iterator[TensorName]:
    for i in range(n_layers):
        for name in block:
            yield TensorName(
                f"blocks.{i}.{name.ours}", f"{openai}{i}/{name.openai}", f"{huggingface}.{i}.{name.huggingface}",
                f"blk.{i}.{name.gguf}", name.linear,
            )  # fmt: skip


def parts_of(name: str) -> list[str]:
    """Return the names that a name with braces stands for."""
    if not (braces := re.search("{(.*)}", name)):
        return [name]
    return [name[: braces.start()] + part + name[braces.end() :] for part in braces[1].split(",")]
