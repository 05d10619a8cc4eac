"""The functions of functions.py in precision `exact`, with their gradients."""

from typing import Any

import torch
from torch import Tensor, nn

from scratchlm.arithmetic import reference
from scratchlm.arithmetic.integers import exact_sum, product, quantise_for_sum
from scratchlm.arithmetic.sequences import GradientSum, boundaries, head_row_numbers, next_dropout, row_numbers

IGNORED = reference.IGNORED
REFERENCE_ONLY = False


def operations_for(x: Tensor) -> Any:
    """The module that computes on x's device."""
    if x.device.type != "cpu" or REFERENCE_ONLY:
        return reference
    from scratchlm.arithmetic import fused  # takes half a second, and only this precision needs it

    return fused


def collect_gradients(model: nn.Module) -> None:
    """Round each parameter's gradient sums, see sequences.GradientSum, to its `grad`."""
    for parameter in model.parameters():
        if sums := parameter.__dict__.pop("exact_gradients", None):
            parts = [sums[use][0] for use in sorted(sums)]
            parameter.grad = operations_for(parameter).rounded_sum(parts)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(…, C), (C', C), (C',) -> (…, C')."""
    return _Linear.apply(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.cu_seqlens = boundaries(x.shape)
        ctx.sums = [
            GradientSum(w, "linear") if w is not None and needed else None
            for w, needed in zip((weight, bias), ctx.needs_input_grad[1:], strict=True)
        ]
        return operations_for(x).linear(x.flatten(0, -2), weight, bias).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        operations = operations_for(x)
        flat, rows = gradient.flatten(0, -2), x.flatten(0, -2)
        weight_sum, bias_sum = ctx.sums
        if weight_sum:
            weight_sum.add(operations.add_weight_gradients, ctx.cu_seqlens, flat, rows)
        if bias_sum:
            bias_sum.add(operations.add_column_sums, ctx.cu_seqlens, flat)
        below = operations.linear_input_gradient(flat, weight).view(x.shape) if ctx.needs_input_grad[0] else None
        return below, None, None


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """(…, T, K), (…, K, S) -> (…, T, S). Not for a padded batch: a column of b is rounded as a whole."""
    return _Matmul.apply(a, b)


class _Matmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return product(a, b.mT).to(a.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        assert a.shape[:-2] == b.shape[:-2], "the gradient of a matrix product that broadcasts is not implemented"
        return product(gradient, b).to(a.dtype), product(a.mT, gradient.mT).to(b.dtype)


def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    """(…,), (V, C) -> (…, C)."""
    return _Embedding.apply(ids, weight)


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor) -> Tensor:
        ctx.ids, ctx.cu_seqlens = ids.flatten(), boundaries((*ids.shape, 1))
        ctx.sum = GradientSum(weight, "embedding") if ctx.needs_input_grad[1] else None
        return weight[ids]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        flat = gradient.flatten(0, -2)
        ctx.sum.add(operations_for(flat).add_rows, ctx.cu_seqlens, ctx.ids, flat)
        return None, None


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """(…, C), (C,), (C,) -> (…, C)."""
    return _LayerNorm.apply(x, scale, shift)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.cu_seqlens = boundaries(x.shape)
        ctx.sums = [
            GradientSum(w, "norm") if needed else None
            for w, needed in zip((scale, shift), ctx.needs_input_grad[1:], strict=True)
        ]
        return operations_for(x).layer_norm(x.flatten(0, -2), scale, shift).view(x.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, scale = ctx.saved_tensors
        operations = operations_for(x)
        flat = gradient.flatten(0, -2)
        below, scale_rows = operations.layer_norm_gradients(flat, x.flatten(0, -2), scale)
        for collected, rows in zip(ctx.sums, (scale_rows, flat), strict=True):
            if collected:
                collected.add(operations.add_column_sums, ctx.cu_seqlens, rows)
        return below.view(x.shape), None, None


def rms_norm(x: Tensor, scale: Tensor, epsilon: float) -> Tensor:
    """(…, C), (C,) -> (…, C)."""
    return _RMSNorm.apply(x, scale, epsilon)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, epsilon: float) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.cu_seqlens, ctx.epsilon = boundaries(x.shape), epsilon
        ctx.sum = GradientSum(scale, "norm") if ctx.needs_input_grad[1] else None
        return operations_for(x).rms_norm(x.flatten(0, -2), scale, epsilon).view(x.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, scale = ctx.saved_tensors
        operations = operations_for(x)
        flat = gradient.flatten(0, -2)
        below, scale_rows = operations.rms_norm_gradients(flat, x.flatten(0, -2), scale, ctx.epsilon)
        if ctx.sum:
            ctx.sum.add(operations.add_column_sums, ctx.cu_seqlens, scale_rows)
        return below.view(x.shape), None, None


class _Pointwise(torch.autograd.Function):
    """An operation by its name, whose gradient is another of the same name."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.name = name
        return getattr(operations_for(x), name)(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return getattr(operations_for(x), f"{ctx.name}_gradient")(gradient, x), None


def gelu(x: Tensor) -> Tensor:
    """Element by element."""
    return _Pointwise.apply(x, "gelu")


def swiglu(x: Tensor) -> Tensor:
    """(…, 2 C) -> (…, C)."""
    return _Pointwise.apply(x.flatten(0, -2), "swiglu").view(*x.shape[:-1], -1)


class _RepeatHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, n_times: int) -> Tensor:
        ctx.n_times = n_times
        return x.repeat_interleave(n_times, dim=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return exact_sum(gradient.unflatten(1, (-1, ctx.n_times)).movedim(2, -1)).squeeze(-1).float(), None


def repeat_heads(x: Tensor, n_times: int) -> Tensor:
    """(B, H, T, D) -> (B, H n_times, T, D)."""
    return _RepeatHeads.apply(x, n_times)


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        probabilities = reference.softmax(x)
        ctx.save_for_backward(probabilities)
        return probabilities

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return reference.softmax_gradient(gradient, *ctx.saved_tensors)


def softmax(x: Tensor) -> Tensor:
    """Along the last dimension."""
    return _Softmax.apply(x)


def dropout(x: Tensor, probability: float) -> Tensor:
    """(…, C) -> (…, C), where (N, C) and (B, T, C) are rows of sequences: see sequences.py."""
    if not probability:
        return x
    rows = row_numbers(x.shape, x.device)
    factors = operations_for(x).dropout_factors(rows, x.shape[-1], next_dropout(), probability)
    return x * factors.view(x.shape)


def attention(query: Tensor, key: Tensor, value: Tensor, n_visible: Tensor, probability: float) -> Tensor:
    """(B, H, T, D), (B, H, S, D) twice -> (B, H, T, D); n_visible: (B or 1, T), how many keys a query sees."""
    factors = None
    if probability:
        shape = (*query.shape[:-1], key.shape[-2])
        rows = head_row_numbers(shape, query.device)
        factors = operations_for(query).dropout_factors(rows, shape[-1], next_dropout(), probability)
    return _Attention.apply(query, key, value, n_visible, factors)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, n_visible: Tensor, factors: Tensor | None
    ) -> Tensor:
        context, probabilities = operations_for(query).attention(query, key, value, n_visible, factors)
        ctx.save_for_backward(query, key, value, probabilities, n_visible, factors)
        return context

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, probabilities, n_visible, factors = ctx.saved_tensors
        operations = operations_for(gradient)
        gradients = operations.attention_gradients(gradient, tuple(inputs), (probabilities, n_visible), factors)
        return *gradients, None, None


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of each row: (N, V), (N,) -> (N,)."""
    return _CrossEntropy.apply(logits, targets)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, targets)
        return operations_for(logits).cross_entropy(logits, targets)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, targets = ctx.saved_tensors
        return operations_for(logits).cross_entropy_gradient(gradient, logits, targets), None


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        ctx.shape, ctx.dim = x.shape, dim
        return exact_sum(x.movedim(dim, -1)).squeeze(-1).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.unsqueeze(ctx.dim).expand(ctx.shape), None


def total(x: Tensor, dim: int | None) -> Tensor:
    """The sum of all elements, or along one dimension, which is dropped."""
    return _Total.apply(x.flatten(), 0) if dim is None else _Total.apply(x, dim)


def running_total(x: Tensor) -> Tensor:
    """Sums of the first 1, 2, … elements along the last dimension, without gradients."""
    q, scale = quantise_for_sum(x)
    return (q.cumsum(-1) * scale).to(x.dtype)
