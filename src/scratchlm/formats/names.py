"""One table of tensor names for all formats: ours, OpenAI's, Hugging Face's and GGUF's.

Sources: github.com/openai/gpt-2, src/model.py; transformers, models/gpt2; llama.cpp, architecture `gpt2`.
"""

from collections.abc import Iterator
from typing import NamedTuple

from scratchlm.model.config import GPTConfig
from scratchlm.run.errors import UserError


class TensorName(NamedTuple):
    """One tensor under its name in each format.

    linear: it is the weight of a linear layer. Ours and GGUF's have the shape (C_out, C_in), Hugging Face's (Conv1D)
    (C_in, C_out), OpenAI's (convolutions of width one) (1, C_in, C_out). Other tensors have one shape everywhere.
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


def check_gpt2(config: GPTConfig) -> None:
    """Raise UserError unless the model is built like GPT-2, which other formats can then hold."""
    kind = (config.position, config.norm, config.feed_forward, config.bias)
    widths = (config.n_kv_heads, config.n_heads * config.head_dim, config.hidden_dim)
    if kind != ("learned", "layer", "gelu", True) or widths != (config.n_heads, config.emb_dim, 4 * config.emb_dim):
        raise UserError(
            "only models that are built like GPT-2 can be exported: position learned, norm layer, feed_forward gelu, "
            "bias true, and no widths of their own"
        )


def tensor_names(n_layers: int) -> Iterator[TensorName]:
    """Yield every tensor of a GPT-2 with a tied head, once."""
    yield from _MODEL
    for i in range(n_layers):
        for ours, openai, huggingface, gguf, linear in _BLOCK:
            yield TensorName(
                f"blocks.{i}.{ours}", f"model/h{i}/{openai}", f"h.{i}.{huggingface}", f"blk.{i}.{gguf}", linear
            )
