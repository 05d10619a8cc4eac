"""The functions of reference.py for a CPU, equal to the bit: loops of kernels.py, and BLAS for products of integers."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scratchlm.arithmetic import decoding_kernels, layer_kernels, product_kernels
from scratchlm.arithmetic.fused_attention import attention as attention
from scratchlm.arithmetic.fused_attention import attention_gradients as attention_gradients
from scratchlm.arithmetic.integers import CHUNK, LONGEST
from scratchlm.arithmetic.reference import EPSILON, dropout_start, pieces
from scratchlm.arithmetic.sharing import array, rounded, share

ROWS_IN_CACHE = 256  # of a weight's gradient: a training step of 124M takes 5 % less than with all rows at once


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    a, b = array(x), array(weight)
    if a.shape[1] > CHUNK:
        return _long_linear(a, b, bias)
    rows, columns = _quantised_rows(a), _quantised_rows(b)
    return _with_bias(_product(rows, columns), rows[1], columns[1], bias)


def _with_bias(p: np.ndarray, row_scale: np.ndarray, column_scale: np.ndarray, bias: Tensor | None) -> Tensor:
    if bias is None:
        return rounded(p, row_scale, column_scale)
    y = np.empty(p.shape, np.float32)
    share(product_kernels.rescale_with_bias, y.shape, p, row_scale, column_scale, array(bias), y)
    return torch.from_numpy(y)


def pack(weight: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The integers and scales of a weight, (C', C) int32 and (C',), for packed_linear. C is at most CHUNK."""
    q, scale = _quantised_rows(array(weight))
    return q.astype(np.int32), scale


def packed_linear(x: Tensor, packed: tuple[np.ndarray, np.ndarray], bias: Tensor | None) -> Tensor:
    """`linear` of a few rows with a weight that was packed before: (N, C) -> (N, C')."""
    q, scale = _quantised_rows(array(x))
    p = np.empty((len(q), len(packed[0])))
    share(decoding_kernels.packed_products, packed[0].shape, q, packed[0], p)
    return _with_bias(p, scale, packed[1], bias)


def _long_linear(a: np.ndarray, b: np.ndarray, bias: Tensor | None) -> Tensor:
    collected = np.zeros((len(a), len(b)))
    for start in range(0, a.shape[1], CHUNK):
        rows, columns = (_quantised_rows(np.ascontiguousarray(x[:, start : start + CHUNK])) for x in (a, b))
        share(product_kernels.accumulate, collected.shape, _product(rows, columns), rows[1], columns[1], collected)
    y = torch.from_numpy(collected).float()
    return y if bias is None else y + bias


def linear_input_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    g, w = array(gradient), array(weight)
    collected = None
    for start in range(0, len(w), CHUNK):
        part, rows = w[start : start + CHUNK], _quantised_rows(np.ascontiguousarray(g[:, start : start + CHUNK]))
        columns = _quantised_columns(part)
        p = _matmul(rows[0], columns[0])
        if len(w) <= CHUNK:
            return rounded(p, rows[1], columns[1])
        collected = np.zeros(p.shape) if collected is None else collected
        share(product_kernels.accumulate, p.shape, p, rows[1], columns[1], collected)
    return torch.from_numpy(collected).float()


def add_weight_gradients(collected: Tensor, gradient: Tensor, x: Tensor, cu_seqlens: Sequence[int]) -> None:
    g, rows, ends = array(gradient), array(x), np.array(pieces(cu_seqlens))
    kept = g.any(axis=1)
    columns = (np.empty(rows.shape), np.empty((len(ends) - 1, rows.shape[1])))
    share(product_kernels.quantise_columns, rows.T.shape, rows, kept, ends, columns)
    share(_add_products, g.T.shape, g, kept, ends, columns, collected.numpy())


def _add_products(span: tuple[int, int], *arguments: Any) -> None:
    """Columns `start` to `end` of the gradient, which are rows of the weight."""
    start, end = span
    g, kept, ends, (q_x, scale_x), collected = arguments
    part = np.ascontiguousarray(g[:, start:end])
    q, scale = np.empty(part.shape), np.empty((len(ends) - 1, end - start))
    product_kernels.quantise_columns((0, end - start), part, kept, ends, (q, scale))
    for block in range(0, end - start, ROWS_IN_CACHE):
        rows = slice(block, block + ROWS_IN_CACHE)
        found = collected[start:end][rows]
        for i, (first, last) in enumerate(pairwise(ends)):
            p = q[first:last, rows].T @ q_x[first:last]
            product_kernels.accumulate((0, len(p)), p, scale[i, rows], scale_x[i], found)


def add_column_sums(collected: Tensor, x: Tensor, cu_seqlens: Sequence[int]) -> None:
    values = array(x)
    share(product_kernels.add_column_sums, values.T.shape, values, np.array(cu_seqlens), collected.numpy())


def add_rows(collected: Tensor, ids: Tensor, rows: Tensor, cu_seqlens: Sequence[int]) -> None:
    values, numbers = array(rows), ids.numpy()
    found = [np.unique(numbers[start:end], return_inverse=True) for start, end in pairwise(cu_seqlens)]
    unique = np.concatenate([ids for ids, _ in found])
    places = np.concatenate([places for _, places in found])
    starts = np.cumsum([0, *(len(ids) for ids, _ in found)])
    numbered = (unique, starts, places)
    share(product_kernels.add_rows, values.T.shape, values, np.array(cu_seqlens), numbered, collected.numpy())


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    y = np.empty(x.shape, np.float32)
    share(layer_kernels.layer_norm, y.shape, array(x), array(scale), array(shift), y)
    return torch.from_numpy(y)


