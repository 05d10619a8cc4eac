"""The elementary operations that the model and the losses are made of, in torch's own arithmetic or the exact one.

model/ and the losses call these and no torch function of the same kind, so that this package alone decides how
numbers are computed. Sums, differences, products and quotients of two numbers are rounded the same way on every
processor and need no function.
"""

import math
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from scratchlm.arithmetic import autograd as exact
from scratchlm.arithmetic import reference
from scratchlm.arithmetic.blockwise_attention import blockwise_attention, can_be_blockwise
from scratchlm.arithmetic.mode import compiler, is_exact
from scratchlm.arithmetic.sequences import note_items

AllGather = Callable[[list[float]], list[float]]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b: (…, C_in), (C_out, C_in), (C_out,) -> (…, C_out)."""
    return exact.linear(x, weight, bias) if is_exact() else F.linear(x, weight, bias)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product: (…, T, K), (…, K, S) -> (…, T, S)."""
    return exact.matmul(a, b) if is_exact() else a @ b


def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    """Row `ids` of the table: (…,) int64, (V, C) -> (…, C)."""
    if is_exact():
        return exact.embedding(ids, weight)
    if weight.device.type == "mps" and weight.requires_grad and torch.is_grad_enabled():
        # on MPS, the gradient would add rows of the same token in any order (see training/repeatable.py)
        return F.embedding(ids.cpu(), weight.cpu()).to(weight.device)
    return F.embedding(ids, weight)


def residual_stream(x: Tensor) -> Tensor:
    """x in the precision in which blocks add to it: (…, C) twice.

    That is float32, but in compiled bfloat16 it is bfloat16: on a card, half of the time between products is spent on
    reading and writing it.
    """
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if compiler() and torch.is_autocast_enabled(device) else x


def softmax(x: Tensor) -> Tensor:
    """Exponentials over their sum along the last dimension: (…, S) -> (…, S)."""
    return exact.softmax(x) if is_exact() else x.softmax(dim=-1)


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """(x - mean) / √(biased variance + 1e-5) over the last dimension, scaled and shifted: (…, C), (C,), (C,)."""
    if is_exact():
        return exact.layer_norm(x, scale, shift)
    return F.layer_norm(x, scale.shape, scale, shift, eps=1e-5)


def rms_norm(x: Tensor, scale: Tensor, epsilon: float) -> Tensor:
    """x / √(mean of x² + ε) over the last dimension, scaled: (…, C), (C,). Source: Zhang and Sennrich 2019."""
    return exact.rms_norm(x, scale, epsilon) if is_exact() else F.rms_norm(x, scale.shape, scale, eps=epsilon)


def gelu(x: Tensor) -> Tensor:
    """x Φ(x) in the tanh approximation, element by element. Source: Hendrycks and Gimpel 2016."""
    return exact.gelu(x) if is_exact() else F.gelu(x, approximate="tanh")


def swiglu(x: Tensor) -> Tensor:
    """g σ(g) u of a first half g and a second half u: (…, 2 C) -> (…, C). Source: Shazeer 2020, equation 6."""
    if is_exact():
        return exact.swiglu(x)
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def repeat_heads(x: Tensor, n_times: int) -> Tensor:
    """Each head `n_times` in a row: (B, H, T, D) -> (B, H n_times, T, D)."""
    return exact.repeat_heads(x, n_times) if is_exact() else x.repeat_interleave(n_times, dim=1)


def dropout(x: Tensor, probability: float, training: bool = True) -> Tensor:
    """In training, zero each element with `probability` and scale the others; draws from torch's global stream.

    In the exact arithmetic the draws come from arithmetic.sequences.begin_forward, and x has rows of sequences.
    """
    if is_exact():
        return exact.dropout(x, probability if training else 0.0)
    return F.dropout(x, probability, training)


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, causal: bool
) -> Tensor:
    """torch's fused kernel for model.attention.eager_attention. causal: position t sees 0..t; excludes a mask.

    mask: (B, 1, T, S), True where visible; in the exact arithmetic the visible keys must be the first ones.
    """
    if is_exact():
        n_visible = (
            torch.arange(1, query.shape[-2] + 1, device=query.device)[None] if mask is None else mask.sum(-1)[:, 0]
        )
        return exact.attention(query, key, value, n_visible, dropout)
    if causal and not dropout and can_be_blockwise(query):
        return blockwise_attention(query, key, value)
    return F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=causal)


def most_likely(logits: Tensor) -> Tensor:
    """The largest logit of each row and its token id, the first of equals: (B, V) -> (B, 2) float32 or better.

    NaN counts as the largest.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # faster on a CPU than in bfloat16
    token_ids = logits.argmax(-1, keepdim=True)
    return torch.cat([logits.gather(-1, token_ids), token_ids.to(logits.dtype)], dim=-1)  # ids below 2^24 are exact


def cross_entropy(logits: Tensor, targets: Tensor, reduction: Literal["mean", "sum", "none"]) -> Tensor:
    """-log softmax(logits)[target] in nats: (N, V), (N,) int64 -> scalar, or (N,) with reduction "none".

    A target of -100 is not scored. Computed in float32 or better: bfloat16, which autocast would take on the CPU, has
    eight bits, too few for a loss.
    """
    if is_exact():
        losses = exact.cross_entropy(logits, targets)
        if reduction == "none":
            return losses
        summed = total(losses)
        return summed if reduction == "sum" else summed / (targets != exact.IGNORED).sum()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, targets, reduction=reduction)


def kl_divergence(logits: Tensor, other: Tensor) -> Tensor:
    """KL(softmax(logits) ‖ softmax(other)) of each row in nats, without gradients: (N, V) twice -> (N,) float64."""
    if is_exact():
        return reference.kl_divergence(logits, other)
    log_p, log_q = (wide(x).log_softmax(dim=-1) for x in (logits, other))
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def wide(x: Tensor) -> Tensor:
    """x in float64, which MPS lacks: then on the CPU."""
    return x.cpu().double() if x.device.type == "mps" else x.double()


def total(x: Tensor, dim: int | None = None) -> Tensor:
    """The sum of all elements, or along one dimension, which is dropped."""
    if is_exact():
        if dim is None:
            note_items(x)
        return exact.total(x, dim)
    return x.sum() if dim is None else x.sum(dim=dim)


def running_total(x: Tensor) -> Tensor:
    """Sums of the first 1, 2, … elements along the last dimension: (…, S) -> (…, S)."""
    return exact.running_total(x) if is_exact() else x.cumsum(-1)


def clip_gradients(
    parameters: Iterable[Tensor], max_norm: float, all_gather: AllGather | None = None
) -> float | Tensor:
    """Scale all gradients so that their norm is at most max_norm; return their norm. Source: Pascanu et al. 2013.

    all_gather: for a process that has some of the gradients: a value of each of them -> those of all, in their order.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if is_exact():
        return _clip_exactly(gradients, max_norm, all_gather)
    if all_gather:
        norms = all_gather([float(torch.linalg.vector_norm(gradient)) for gradient in gradients])
        total_norm = torch.linalg.vector_norm(torch.tensor(norms))
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, total_norm)
        return total_norm
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm)


def _clip_exactly(gradients: Iterable[Tensor], max_norm: float, all_gather: AllGather | None) -> float:
    squares = [exact.operations_for(gradient).sum_of_squares(gradient) for gradient in gradients]
    norm = math.sqrt(math.fsum(all_gather(squares) if all_gather else squares))
    factor = max_norm / (norm + 1e-6)
    if factor < 1.0:
        for gradient in gradients:
            exact.operations_for(gradient).scale(gradient, factor)
    return norm
