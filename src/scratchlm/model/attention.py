"""Attention, from weightless self-attention up to the multi-head form that the model uses.

The forms follow chapter 3 of the book. Tests check that each equals the next where their settings agree.
Letters: B batch, T time, C channels, H heads, K key-value heads, D head width, S cached positions.
"""

import math

import torch
from torch import Tensor, nn

from scratchlm.arithmetic.functions import dropout, matmul, repeat_heads, scaled_dot_product_attention, softmax
from scratchlm.arithmetic.layers import Linear
from scratchlm.arithmetic.mode import is_exact
from scratchlm.model.cache import LayerCache
from scratchlm.model.config import GPTConfig
from scratchlm.model.variants import Rotation

EAGER_UP_TO = 512  # tokens; up to here, eager attention is faster on the CPU than torch's fused kernel (LOG.md)


def self_attention(x: Tensor) -> Tensor:
    """Return, for each position, the average of all positions weighted by the softmax of their dot products.

    (…, T, C) -> (…, T, C).
    """
    weights = softmax(matmul(x, x.transpose(-2, -1)))  # (…, T, T)
    return matmul(weights, x)


def eager_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout_probability: float = 0.0
) -> Tensor:
    """softmax(q kᵀ / √D) v, step by step.

    query: (…, T, D); key, value: (…, S, D); mask: broadcastable to (…, T, S), True where visible.
    Returns (…, T, D). Source: Vaswani et al. 2017, equation 1.
    """
    # dividing the query scales T D numbers instead of T S
    scores = matmul(query / math.sqrt(query.shape[-1]), key.transpose(-2, -1))  # (…, T, S)
    if mask is not None:  # adding a small mask is faster than filling scores of all heads
        scores = scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, -torch.inf)
    weights = dropout(softmax(scores), dropout_probability)
    return matmul(weights, value)


def causal_mask(n_positions: int, device: torch.device) -> Tensor:
    """(T, T) bool, True where the column is not in the row's future."""
    return torch.ones(n_positions, n_positions, dtype=torch.bool, device=device).tril()


class SelfAttention(nn.Module):
    """Scaled dot-product attention: (B, T, C_in) -> (B, T, C_out). Source: Vaswani et al. 2017, section 3.2.1."""

    def __init__(self, emb_in: int, emb_out: int, qkv_bias: bool = False) -> None:
        super().__init__()
        self.query = Linear(emb_in, emb_out, bias=qkv_bias)
        self.key = Linear(emb_in, emb_out, bias=qkv_bias)
        self.value = Linear(emb_in, emb_out, bias=qkv_bias)

    def forward(self, x: Tensor) -> Tensor:
        return eager_attention(self.query(x), self.key(x), self.value(x))


class CausalAttention(SelfAttention):
    """SelfAttention where a position sees only itself and the past, with dropout: (B, T, C_in) -> (B, T, C_out)."""

    def __init__(self, emb_in: int, emb_out: int, dropout: float, qkv_bias: bool = False) -> None:
        super().__init__(emb_in, emb_out, qkv_bias)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        mask = causal_mask(x.shape[-2], x.device)
        probability = self.dropout if self.training else 0.0
        return eager_attention(self.query(x), self.key(x), self.value(x), mask, probability)


class MultiHeadAttentionWrapper(nn.Module):
    """Several CausalAttention heads side by side, their outputs concatenated: (B, T, C_in) -> (B, T, H * C_out)."""

    def __init__(self, emb_in: int, emb_out: int, dropout: float, n_heads: int, qkv_bias: bool = False) -> None:
        super().__init__()
        self.heads = nn.ModuleList(CausalAttention(emb_in, emb_out, dropout, qkv_bias) for _ in range(n_heads))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([head(x) for head in self.heads], dim=-1)


class MultiHeadAttention(nn.Module):
    """Causal attention of H heads over slices of one projection: the form that the model uses.

    forward: (B, T, C) -> (B, T, C). Query, key and value are one fused matrix product; their weights
    are drawn as three separate layers, in the book's order, so that a seed gives the published values.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.dropout, self.implementation, self.head_dim = config.dropout, config.attention, config.head_dim
        self.n_heads, self.n_kv_heads = config.n_heads, config.n_kv_heads
        width, kv_width = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        parts = (width, kv_width, kv_width)  # query, key, value: initialised as three layers, computed as one
        self.qkv = Linear(config.emb_dim, sum(parts), config.qkv_bias, parts=parts)
        self.projection = Linear(width, config.emb_dim, config.bias)
        rope = (config.context_length, self.head_dim, config.rope_base, config.rope_scaling)
        self.rotation = Rotation(*rope) if config.position == "rope" else None

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C); position t sees 0..t, with a cache also the tokens before."""
        query, key, value = self.split_heads(self.qkv(x), None if cache is None else cache.positions)
        mask = None
        if cache is not None:
            key, value, mask = cache.extend(key, value)
        return self.projection(self.attend(query, key, value, mask))

    def split_heads(self, qkv: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, (H + 2 K) D) -> query, (B, H, T, D), key and value, (B, K, T, D) each.

        positions: (B, T), or 0..T-1; only for rope.
        """
        heads = qkv.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, H + 2 K, T, D)
        query_and_key, value = heads.split([self.n_heads + self.n_kv_heads, self.n_kv_heads], dim=1)
        if self.rotation is not None:  # of both in one call, which is faster
            positions = torch.arange(qkv.shape[1], device=qkv.device) if positions is None else positions
            query_and_key = self.rotation(query_and_key, positions)
        query, key = query_and_key.split([self.n_heads, self.n_kv_heads], dim=1)
        return query, key, value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, H, T, D) queries on (B, K, S, D) keys and values -> (B, T, H D); causal without a mask.

        With K < H, each key and value is shared by H / K query heads (Ainslie et al. 2023); with K = H this is the
        book's attention.
        """
        B, H, T, D = query.shape
        group = H // self.n_kv_heads
        if group > 1 and T == 1 and mask is not None:  # a group's heads as queries of their shared head: no copies
            query = query.reshape(B, self.n_kv_heads, group, D)
        elif group > 1:
            key, value = repeat_heads(key, group), repeat_heads(value, group)
        S = key.shape[2]
        probability = self.dropout if self.training else 0.0
        short = query.device.type == "cpu" and T * S <= EAGER_UP_TO**2
        if not is_exact() and (short or self.implementation == "eager"):  # precision exact has one implementation
            mask = causal_mask(T, query.device) if mask is None else mask
            context = eager_attention(query, key, value, mask, probability)
        else:
            context = scaled_dot_product_attention(query, key, value, mask, probability, causal=mask is None)
        return context.reshape(-1, H, T, D).transpose(1, 2).flatten(2)  # (B, H, T, D) -> (B, T, H, D) -> (B, T, H D)
