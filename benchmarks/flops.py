"""How much arithmetic training takes, and rates counted in it, so that they are shares of what a machine can do."""

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.harness import Run
from scratchlm.model.config import GPTConfig


def flops_per_token(config: GPTConfig, window: int) -> int:
    """Floating point operations of matrix products, forward and backward, for each token of windows of `window`.

    Six for each number in a matrix that tokens are multiplied with: the blocks' and the head's, not the embeddings
    that are looked up. And 12 L T C for attention, as if each position attended to its whole window: what a kernel
    saves by leaving out the future counts as done. Source: Chowdhery et al. 2022, appendix B.
    """
    blocks = 12 * config.n_layers * config.emb_dim**2
    head = config.vocab_size * config.emb_dim
    return 6 * (blocks + head) + 12 * config.n_layers * window * config.emb_dim


def in_gflop(setup: Callable[..., Run], options: Mapping[str, Any], per_token: int) -> Run:
    """A contender whose units are tokens, as one whose units are GFLOP: comparable with matrix products."""
    run = setup(**options)
    return lambda: run() * per_token / 1e9
