"""Cross-entropy and its gradient for a card: one kernel, which reads a row of logits from memory once.

Surprising: the kernel that torch's compiler makes of the same formula works on so many rows at a time that a row is no
longer in the card's cache when it is read again. This one has two rows for each of the card's processors.

Written in Triton, so it is imported only where that is. Each row is summed in one fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from scratchlm.data.tokenizer import IGNORE_INDEX

COLUMNS = tl.constexpr(8192)  # read at a time: 8 numbers by each of a program's threads
WARPS = 32
UNSCORED = tl.constexpr(IGNORE_INDEX)


@triton.jit
def _loss_and_gradient(logits_of_rows, targets, losses, gradients, n_columns, n_padded):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    logits, gradient = logits_of_rows + row * n_padded, gradients + row * n_padded
    target = tl.load(targets + row)
    largest = tl.full([COLUMNS], float("-inf"), tl.float32)
    summed = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, n_padded, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        z = tl.load(logits + columns, columns < n_columns, float("-inf")).to(tl.float32)
        larger = tl.maximum(largest, z)
        is_finite = larger > float("-inf")
        summed = tl.where(is_finite, summed * tl.exp(largest - larger) + tl.exp(z - larger), 0.0)
        largest = larger
    top = tl.max(largest, 0)
    total = tl.sum(summed * tl.exp(largest - top), 0)
    share = 1.0 / total
    is_scored = target != UNSCORED
    of_target = tl.load(logits + tl.where(is_scored, target, 0)).to(tl.float32)
    tl.store(losses + row, tl.where(is_scored, tl.log(total) + top - of_target, 0.0))
    for start in range(0, n_padded, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        z = tl.load(logits + columns, columns < n_columns, float("-inf")).to(tl.float32)
        found = tl.exp(z - top) * share - tl.where(columns == target, 1.0, 0.0)
        found = tl.where(is_scored, found, 0.0)
        tl.store(gradient + columns, found.to(gradients.dtype.element_ty), columns < n_padded)


def loss_and_gradient(logits: Tensor, targets: Tensor, n_columns: int) -> tuple[Tensor, Tensor]:
    """Losses in nats, and the gradient of their sum by the logits: (N, V), (N,) int64 -> (N,) float32, (N, V).

    n_columns: of the logits, those that count. A target of -100 has no loss.
    """
    losses = torch.empty(len(targets), dtype=torch.float32, device=logits.device)
    gradients = torch.empty_like(logits)
    _loss_and_gradient[(len(targets),)](logits, targets, losses, gradients, n_columns, logits.shape[1], num_warps=WARPS)
    return losses, gradients
