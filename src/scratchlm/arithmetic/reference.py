"""The operations of precision `exact` and their gradients in plain torch: slow, obvious, on any device.

Everything is float32 outside; inside, float64 where it costs nothing in clarity. fused.py has the same functions for
a CPU, equal to the bit. Rows are the last dimension but one, all leading ones flattened: (N, C).
"""

import math
from collections.abc import Sequence
from itertools import chain, pairwise

import torch
from torch import Tensor

from scratchlm.arithmetic.elementary import exp, log, sqrt
from scratchlm.arithmetic.integers import CHUNK, LONGEST, exact_sum, product, quantise_for_sum, weighted_sum

EPSILON = 1e-5  # of the norms of GPT-2, and of Llama's if nothing else is said
GELU_SLOPE, GELU_CUBE = math.sqrt(2 / math.pi), 0.044715
CALL_FACTOR, ROW_FACTOR, COLUMN_FACTOR = 0x632BE59BD9B4E019, 0x2545F4914F6CDD1D, 0x1B873593CC9E2D51  # any odd
IGNORED = -100  # a target that is not scored


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(N, C), (C', C), (C',) -> (N, C')."""
    y = product(x, weight).float()
    return y if bias is None else y + bias


def linear_input_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """(N, C'), (C', C) -> (N, C)."""
    return product(gradient, weight.mT).float()


def add_weight_gradients(collected: Tensor, gradient: Tensor, x: Tensor, cu_seqlens: Sequence[int]) -> None:
    """Add Σ_t gradient[t] x[t]ᵀ, a sequence at a time: to float64 (C', C), of (N, C'), (N, C).

    Rows without a gradient, such as padding, are zeroed, since they would change the scale of x.
    """
    x = torch.where((gradient != 0).any(-1, keepdim=True), x, 0.0)
    for start, end in pairwise(pieces(cu_seqlens)):
        collected += product(gradient[start:end].mT, x[start:end].mT)


def pieces(cu_seqlens: Sequence[int]) -> list[int]:
    """cu_seqlens, where a sequence longer than CHUNK is several."""
    starts = (range(start, end, CHUNK) for start, end in pairwise(cu_seqlens))
    return [*chain.from_iterable(starts), cu_seqlens[-1]]


def add_column_sums(collected: Tensor, x: Tensor, cu_seqlens: Sequence[int]) -> None:
    """Add Σ_t x[t], a sequence at a time: to float64 (C,), of (N, C)."""
    for start, end in pairwise(cu_seqlens):
        collected += exact_sum(x[start:end].mT).squeeze(-1)


def add_rows(collected: Tensor, ids: Tensor, rows: Tensor, cu_seqlens: Sequence[int]) -> None:
    """Add each row to the row of `collected` that its id names: to float64 (V, C), of (N,), (N, C).

    A sequence's rows of the same id are summed first: exactly, in int64, which index_add_ may add in any order.
    """
    for start, end in pairwise(cu_seqlens):
        unique, places = ids[start:end].unique(return_inverse=True)
        q, scale = quantise_for_sum(rows[start:end].mT)
        sums = torch.zeros(len(unique), rows.shape[-1], dtype=torch.int64, device=rows.device)
        collected[unique] += sums.index_add_(0, places, q.mT.to(torch.int64)).double() * scale.mT


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """(N, C), (C,), (C,) -> (N, C)."""
    normal, _ = _normalise(x)
    return (normal * scale + shift).float()


def layer_norm_gradients(gradient: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Of the input, (N, C), and each row's part of the scale's, (N, C) float64."""
    normal, reciprocal = _normalise(x)
    C = x.shape[-1]
    inner = gradient.double() * scale
    mean = exact_sum(inner) * (1.0 / C)
    along = exact_sum(inner * normal) * (1.0 / C)
    return ((inner - mean - normal * along) * reciprocal).float(), gradient.double() * normal


def _normalise(x: Tensor) -> tuple[Tensor, Tensor]:
    """(x - mean) / deviation, (N, C), and 1 / deviation, (N, 1); float64."""
    C = x.shape[-1]
    centred = x.double() - exact_sum(x) * (1.0 / C)
    reciprocal = 1.0 / sqrt(exact_sum(centred * centred) * (1.0 / C) + EPSILON)
    return centred * reciprocal, reciprocal


def rms_norm(x: Tensor, scale: Tensor, epsilon: float = EPSILON) -> Tensor:
    """(N, C), (C,) -> (N, C)."""
    return (x.double() * _reciprocal_of_size(x, epsilon) * scale).float()


def rms_norm_gradients(gradient: Tensor, x: Tensor, scale: Tensor, epsilon: float = EPSILON) -> tuple[Tensor, Tensor]:
    """Of the input, (N, C), and each row's part of the scale's, (N, C) float64."""
    reciprocal = _reciprocal_of_size(x, epsilon)
    normal, inner = x.double() * reciprocal, gradient.double() * scale
    along = exact_sum(inner * normal) * (1.0 / x.shape[-1])
    return ((inner - normal * along) * reciprocal).float(), gradient.double() * normal


def _reciprocal_of_size(x: Tensor, epsilon: float) -> Tensor:
    """1 / √(mean of x² + ε): (N, C) -> (N, 1) float64."""
    wide = x.double()
    return 1.0 / sqrt(exact_sum(wide * wide) * (1.0 / x.shape[-1]) + epsilon)


def gelu(x: Tensor) -> Tensor:
    """x Φ(x) ≈ x σ(2u) with u = √(2/π) (x + 0.044715 x³): any shape."""
    return (x.double() * _sigmoid_of_2u(x.double())).float()


def gelu_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """The gradient times d gelu / dx."""
    x = x.double()
    s = _sigmoid_of_2u(x)
    slope = GELU_SLOPE * (1.0 + 3 * GELU_CUBE * (x * x))
    return (gradient.double() * (s + x * s * (1.0 - s) * (2.0 * slope))).float()


def _sigmoid_of_2u(x: Tensor) -> Tensor:
    u = GELU_SLOPE * (x + GELU_CUBE * (x * x * x))
    return _sigmoid(2.0 * u)


def swiglu(x: Tensor) -> Tensor:
    """g σ(g) u, of a first half g and a second half u: (N, 2 C) -> (N, C)."""
    gate, up = x.double().chunk(2, dim=-1)
    return (gate * _sigmoid(gate) * up).float()


def swiglu_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """(N, C), (N, 2 C) -> (N, 2 C)."""
    gate, up = x.double().chunk(2, dim=-1)
    s, g = _sigmoid(gate), gradient.double()
    return torch.cat(((g * up * (s + gate * s * (1.0 - s))), g * (gate * s)), dim=-1).float()


def _sigmoid(x: Tensor) -> Tensor:
    return 1.0 / (1.0 + exp(-x))


def softmax(x: Tensor, visible: Tensor | None = None) -> Tensor:
    """Along the last dimension; `visible`, broadcastable bool, leaves out the rest. float32 or float64, kept."""
    wide = x.double()
    if visible is not None:
        wide = wide.masked_fill(~visible, -torch.inf)
    e = exp(wide - wide.amax(-1, keepdim=True))
    if visible is not None:
        e = e.masked_fill(~visible, 0.0)
    return (e / exact_sum(e)).to(x.dtype)


def softmax_gradient(gradient: Tensor, probabilities: Tensor) -> Tensor:
    """(…, S), (…, S) -> (…, S)."""
    g, p = gradient.double(), probabilities.double()
    return (p * (g - exact_sum(g * p))).to(gradient.dtype)


def attention(
    query: Tensor, key: Tensor, value: Tensor, n_visible: Tensor, factors: Tensor | None
) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ / √D) v and the softmax: (B, H, T, D), (B, H, S, D) twice -> (B, H, T, D), (B, H, T, S).

    n_visible: (B or 1, T), how many of the first keys a query sees. factors: of dropout, (B, H, T, S).
    """
    visible = (torch.arange(key.shape[-2], device=key.device) < n_visible[..., None])[:, None]
    scores = (product(query, key) * (1.0 / math.sqrt(query.shape[-1]))).float()
    probabilities = softmax(scores, visible)
    weights = probabilities if factors is None else probabilities * factors
    return weighted_sum(weights, value).float(), probabilities


def attention_gradients(
    gradient: Tensor, inputs: tuple[Tensor, Tensor, Tensor], saved: tuple[Tensor, Tensor], factors: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value, from that of the result, (B, H, T, D).

    saved: the softmax, and n_visible.
    """
    query, key, value = inputs
    probabilities, _ = saved
    weights = probabilities if factors is None else probabilities * factors
    inner = product(gradient, value).float()
    inner = inner if factors is None else inner * factors
    g, p = inner.double(), probabilities.double()
    scores = (p * (g - exact_sum(g * p)) * (1.0 / math.sqrt(query.shape[-1]))).float()
    return (
        weighted_sum(scores, key).float(),
        weighted_sum(scores.mT, query).float(),
        weighted_sum(weights.mT, gradient).float(),
    )


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(logits)[target], 0 for a target of -100: (N, V), (N,) -> (N,)."""
    wide = logits.double()
    largest = wide.amax(-1, keepdim=True)
    normaliser = log(exact_sum(exp(wide - largest))) + largest
    losses = normaliser - wide.gather(-1, targets.clamp(min=0)[:, None])
    return losses.squeeze(-1).masked_fill(targets == IGNORED, 0.0).float()


def cross_entropy_gradient(gradient: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """From the gradient of each row's loss: (N,), (N, V), (N,) -> (N, V)."""
    wide = logits.double()
    e = exp(wide - wide.amax(-1, keepdim=True))
    p = e / exact_sum(e)
    hit = torch.arange(logits.shape[-1], device=logits.device) == targets[:, None]
    slope = torch.where(hit, p - 1.0, p) * gradient.double()[:, None]
    return slope.masked_fill((targets == IGNORED)[:, None], 0.0).float()


def kl_divergence(logits: Tensor, other: Tensor) -> Tensor:
    """Σ p (ln p - ln q) for the softmaxes p and q: (N, V) twice -> (N,) float64."""
    log_p, log_q = _log_softmax(logits), _log_softmax(other)
    return exact_sum(exp(log_p) * (log_p - log_q)).squeeze(-1)


def _log_softmax(x: Tensor) -> Tensor:
    shifted = x.double() - x.double().amax(-1, keepdim=True)
    return shifted - log(exact_sum(exp(shifted)))


def dropout_start(key: int, n_before: int) -> int:
    """Where the hashes of one dropout begin, as a signed 64-bit integer."""
    start = (key + (n_before + 1) * CALL_FACTOR) % 2**64
    return start - 2**64 if start >= 2**63 else start


def dropout_factors(rows: Tensor, n_columns: int, drawing: tuple[int, int], probability: float) -> Tensor:
    """0 with `probability`, else 1 / (1 - probability): (…,) row numbers -> (…, n_columns).

    Each number is an integer hash of the step's key, the number of the dropout in its forward pass, row and column.
    """
    columns = torch.arange(n_columns, device=rows.device) * COLUMN_FACTOR
    bits = _mix(_mix(dropout_start(*drawing) + rows[..., None] * ROW_FACTOR) + columns)
    kept = _shift(bits, 40) >= round(probability * 2**24)
    return kept.double().mul(1.0 / (1.0 - probability)).float()


def _mix(z: Tensor) -> Tensor:
    """The last steps of splitmix64 (Steele et al. 2014) on int64, which wraps around."""
    z = (z ^ _shift(z, 30)) * -0x40A7B892E31B1A47
    z = (z ^ _shift(z, 27)) * -0x6B2FB644ECCEEE15
    return z ^ _shift(z, 31)


def _shift(z: Tensor, n: int) -> Tensor:
    return (z >> n) & ((1 << (64 - n)) - 1)


def sum_of_squares(x: Tensor) -> float:
    """Of all numbers: exact over pieces of LONGEST numbers, which are added by math.fsum."""
    pieces = x.double().square().flatten().split(LONGEST)
    return math.fsum(float(exact_sum(piece)) for piece in pieces)


def rounded_sum(parts: Sequence[Tensor]) -> Tensor:
    """The sum of one or two float64 tensors, in float32."""
    return sum(parts[1:], parts[0]).float()


def scale(x: Tensor, factor: float) -> None:
    """Multiply in place."""
    x.copy_((x.double() * factor).float())


def adamw(
    state: tuple[Tensor, Tensor, Tensor],
    gradient: Tensor,
    decay: float,
    betas: tuple[float, float],
    scales: tuple[float, float, float],
) -> None:
    """One step in place on (weights, first moment, second moment). decay: 1 - rate · weight decay.

    scales: rate / (1 - beta1^t), 1 / √(1 - beta2^t), and epsilon. Source: Loshchilov and Hutter 2019.
    """
    weights, first, second = state
    g = gradient.double()
    m = (first.double() * betas[0] + g * (1.0 - betas[0])).float()
    v = (second.double() * betas[1] + (g * g) * (1.0 - betas[1])).float()
    step, correction, epsilon = scales
    update = step * m.double() / (sqrt(v.double()) * correction + epsilon)
    weights.copy_((weights.double() * decay - update).float())
    first.copy_(m)
    second.copy_(v)
