"""The arithmetic of a training step, and rates in FLOP, so that they compare with the peak of a machine."""

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.harness import Run
from scratchlm.model.config import GPTConfig


def flops_per_token(config: GPTConfig, window: int) -> int:
    """Floating point operations of matrix products, forward and backward, for each token of windows of `window`.

    Six per weight that multiplies tokens: the blocks' and the head's, not the embeddings, which are looked up. Plus
    12 L T C for attention over the whole window; a kernel that skips masked positions gets credit for them.
    Source: Chowdhery et al. 2022, appendix B.
    """
    blocks = 12 * config.n_layers * config.emb_dim**2
    head = config.vocab_size * config.emb_dim
    return 6 * (blocks + head) + 12 * config.n_layers * window * config.emb_dim


def in_gflop(setup: Callable[..., Run], options: Mapping[str, Any], per_token: int) -> Run:
    """Convert a contender's units from tokens to GFLOP, to compare it with matrix products."""
    run = setup(**options)
    return lambda: run() * per_token / 1e9


def in_tokens(setup: Callable[..., Run], options: Mapping[str, Any], per_token: int) -> Run:
    """Convert a contender's units from GFLOP to tokens, to compare matrix products with training."""
    run = setup(**options)
    return lambda: run() * 1e9 / per_token
