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
LOG2_E = tl.constexpr(1.4426950408889634)
UNSCORED = tl.constexpr(IGNORE_INDEX)


@triton.jit
def _loss_and_gradient(logits_of_rows, targets, losses, gradients, n_columns, n_padded):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    logits, gradient = logits_of_rows + row * n_padded, gradients + row * n_padded
    target = tl.load(targets + row)
    is_scored = target != UNSCORED
    # Powers of two, which the card has an instruction for: z is in units of log 2 from here on
    top = tl.max(tl.full([COLUMNS], float("-inf"), tl.float32), 0)
    summed = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, n_padded, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        z = tl.load(logits + columns, columns < n_columns, float("-inf")).to(tl.float32) * LOG2_E
        larger = tl.maximum(top, tl.max(z, 0))
        summed = summed * tl.exp2(top - larger) + tl.exp2(z - larger)
        top = larger
    total = tl.sum(summed, 0)
    of_target = tl.load(logits + tl.where(is_scored, target, 0)).to(tl.float32)
    tl.store(losses + row, tl.where(is_scored, (tl.log2(total) + top) / LOG2_E - of_target, 0.0))
    share, target = tl.where(is_scored, 1.0 / total, 0.0), tl.where(is_scored, target, -1)
    for start in range(0, n_padded, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        z = tl.load(logits + columns, columns < n_columns, float("-inf")).to(tl.float32) * LOG2_E
        found = tl.exp2(z - top) * share - tl.where(columns == target, 1.0, 0.0)
        tl.store(gradient + columns, found.to(gradients.dtype.element_ty), columns < n_padded)


def loss_and_gradient(logits: Tensor, targets: Tensor, n_columns: int) -> tuple[Tensor, Tensor]:
    """Losses in nats, and the gradient of their sum by the logits: (N, V), (N,) int64 -> (N,) float32, (N, V).

    n_columns: of the logits, those that count. A target of -100 has no loss.
    """
    losses = torch.empty(len(targets), dtype=torch.float32, device=logits.device)
    gradients = torch.empty_like(logits)
    _loss_and_gradient[(len(targets),)](logits, targets, losses, gradients, n_columns, logits.shape[1], num_warps=WARPS)
    return losses, gradients
