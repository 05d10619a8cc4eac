"""Rows of different lengths without their padding, and the last block only at the token that is read.

Surprising: everything but attention treats each position on its own, so B rows can follow each other as one (N, C)
matrix, N real tokens in all. Only attention needs (B, T) rows, which are padded for it and unpadded after it. Where
nothing but each row's last token is read, the last block computes keys and values of all tokens and the rest at one.

Pays by how much the rows differ in length: a training step (`small`, float32, two threads) on 8 messages, padded from
39 tokens on average to 95, is 2.2 times as fast, one on 8 instructions 1.06 times. The functions walk the textbook
blocks by their own submodules and give what GPTModel.hidden_states gives (tests/unit/fast/test_varlen.py).
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from scratchlm.arithmetic.sequences import rows_of
from scratchlm.model.attention import MultiHeadAttention
from scratchlm.model.cache import KVCache, LayerCache
from scratchlm.model.gpt import GPTModel, TransformerBlock


class VarlenLayout:
    """The positions of the tokens of B rows that follow each other without padding: N tokens in all."""

    def __init__(self, lengths: Tensor) -> None:
        """lengths: (B,) int64, at least one of them positive."""
        self.lengths = lengths
        self.max_seqlen = int(lengths.max())
        self.cu_seqlens = pad(lengths.cumsum(0), (1, 0))  # (B + 1,): row b is tokens cu_seqlens[b] to cu_seqlens[b + 1]
        columns = torch.arange(self.max_seqlen, device=lengths.device)
        self.indices = (columns < lengths[:, None]).flatten().nonzero().squeeze(1)  # (N,) in B * max_seqlen, ascending
        self.positions = self.indices % self.max_seqlen  # (N,) of each token in its row
        self._has_no_padding = len(self.indices) == len(lengths) * self.max_seqlen

    def unpad(self, padded: Tensor) -> Tensor:
        """(B, T, …) with T at least max_seqlen, padded at the end -> (N, …)."""
        flat = padded[:, : self.max_seqlen].flatten(0, 1)
        return flat if self._has_no_padding else flat.index_select(0, self.indices)

    def pad(self, tokens: Tensor) -> Tensor:
        """(N, …) -> (B, max_seqlen, …), zero after each row's end."""
        shape = (len(self.lengths) * self.max_seqlen, *tokens.shape[1:])
        flat = tokens if self._has_no_padding else tokens.new_zeros(shape).index_copy(0, self.indices, tokens)
        return flat.unflatten(0, (len(self.lengths), self.max_seqlen))


def varlen_states(model: GPTModel, token_ids: Tensor, layout: VarlenLayout) -> Tensor:
    """GPTModel.hidden_states without padding: (N,) int64 -> (N, C)."""
    x = run_blocks(model, embed(model, token_ids, layout), layout, 0, len(model.blocks))
    return normalise(model, x, layout)


def last_token_states(
    model: GPTModel, x: Tensor, layout: VarlenLayout, n_blocks: int = 0, cache: KVCache | None = None
) -> Tensor:
    """GPTModel.hidden_states at each row's last token: (N, C) -> (B, C).

    x: what `embed` and the first `n_blocks` blocks gave. cache: an empty one is filled by the other blocks. The last
    block's activations are kept in any case: the backward pass starts with them, so to recompute them saves nothing.
    """
    last = len(model.blocks) - 1
    if n_blocks > last:
        return model.final_norm(x[layout.cu_seqlens[1:] - 1])
    x = run_blocks(model, x, layout, n_blocks, last, cache)
    block: TransformerBlock = model.blocks[last]  # type: ignore[assignment]
    attention: MultiHeadAttention = block.attention
    with rows_of(layout.cu_seqlens):
        query, key, value = _heads(block, x, layout, cache.layers[last] if cache else None)
    ends = layout.lengths - 1  # (B,)
    query = query[torch.arange(len(ends), device=x.device), :, ends, None]  # (B, H, 1, D)
    visible = torch.arange(layout.max_seqlen, device=x.device) <= ends[:, None]  # (B, T)
    context = attention.attend(query, key, value, visible[:, None, None]).squeeze(1)  # (B, C)
    x = x[layout.cu_seqlens[1:] - 1] + block.dropout(attention.projection(context))
    return model.final_norm(x + block.dropout(block.feed_forward(block.norm2(x))))


def embed(model: GPTModel, token_ids: Tensor, layout: VarlenLayout) -> Tensor:
    """GPTModel.embed without padding: (N,) int64 -> (N, C). Raises ValueError for a row longer than the context."""
    model.check_length(layout.max_seqlen)
    with rows_of(layout.cu_seqlens):
        return model.embed(token_ids, layout.positions)


def normalise(model: GPTModel, x: Tensor, layout: VarlenLayout) -> Tensor:
    """The final norm: (N, C) -> (N, C)."""
    with rows_of(layout.cu_seqlens):
        return model.final_norm(x)


def run_blocks(
    model: GPTModel, x: Tensor, layout: VarlenLayout, first: int, end: int, cache: KVCache | None = None
) -> Tensor:
    """Blocks `first` to `end` - 1 without padding: (N, C) -> (N, C). An empty cache is filled by them."""
    with rows_of(layout.cu_seqlens):
        for index in range(first, end):
            layer = cache.layers[index] if cache else None
            x = model.run_block(partial(_block, model.blocks[index], layout, layer), x)  # type: ignore[arg-type]
    return x


def _block(block: TransformerBlock, layout: VarlenLayout, cache: LayerCache | None, x: Tensor) -> Tensor:
    """TransformerBlock.forward without padding: (N, C) -> (N, C)."""
    query, key, value = _heads(block, x, layout, cache)
    context = block.attention.attend(query, key, value)
    x = x + block.dropout(block.attention.projection(layout.unpad(context)))
    return x + block.dropout(block.feed_forward(block.norm2(x)))


def _heads(block: TransformerBlock, x: Tensor, layout: VarlenLayout, cache: LayerCache | None) -> tuple[Tensor, ...]:
    """Query, (B, H, T, D), key and value, (B, K, T, D) each; an empty cache takes the latter two."""
    qkv = block.attention.qkv(block.norm1(x))
    query, key, value = block.attention.split_heads(layout.pad(qkv))
    if cache is not None:
        cache.keys, cache.values = key.contiguous(), value.contiguous()
    return query, key, value
