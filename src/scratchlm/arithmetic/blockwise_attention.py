"""Causal attention for compiled bfloat16 on CUDA, with a deterministic backward pass.

Surprising: torch's flash attention adds gradients of queries in the order in which blocks end. Its deterministic form
gives each head to one processor of the card, so that with 16 windows of 12 heads a third of the 132 are idle. In
flex_attention, which torch's compiler writes for a given mask, each block of queries sums its own gradient.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

BLOCK = 128  # positions
HEAD_DIMS = (64, 128)
# Tile sizes, warps and stages for heads of 64, tuned on an H100 (LOG.md); for other heads, torch chooses
TILES = {
    64: {"fwd_BLOCK_M": 64, "fwd_BLOCK_N": 64, "fwd_num_warps": 4, "fwd_num_stages": 3}
    | {"bwd_BLOCK_M1": 32, "bwd_BLOCK_N1": 64, "bwd_BLOCK_M2": 64, "bwd_BLOCK_N2": 32}
    | {"bwd_num_warps": 4, "bwd_num_stages": 3}
}


def can_be_blockwise(query: Tensor) -> bool:
    """Whether blockwise_attention takes (B, H, T, D) queries."""
    T, D = query.shape[-2:]
    in_program = torch.compiler.is_compiling() and query.device.type == "cuda" and query.dtype == torch.bfloat16
    return in_program and T % BLOCK == 0 and D in HEAD_DIMS


def blockwise_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Position t sees 0..t: (B, H, T, D) each -> (B, H, T, D)."""
    from torch.nn.attention.flex_attention import flex_attention  # half a second

    T, D = query.shape[-2:]
    options: Any = TILES.get(D)
    return flex_attention(query, key, value, block_mask=causal_blocks(T, query.device), kernel_options=options)


@cache
def causal_blocks(n_positions: int, device: torch.device) -> Any:
    """A BlockMask: which blocks of keys each block of queries sees."""
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(_is_visible, None, None, n_positions, n_positions, device, BLOCK_SIZE=BLOCK)


def _is_visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key
