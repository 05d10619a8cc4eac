"""The training losses. Each is a sum with the number of scored items, so that means are exact."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from scratchlm.arithmetic.functions import cross_entropy, linear, matmul, total
from scratchlm.arithmetic.layers import Linear
from scratchlm.arithmetic.mode import compiler, is_exact
from scratchlm.arithmetic.sequences import rows_of
from scratchlm.data.tokenizer import IGNORE_INDEX
from scratchlm.fast.compiler import padded_length
from scratchlm.fast.varlen import VarlenLayout, varlen_states
from scratchlm.model.gpt import GPTModel
from scratchlm.run.errors import UserError

LOGITS_AT_ONCE = 1 << 26  # numbers in one block of logits: bounds memory over large vocabularies
HEAD_MULTIPLE = 64  # rows


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the next token, in nats per scored token: the textbook form, for tests.

    logits: (B, T, V) float; logits[:, t] predicts token t + 1.
    targets: (B, T) int64 in [0, V), or IGNORE_INDEX where nothing is scored.
    Raises UserError if no target is scored: the mean would be 0/0.
    Source: Radford et al. 2019, section 2.
    """
    if not (targets != IGNORE_INDEX).any():
        raise UserError("no target is scored, so there is no mean loss; shorten the prompts or widen the context")
    return cross_entropy(logits.flatten(0, 1), targets.flatten(), "mean")


def summed_next_token_loss(model: GPTModel, inputs: Tensor, targets: Tensor) -> Tensor:
    """next_token_loss times the number of scored tokens: (B, T), (B, T) -> scalar, in nats."""
    hidden, scored = scored_states(model, inputs, targets)
    with rows_of(pad((targets != IGNORE_INDEX).sum(1).cumsum(0), (1, 0))):
        return summed_head_loss(model.head, hidden, scored, rows_at_once(model))


def summed_window_loss(model: GPTModel, inputs: Tensor, targets: Tensor) -> Tensor:
    """summed_next_token_loss where every target is scored, so that no shape depends on the data: a GPU never waits."""
    T = targets.shape[1]
    with rows_of(range(0, targets.numel() + 1, T)):
        hidden = model.hidden_states(inputs).flatten(0, 1)
        return summed_head_loss(model.head, hidden, targets.flatten(), rows_at_once(model))


def static_next_token_loss(model: GPTModel, inputs: Tensor, targets: Tensor) -> Tensor:
    """summed_next_token_loss over every position, scored or not, so that no shape depends on the data."""
    if not compiler():
        return summed_window_loss(model, inputs, targets)
    hidden, head = model.hidden_states(inputs).flatten(0, 1), model.head
    if type(head) is Linear:
        return _PaddedHeadLoss.apply(hidden, head.weight, targets.flatten())
    return cross_entropy(head(hidden), targets.flatten(), "sum")


def padded_rows(inputs: Tensor, targets: Tensor, context_length: int) -> tuple[Tensor, Tensor]:
    """The same batch in one of a few lengths, nothing more of it scored: (B, T) each -> (B, T') each."""
    n_more = padded_length(inputs.shape[1], context_length) - inputs.shape[1]
    return pad(inputs, (0, n_more)), pad(targets, (0, n_more), value=IGNORE_INDEX)


class _PaddedHeadLoss(torch.autograd.Function):
    """The summed loss of a plain head and its gradients at once: (N, C), (V, C), (N,) int64 -> scalar, in nats.

    With ∂L/∂z = softmax(z) - onehot(target) of each row of logits z, the products ∂L/∂h = ∂L/∂z W and
    ∂L/∂W = (∂L/∂z)ᵀ h follow at once; a backward pass of its own would read all logits another time. The head gets
    rows of zeros up to a multiple of 64, because a card multiplies odd sizes slowly; their logits are left out.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        padded = padded_head(weight)
        logits = linear(hidden, padded)
        if hidden.device.type == "cuda" and torch.compiler.is_compiling():
            from scratchlm.training.loss_kernel import loss_and_gradient  # needs Triton

            losses, gradient = loss_and_gradient(logits, targets, len(weight))
        else:
            losses, gradient = _loss_and_gradient(logits, targets, len(weight))
        ctx.save_for_backward(matmul(gradient, padded), matmul(gradient.T, hidden)[: len(weight)])
        return total(losses)

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, Tensor, None]:
        of_hidden, of_weight = ctx.saved_tensors
        return factor * of_hidden.to(factor.dtype), factor * of_weight.to(factor.dtype), None


def _loss_and_gradient(logits: Tensor, targets: Tensor, n_columns: int) -> tuple[Tensor, Tensor]:
    """Return losses and gradients as training.loss_kernel.loss_and_gradient does: (N, V), (N,) -> (N,), (N, V)."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    token_ids = torch.arange(logits.shape[1], device=logits.device)
    log_p = logits.masked_fill(token_ids >= n_columns, -torch.inf).log_softmax(-1)
    is_scored, targets = targets != IGNORE_INDEX, targets.clamp(min=0)[:, None]
    gradient = (log_p.exp() - (token_ids == targets).to(log_p.dtype)) * is_scored[:, None]
    return -log_p.gather(-1, targets).squeeze(-1) * is_scored, gradient


