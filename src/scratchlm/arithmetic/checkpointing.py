"""Activation checkpointing: compute activations a second time in the backward pass instead of keeping them.

Source: Chen et al. 2016. Surprising: the second pass is the first to the bit, dropout included. torch restores its
random streams and autocast; the state of the exact arithmetic's draws is restored here.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from scratchlm.arithmetic.mode import is_exact
from scratchlm.arithmetic.sequences import forward_state, in_state


def checkpointed(function: Callable[[Tensor], Tensor], x: Tensor, draws: bool) -> Tensor:
    """function(x), of which only x is kept for the backward pass. draws: whether it may draw from torch's streams."""
    if not is_exact():
        return checkpoint(function, x, use_reentrant=False, preserve_rng_state=draws)
    state = forward_state()

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), in_state(state)

    return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
