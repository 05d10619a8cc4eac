"""The losses of preference optimisation, and the log-probabilities of responses that they compare."""

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from scratchlm.arithmetic.checkpointing import checkpointed
from scratchlm.arithmetic.functions import cross_entropy, kl_divergence
from scratchlm.arithmetic.mode import is_exact
from scratchlm.arithmetic.sequences import rows_of
from scratchlm.data.tokenizer import IGNORE_INDEX
from scratchlm.model.gpt import GPTModel
from scratchlm.training.losses import row_sums, rows_at_once, scored_states

PreferenceLoss = Literal["dpo", "ipo"]


def preference_losses(log_ratios: Tensor, loss: PreferenceLoss, beta: float, label_smoothing: float) -> Tensor:
    """The loss of each pair: (P,) float64 -> (P,) float64.

    log_ratios: h = ln π(chosen)/π_ref(chosen) - ln π(rejected)/π_ref(rejected).
    dpo: -(1 - ε) ln σ(βh) - ε ln σ(-βh), where ε (label_smoothing) is the share of labels taken to be wrong.
    ipo: (h - 1/(2β))².
    Sources: Rafailov et al. 2023, equation 7; Mitchell 2023 (ε); Azar et al. 2023, equation 17.
    """
    if loss == "ipo":
        gaps = log_ratios - 1 / (2 * beta)
        return gaps * gaps
    # -ln σ(z) is the cross-entropy of the first class with the logits (z, 0), and -ln σ(-z) that of the second
    z = (beta * log_ratios).float()
    logits, first = torch.stack((z, torch.zeros_like(z)), dim=1), torch.zeros(len(z), dtype=torch.int64)
    losses = cross_entropy(logits, first, "none").double()
    if not label_smoothing:
        return losses
    return (1 - label_smoothing) * losses + label_smoothing * cross_entropy(logits, first + 1, "none").double()


def response_log_probabilities(model: GPTModel, inputs: Tensor, targets: Tensor) -> Tensor:
    """ln π(response | prompt), summed over the scored tokens of each row: (B, T) twice -> (B,) float64 on the CPU."""
    hidden, scored = scored_states(model, inputs, targets)
    with rows_of(pad((targets != IGNORE_INDEX).sum(1).cumsum(0), (1, 0))):
        block = len(hidden) if is_exact() else rows_at_once(model)
        parts = zip(hidden.split(block), scored.split(block), strict=True)
        if len(hidden) <= block:
            losses = _token_losses(model.head, scored, hidden)
        else:  # logits are computed again in the backward pass, so that one block of them exists at a time
            losses = torch.cat([checkpointed(partial(_token_losses, model.head, t), h, False) for h, t in parts])
    return -row_sums(losses, targets)


@torch.no_grad()
def response_scores(model: GPTModel, reference: GPTModel, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """response_log_probabilities, and KL(π ‖ π_ref) summed over the scored positions: (B, T) twice -> (B,) twice."""
    (hidden, scored), (other, _) = (scored_states(m, inputs, targets) for m in (model, reference))
    losses, divergences, block = [], [], rows_at_once(model)
    for mine, theirs, wanted in zip(hidden.split(block), other.split(block), scored.split(block), strict=True):
        logits = model.head(mine)
        losses.append(cross_entropy(logits, wanted, "none"))
        divergences.append(kl_divergence(logits, reference.head(theirs)))
    return -row_sums(torch.cat(losses), targets), row_sums(torch.cat(divergences), targets)


def _token_losses(head: nn.Module, targets: Tensor, hidden: Tensor) -> Tensor:
    return cross_entropy(head(hidden), targets, "none")