def layer_norm_gradients(gradient: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    below, scale_rows = np.empty(x.shape, np.float32), np.empty(x.shape)
    share(layer_kernels.layer_norm_gradients, x.shape, array(gradient), array(x), array(scale), (below, scale_rows))
    return torch.from_numpy(below), torch.from_numpy(scale_rows)


def rms_norm(x: Tensor, scale: Tensor, epsilon: float = EPSILON) -> Tensor:
    y = np.empty(x.shape, np.float32)
    share(layer_kernels.rms_norm, y.shape, array(x), array(scale), epsilon, y)
    return torch.from_numpy(y)


def rms_norm_gradients(gradient: Tensor, x: Tensor, scale: Tensor, epsilon: float = EPSILON) -> tuple[Tensor, Tensor]:
    below, scale_rows = np.empty(x.shape, np.float32), np.empty(x.shape)
    inputs = (array(gradient), array(x), array(scale), epsilon)
    share(layer_kernels.rms_norm_gradients, x.shape, *inputs, (below, scale_rows))
    return torch.from_numpy(below), torch.from_numpy(scale_rows)


def gelu(x: Tensor) -> Tensor:
    y = np.empty(x.numel(), np.float32)
    share(layer_kernels.gelu, y.shape, array(x).ravel(), y)
    return torch.from_numpy(y).view(x.shape)


def gelu_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    below = np.empty(x.numel(), np.float32)
    share(layer_kernels.gelu_gradient, below.shape, array(gradient).ravel(), array(x).ravel(), below)
    return torch.from_numpy(below).view(x.shape)


def swiglu(x: Tensor) -> Tensor:
    y = np.empty((len(x), x.shape[1] // 2), np.float32)
    share(layer_kernels.swiglu, y.shape, array(x), y)
    return torch.from_numpy(y)


def swiglu_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    below = np.empty(x.shape, np.float32)
    share(layer_kernels.swiglu_gradient, gradient.shape, array(gradient), array(x), below)
    return torch.from_numpy(below)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    losses = np.empty(len(logits), np.float32)
    share(layer_kernels.cross_entropy, logits.shape, array(logits), targets.numpy(), losses)
    return torch.from_numpy(losses)


def cross_entropy_gradient(gradient: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    below = np.empty(logits.shape, np.float32)
    arrays = (array(gradient), array(logits), targets.numpy(), below)
    share(layer_kernels.cross_entropy_gradient, below.shape, *arrays)
    return torch.from_numpy(below)


def dropout_factors(rows: Tensor, n_columns: int, drawing: tuple[int, int], probability: float) -> Tensor:
    numbers = rows.reshape(-1).numpy()
    found = np.empty((len(numbers), n_columns), np.float32)
    settings = (dropout_start(*drawing), round(probability * 2**24), np.float32(1.0 / (1.0 - probability)))
    share(layer_kernels.dropout_factors, found.shape, numbers, *settings, found)
    return torch.from_numpy(found).view(*rows.shape, n_columns)


def sum_of_squares(x: Tensor) -> float:
    flat = array(x).ravel()
    n_pieces = -(-len(flat) // LONGEST)
    found = np.empty(n_pieces)
    share(layer_kernels.sums_of_squares, (n_pieces, LONGEST), flat, LONGEST, found)
    return math.fsum(found)


def rounded_sum(parts: Sequence[Tensor]) -> Tensor:
    found = np.empty(parts[0].numel(), np.float32)
    first, *others = (part.view(-1).numpy() for part in parts)
    share(layer_kernels.rounded_sum, found.shape, first, others[0] if others else np.empty(0), found)
    return torch.from_numpy(found).view(parts[0].shape)


def scale(x: Tensor, factor: float) -> None:
    share(layer_kernels.scale, (x.numel(),), x.view(-1).numpy(), factor)


def adamw(
    state: tuple[Tensor, Tensor, Tensor],
    gradient: Tensor,
    decay: float,
    betas: tuple[float, float],
    scales: tuple[float, float, float],
) -> None:
    weights, first, second = (tensor.view(-1).numpy() for tensor in state)
    arrays = (weights, first, second, array(gradient).ravel())
    share(layer_kernels.adamw, weights.shape, *arrays, (decay, *betas, *scales))


def _matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(M, K), (K, N) -> (M, N), float64 integers.

    numpy's OpenBLAS reached 193 GFLOP/s on two cores, where torch's library had 108 (LOG.md).
    """
    found = np.empty((len(a), b.shape[1]))
    if len(a) < b.shape[1]:  # each thread repacks what is not shared out
        share(_matmul_columns, (b.shape[1], a.size), a, b, found)
    else:
        share(_matmul_rows, (len(a), b.size), a, b, found)
    return found


def _matmul_rows(span: tuple[int, int], a: np.ndarray, b: np.ndarray, found: np.ndarray) -> None:
    start, end = span
    np.matmul(a[start:end], b, out=found[start:end])


def _matmul_columns(span: tuple[int, int], a: np.ndarray, b: np.ndarray, found: np.ndarray) -> None:
    start, end = span
    np.matmul(a, b[:, start:end], out=found[:, start:end])


def _product(rows: tuple[np.ndarray, np.ndarray], columns: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return _matmul(rows[0], columns[0].T)


def _quantised_rows(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    q, scale = np.empty(x.shape), np.empty(len(x))
    share(product_kernels.quantise_rows, x.shape, x, q, scale)
    return q, scale


def _quantised_columns(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    q, scale = np.empty(x.shape), np.empty((1, x.shape[1]))
    everything = (np.ones(len(x), np.bool_), np.array([0, len(x)]))
    share(product_kernels.quantise_columns, x.T.shape, x, *everything, (q, scale))
    return q, scale[0]