def row_losses(model: GPTModel, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Per row the summed loss in nats and the number of scored tokens: (B, T), (B, T) -> (B,) float64, (B,) int64.

    On the CPU, without gradients.
    """
    losses = _token_losses(model, *scored_states(model, inputs, targets))
    return row_sums(losses, targets), (targets != IGNORE_INDEX).sum(dim=1).cpu()


def static_token_losses(model: GPTModel, inputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of every position, 0 where nothing is scored: (B, T), (B, T) -> (B, T) float32.

    No shape depends on the data.
    """
    return _token_losses(model, model.hidden_states(inputs).flatten(0, 1), targets.flatten()).view(targets.shape)


def _token_losses(model: GPTModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """The loss of each position, a block of logits at a time: (N, C), (N,) int64 -> (N,) float32."""
    block = rows_at_once(model)
    parts = zip(hidden.split(block), targets.split(block), strict=True)
    losses = [cross_entropy(head_logits(model.head, part), wanted, "none") for part, wanted in parts]
    return torch.cat(losses).float()


def row_sums(values: Tensor, targets: Tensor) -> Tensor:
    """The sums of a value per scored position, in order of rows: (K,), (B, T) -> (B,) float64 on the CPU."""
    indices = (targets != IGNORE_INDEX).flatten().nonzero().squeeze(1).cpu()
    per_token = torch.zeros(targets.numel(), dtype=torch.float64).index_copy(0, indices, values.cpu().double())
    return total(per_token.view(targets.shape), dim=1)


def scored_states(model: GPTModel, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden states of the K scored positions, in order of rows, and their targets: (B, T) twice -> (K, C), (K,).

    Positions after a row's last target cannot affect the loss, so they are skipped; the head, over a large vocabulary
    most of the work, then runs only where something is scored.
    """
    is_scored = targets != IGNORE_INDEX
    ends = torch.arange(1, targets.shape[1] + 1, device=targets.device)
    layout = VarlenLayout((is_scored * ends).amax(dim=1).clamp(min=1))
    read = layout.unpad(is_scored)
    all_scored, scored = bool(read.all()), targets[is_scored]  # before the model runs: both wait for a GPU to finish
    hidden = varlen_states(model, layout.unpad(inputs), layout)  # (N, C)
    return (hidden if all_scored else hidden[read]), scored


def summed_head_loss(head: nn.Module, hidden: Tensor, targets: Tensor, block: int) -> Tensor:
    """Cross-entropy of head(hidden), summed: (N, C), (N,) int64 -> scalar, in nats.

    At most `block` rows of logits exist at a time. With more rows than that, gradients are computed together with the
    loss, so that the backward pass neither keeps logits nor computes them again.
    """
    if len(targets) <= block or is_exact():
        return cross_entropy(head_logits(head, hidden), targets, "sum")
    weights = [p for p in head.parameters() if p.requires_grad]
    return _BlockwiseHeadLoss.apply(head, block, targets, hidden, *weights)


class _BlockwiseHeadLoss(torch.autograd.Function):
    """The loss and its gradients, block by block.

    The loss is a sum over blocks of rows, L = Σ_b L_b, with L_b a function of the rows h_b and the head's weights W.
    Hence ∂L/∂h is the blocks' ∂L_b/∂h_b one after the other, and ∂L/∂W = Σ_b ∂L_b/∂W.
    Both are known after the forward pass, which calls summed_head_loss once per block, each small enough to be whole.
    If the result is a function f of L, the chain rule multiplies by the number f′(L) that `backward` is given:
    ∂f/∂h = f′(L) ∂L/∂h and ∂f/∂W = f′(L) ∂L/∂W.
    """

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
            del gradients  # the next block's logits need the memory
        ctx.gradients = (torch.cat(hidden_gradients), *weight_gradients)
        return total(torch.stack(losses))

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # kept, they would exist until the step has ended
        torch._foreach_mul_(gradients, factor)
        return None, None, None, *gradients


def head_logits(head: nn.Module, hidden: Tensor) -> Tensor:
    """head(hidden): (N, C) -> (N, V). On a card, which multiplies odd sizes slowly, a plain head is padded first."""
    if type(head) is not Linear or hidden.device.type != "cuda" or is_exact():
        return head(hidden)
    return linear(hidden, padded_head(head.weight))[:, : len(head.weight)]


def padded_head(weight: Tensor) -> Tensor:
    """A head with rows of zeros up to a multiple of HEAD_MULTIPLE: (V, C) -> (V', C)."""
    return pad(weight, (0, 0, 0, -len(weight) % HEAD_MULTIPLE))


def rows_at_once(model: GPTModel) -> int:
    """The number of rows of logits that exist at a time."""
    return max(1, LOGITS_AT_ONCE // model.config.vocab_size)
