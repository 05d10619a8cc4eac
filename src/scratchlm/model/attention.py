"""Attention, from weightless self-attention up to the multi-head form that the model uses.

The ladder follows chapter 3 of the book; each rung equals the next where they coincide (tests).
Letters: B batch, T time, C channels, H heads, D head width, S cached positions.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scratchlm.model.packing import Packing

SHORT = 512  # tokens up to which torch's fused kernel is the slower form on the CPU


def self_attention(x: Tensor) -> Tensor:
    """Each position as the average of all, weighted by the softmax of dot products. (…, T, C) -> (…, T, C)."""
    weights = (x @ x.transpose(-2, -1)).softmax(dim=-1)  # (…, T, T)
    return weights @ x


class SelfAttention(nn.Module):
    """Scaled dot-product attention with trainable query, key and value projections.

    forward: (B, T, C_in) -> (B, T, C_out). Source: Vaswani et al. 2017, section 3.2.1.
    """

    def __init__(self, emb_in: int, emb_out: int, qkv_bias: bool = False) -> None:
        super().__init__()
        self.query = nn.Linear(emb_in, emb_out, bias=qkv_bias)
        self.key = nn.Linear(emb_in, emb_out, bias=qkv_bias)
        self.value = nn.Linear(emb_in, emb_out, bias=qkv_bias)

    def forward(self, x: Tensor) -> Tensor:
        return explicit_attention(self.query(x), self.key(x), self.value(x))


class CausalAttention(nn.Module):
    """SelfAttention in which a position sees only itself and what came before; dropout on the weights.

    forward: (B, T, C_in) -> (B, T, C_out).
    """

    def __init__(self, emb_in: int, emb_out: int, dropout: float, qkv_bias: bool = False) -> None:
        super().__init__()
        self.query = nn.Linear(emb_in, emb_out, bias=qkv_bias)
        self.key = nn.Linear(emb_in, emb_out, bias=qkv_bias)
        self.value = nn.Linear(emb_in, emb_out, bias=qkv_bias)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        mask = causal_mask(x.shape[-2], x.device)
        dropout = self.dropout if self.training else 0.0
        return explicit_attention(self.query(x), self.key(x), self.value(x), mask, dropout)


class MultiHeadAttentionWrapper(nn.Module):
    """Several CausalAttention heads side by side, their outputs concatenated.

    forward: (B, T, C_in) -> (B, T, H * C_out).
    """

    def __init__(self, emb_in: int, emb_out: int, dropout: float, n_heads: int, qkv_bias: bool = False) -> None:
        super().__init__()
        self.heads = nn.ModuleList(CausalAttention(emb_in, emb_out, dropout, qkv_bias) for _ in range(n_heads))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([head(x) for head in self.heads], dim=-1)


class LayerCache:
    """Keys and values of one layer for the tokens seen so far; every row has its own length.

    Slot p of row b holds the token at position p, so a key is visible to a query at position q
    exactly if p <= q, and what padding wrote behind a row's end is overwritten before it is seen.
    All slots are attended to, the masked ones too: kernels would copy a part of them before they multiply.
    """

    keys: Tensor  # (B, H, S, D), like values
    values: Tensor

    def fill(self, keys: Tensor, values: Tensor) -> None:
        """Begin with (B, H, S, D) of the first S positions."""
        self.keys, self.values = keys.contiguous(), values.contiguous()

    def extend(self, keys: Tensor, values: Tensor, positions: Tensor, n_slots: int) -> None:
        """Store (B, H, T, D) at `positions` (B, T), all of them below `n_slots`, the number of slots from now on."""
        more = n_slots - self.keys.shape[2]
        if more:
            self.keys, self.values = F.pad(self.keys, (0, 0, 0, more)), F.pad(self.values, (0, 0, 0, more))
        rows = torch.arange(len(positions), device=positions.device)[:, None]  # (B, 1)
        self.keys[rows, :, positions] = keys.transpose(1, 2)
        self.values[rows, :, positions] = values.transpose(1, 2)


class MultiHeadAttention(nn.Module):
    """Causal attention of H heads over slices of one projection: the form the model uses.

    forward: (B, T, C) -> (B, T, C). Query, key and value are one fused matrix product; their weights
    are drawn as three separate layers, in the book's order, so that a seed gives the published values.
    """

    def __init__(
        self,
        emb_dim: int,
        n_heads: int,
        dropout: float,
        qkv_bias: bool,
        implementation: Literal["explicit", "sdpa"],
    ) -> None:
        super().__init__()
        assert emb_dim % n_heads == 0
        self.n_heads, self.dropout, self.implementation = n_heads, dropout, implementation
        parts = [nn.Linear(emb_dim, emb_dim, bias=qkv_bias) for _ in range(3)]
        with torch.random.fork_rng(devices=[]):  # the fused layer's own draw is overwritten: it must not count
            self.qkv = nn.Linear(emb_dim, 3 * emb_dim, bias=qkv_bias)
        with torch.no_grad():  # not by torch.cat: on the meta device that imports torch's compiler, for a second
            for third, part in zip(self.qkv.weight.chunk(3), parts, strict=True):
                third.copy_(part.weight)
            if qkv_bias:
                for third, part in zip(self.qkv.bias.chunk(3), parts, strict=True):
                    third.copy_(part.bias)
        self.projection = nn.Linear(emb_dim, emb_dim)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
        positions: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """x: (B, T, C); without mask, position t sees 0..t.

        With a cache: positions (B, T) of the new tokens, and mask (B, 1, T, S) bool, True where visible; without
        these, the tokens are each row's first. With a packing: x is (N, C), and so is what is returned.
        """
        query, key, value = self._heads(x, packing, cache if positions is None else None)  # (B, H, T, D) each
        if cache is not None and positions is not None:
            assert mask is not None
            cache.extend(key, value, positions, mask.shape[-1])
            key, value = cache.keys, cache.values
        context = self._attend(query, key, value, mask)
        context = context.transpose(1, 2).flatten(2)  # (B, H, T, D) -> (B, T, C)
        return self.projection(context if packing is None else packing.pack(context))

    def read(self, x: Tensor, packing: Packing, columns: Tensor, cache: LayerCache | None = None) -> Tensor:
        """What `forward` gives at one position of each sequence: (N, C), columns (B,) int64 -> (B, C)."""
        query, key, value = self._heads(x, packing, cache)
        query = query[torch.arange(len(columns), device=x.device), :, columns, None]  # (B, H, 1, D)
        visible = torch.arange(packing.width, device=x.device) <= columns[:, None]  # (B, T)
        return self.projection(self._attend(query, key, value, visible[:, None, None]).flatten(1))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """(B, H, T, D) queries on (B, H, S, D) keys and values -> (B, H, T, D); causal without a mask."""
        T, S = query.shape[2], key.shape[2]
        dropout = self.dropout if self.training else 0.0
        if self.implementation == "explicit" or (query.device.type == "cpu" and T * S <= SHORT**2):
            mask = causal_mask(T, query.device) if mask is None else mask
            return explicit_attention(query, key, value, mask, dropout)
        return F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=mask is None)

    def _heads(self, x: Tensor, packing: Packing | None, cache: LayerCache | None) -> tuple[Tensor, ...]:
        """Query, key and value, (B, H, T, D) each, the latter two kept in an empty cache."""
        qkv = self.qkv(x)
        if packing is not None:
            qkv = packing.pad(qkv)
        query, key, value = qkv.unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if cache is not None:
            cache.fill(key, value)
        return query, key, value


def explicit_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """softmax(q kᵀ / √D) v, written out.

    query: (…, T, D); key, value: (…, S, D); mask: broadcastable to (…, T, S), True where visible.
    Returns (…, T, D). Source: Vaswani et al. 2017, equation 1.
    """
    scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-2, -1)  # (…, T, S)
    if mask is not None:
        scores = scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, -torch.inf)
    weights = F.dropout(scores.softmax(dim=-1), dropout)
    return weights @ value


def causal_mask(n_positions: int, device: torch.device) -> Tensor:
    """(T, T) bool, True where the column is not in the row's future."""
    return torch.ones(n_positions, n_positions, dtype=torch.bool, device=device).tril()
