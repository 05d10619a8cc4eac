"""What training minimises. Every loss is a sum with the number of scored items, so that means are exact."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scratchlm.data.tokenizer import IGNORE_INDEX
from scratchlm.model.gpt import GPTModel, at_least_float32, logit_rows
from scratchlm.model.packing import Packing
from scratchlm.run.errors import UserError


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the next token, in nats per scored token: the textbook form, which tests compare with.

    logits: (B, T, V) float; logits[:, t] predicts token t + 1.
    targets: (B, T) int64 in [0, V), or IGNORE_INDEX where nothing is scored.
    Raises UserError if no target is scored: the mean would be 0/0.
    Source: Radford et al. 2019, section 2.
    """
    n_scored = int((targets != IGNORE_INDEX).sum())
    if not n_scored:
        raise UserError("no target is scored, so there is no mean loss; shorten the prompts or widen the context")
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX)


def summed_next_token_loss(model: GPTModel, inputs: Tensor, targets: Tensor) -> Tensor:
    """next_token_loss times the number of scored tokens: (B, T), (B, T) -> scalar, in nats.

    What stands behind a row's last scored target cannot influence it and is not computed, and logits are made only
    where something is scored: over a large vocabulary the head is most of the work.
    """
    hidden, scored = scored_states(model, inputs, targets)
    return summed_head_loss(model.head, hidden, scored, logit_rows(model.config.vocab_size))


def scored_states(model: GPTModel, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden states that the head predicts the scored targets from, and these: (B, T), (B, T) -> (K, C), (K,).

    In order of rows, then columns.
    """
    is_scored = targets != IGNORE_INDEX
    places = torch.arange(1, targets.shape[1] + 1, device=targets.device)
    packing = Packing((is_scored * places).amax(dim=1).clamp(min=1))  # a row's length, up to its last scored target
    keep = packing.pack(is_scored)
    all_scored, scored = bool(keep.all()), targets[is_scored]  # before the model: to ask a GPU is to wait for it
    hidden = model.packed_states(packing.pack(inputs), packing)  # (N, C)
    return (hidden if all_scored else hidden[keep]), scored


def summed_head_loss(head: nn.Module, hidden: Tensor, targets: Tensor, block: int) -> Tensor:
    """Cross-entropy of head(hidden), summed: (N, C), (N,) int64 -> scalar, in nats.

    Only `block` rows of logits exist at a time. Where that is not all, gradients are computed together with the loss,
    so that nothing of the size of the logits is kept for the backward pass or made a second time in it.
    """
    if len(targets) <= block:
        return F.cross_entropy(at_least_float32(head(hidden)), targets, reduction="sum")
    weights = [p for p in head.parameters() if p.requires_grad]
    return _BlockwiseHeadLoss.apply(head, block, targets, hidden, *weights)


class _BlockwiseHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, head: nn.Module, block: int, targets: Tensor, hidden: Tensor, *weights: nn.Parameter
    ) -> Tensor:
        losses, hidden_gradients = [], []
        weight_gradients: list[Tensor] = []
        for part, scored in zip(hidden.detach().split(block), targets.split(block), strict=True):
            with torch.enable_grad():
                loss = summed_head_loss(head, part.requires_grad_(), scored, block)
            part_gradient, *gradients = torch.autograd.grad(loss, (part, *weights))
            losses.append(loss.detach())
            hidden_gradients.append(part_gradient)
            if weight_gradients:
                torch._foreach_add_(weight_gradients, gradients)
            else:
                weight_gradients = gradients
        ctx.gradients = (torch.cat(hidden_gradients), *weight_gradients)
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *torch._foreach_mul(ctx.gradients, factor)
