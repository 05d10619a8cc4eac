"""The functions of reference.py for a CPU, equal to the bit: loops of kernels.py, and BLAS for products of integers."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from scratchlm.arithmetic import kernels
from scratchlm.arithmetic.integers import CHUNK, LONGEST, VALUE_BITS
from scratchlm.arithmetic.mode import n_threads
from scratchlm.arithmetic.reference import dropout_start

WORTH_A_THREAD = 1 << 16  # numbers
NONE = np.empty((0, 0), np.float32)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    a, b = _array(x), _array(weight)
    if a.shape[1] > CHUNK:
        return _long_linear(a, b, bias)
    rows, columns = _quantised_rows(a), _quantised_rows(b)
    p = _product(rows, columns)
    if bias is None:
        return _rounded(p, rows[1], columns[1])
    y = np.empty(p.shape, np.float32)
    _share(kernels.rescale_with_bias, y.shape, p, rows[1], columns[1], _array(bias), y)
    return torch.from_numpy(y)


def _long_linear(a: np.ndarray, b: np.ndarray, bias: Tensor | None) -> Tensor:
    collected = np.zeros((len(a), len(b)))
    for start in range(0, a.shape[1], CHUNK):
        rows, columns = (_quantised_rows(np.ascontiguousarray(x[:, start : start + CHUNK])) for x in (a, b))
        _share(kernels.accumulate, collected.shape, _product(rows, columns), rows[1], columns[1], collected)
    y = torch.from_numpy(collected).float()
    return y if bias is None else y + bias


def linear_input_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    g, w = _array(gradient), _array(weight)
    collected = None
    for start in range(0, len(w), CHUNK):
        part, rows = w[start : start + CHUNK], _quantised_rows(np.ascontiguousarray(g[:, start : start + CHUNK]))
        columns = _quantised_columns(part)
        p = _matmul(rows[0], columns[0])
        if len(w) <= CHUNK:
            return _rounded(p, rows[1], columns[1])
        collected = np.zeros(p.shape) if collected is None else collected
        _share(kernels.accumulate, p.shape, p, rows[1], columns[1], collected)
    return torch.from_numpy(collected).float()


def add_weight_gradients(collected: Tensor, gradient: Tensor, x: Tensor, cu_seqlens: Sequence[int]) -> None:
    g, rows, ends = _array(gradient), _array(x), _pieces(cu_seqlens)
    kept = g.any(axis=1)
    columns = (np.empty(rows.shape), np.empty((len(ends) - 1, rows.shape[1])))
    _share(kernels.quantise_columns, rows.T.shape, rows, kept, ends, *columns)
    _share(_add_products, g.T.shape, g, kept, ends, columns, collected.numpy())


def _add_products(start: int, end: int, *arguments: Any) -> None:
    """Columns `start` to `end` of the gradient, which are rows of the weight."""
    g, kept, ends, (q_x, scale_x), collected = arguments
    part = np.ascontiguousarray(g[:, start:end])
    q, scale = np.empty(part.shape), np.empty((len(ends) - 1, end - start))
    kernels.quantise_columns(0, end - start, part, kept, ends, q, scale)
    found = collected[start:end]
    for i, (first, last) in enumerate(pairwise(ends)):
        p = q[first:last].T @ q_x[first:last]
        kernels.accumulate(0, len(p), p, scale[i], scale_x[i], found)


def add_column_sums(collected: Tensor, x: Tensor, cu_seqlens: Sequence[int]) -> None:
    values = _array(x)
    _share(kernels.add_column_sums, values.T.shape, values, np.array(cu_seqlens), collected.numpy())


def add_rows(collected: Tensor, ids: Tensor, rows: Tensor, cu_seqlens: Sequence[int]) -> None:
    values, numbers = _array(rows), ids.numpy()
    found = [np.unique(numbers[start:end], return_inverse=True) for start, end in pairwise(cu_seqlens)]
    unique = np.concatenate([ids for ids, _ in found])
    places = np.concatenate([places for _, places in found])
    starts = np.cumsum([0, *(len(ids) for ids, _ in found)])
    arrays = (values, np.array(cu_seqlens), unique, starts, places)
    _share(kernels.add_rows, values.T.shape, *arrays, collected.numpy())


def _pieces(cu_seqlens: Sequence[int]) -> np.ndarray:
    """cu_seqlens, where a sequence longer than CHUNK is several."""
    starts = (range(start, end, CHUNK) for start, end in pairwise(cu_seqlens))
    return np.array([*chain.from_iterable(starts), cu_seqlens[-1]])


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    y = np.empty(x.shape, np.float32)
    _share(kernels.layer_norm, y.shape, _array(x), _array(scale), _array(shift), y)
    return torch.from_numpy(y)


def layer_norm_gradients(gradient: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    below, scale_rows = np.empty(x.shape, np.float32), np.empty(x.shape)
    _share(kernels.layer_norm_gradients, x.shape, _array(gradient), _array(x), _array(scale), below, scale_rows)
    return torch.from_numpy(below), torch.from_numpy(scale_rows)


def gelu(x: Tensor) -> Tensor:
    y = np.empty(x.numel(), np.float32)
    _share(kernels.gelu, y.shape, _array(x).ravel(), y)
    return torch.from_numpy(y).view(x.shape)


def gelu_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    below = np.empty(x.numel(), np.float32)
    _share(kernels.gelu_gradient, below.shape, _array(gradient).ravel(), _array(x).ravel(), below)
    return torch.from_numpy(below).view(x.shape)


def attention(
    query: Tensor, key: Tensor, value: Tensor, n_visible: Tensor, factors: Tensor | None
) -> tuple[Tensor, Tensor]:
    (B, H, T, D), S = query.shape, key.shape[2]
    visible = _visible(n_visible, query.shape)
    (q_query, query_scale), (q_key, key_scale) = (_grouped(kernels.quantise_rows, x) for x in (query, key))
    p = _batch_product(q_query, q_key.transpose(0, 2, 1)).reshape(-1, S)
    found = np.empty((B * H * T, S), np.float32)
    arrays = (p, query_scale.reshape(-1), key_scale, visible, 1.0 / math.sqrt(D), found)
    _share(kernels.attention_probabilities, found.shape, *arrays)
    weights = found if factors is None else found * _array(factors).reshape(-1, S)
    return _weighted_sum(weights, value, visible), torch.from_numpy(found).view(B, H, T, S)


def attention_gradients(
    gradient: Tensor, inputs: tuple[Tensor, Tensor, Tensor], saved: tuple[Tensor, Tensor], factors: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = inputs
    (B, H, T, D), S = query.shape, key.shape[2]
    visible = _visible(saved[1], query.shape)
    shares = _array(saved[0]).reshape(-1, S)
    dropped = NONE if factors is None else _array(factors).reshape(-1, S)
    (q_gradient, gradient_scale), (q_value, value_scale) = (
        _grouped(kernels.quantise_rows, x) for x in (gradient, value)
    )
    p = _batch_product(q_gradient, q_value.transpose(0, 2, 1)).reshape(-1, S)
    slopes = np.empty((B * H * T, S), np.float32)
    scales = (gradient_scale.reshape(-1), value_scale)
    arrays = (p, scales, dropped, shares, visible, 1.0 / math.sqrt(D), slopes)
    _share(kernels.attention_slopes, slopes.shape, *arrays)
    weights = shares * dropped if len(dropped) else shares
    return _weighted_sum(slopes, key, visible), _column_sum(slopes, query), _column_sum(weights, gradient)


def _weighted_sum(weights: np.ndarray, values: Tensor, visible: np.ndarray) -> Tensor:
    """integers.weighted_sum, rounded: (B H T, S), (B, H, S, D) -> (B, H, T, D)."""
    (B, H, S, D), T = values.shape, len(weights) // (values.shape[0] * values.shape[1])
    q_values, factors = _grouped(kernels.quantise_values, values)
    q, scale = np.empty(weights.shape), np.empty(len(weights))
    _share(kernels.fold_rows, q.shape, weights, factors, visible, q, scale)
    p = _batch_product(q.reshape(-1, T, S), q_values)
    return _rounded_values(p, scale, (B, H, T, D))


def _column_sum(weights: np.ndarray, values: Tensor) -> Tensor:
    """The same with transposed weights: (B H T, S), (B, H, T, D) -> (B, H, S, D)."""
    (B, H, T, D), S = values.shape, weights.shape[1]
    q_values, factors = _grouped(kernels.quantise_values, values)
    q, scale = np.empty((B * H, T, S)), np.empty((B * H, S))
    _share(kernels.fold_columns, (B * H, T * S), weights.reshape(-1, T, S), factors, q, scale)
    p = _batch_product(q.transpose(0, 2, 1), q_values)
    return _rounded_values(p, scale, (B, H, S, D))


def _grouped(quantise: Callable[..., None], x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Integers and scales of rows, (B, H, T, D) -> (B H, T, D), (B H, T)."""
    B, H, T, D = x.shape
    q, scale = np.empty((B * H * T, D)), np.empty(B * H * T)
    _share(quantise, q.shape, _array(x).reshape(-1, D), q, scale)
    return q.reshape(B * H, T, D), scale.reshape(B * H, T)


def _rounded_values(p: np.ndarray, scale: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    D = shape[-1]
    return _rounded(p.reshape(-1, D), scale.reshape(-1), np.full(D, 2.0**-VALUE_BITS)).view(shape)


def _batch_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(G, M, K), (G, K, N) -> (G, M, N), float64 integers."""
    found = np.empty((*a.shape[:2], b.shape[2]))
    _share(_batch_part, (len(a), found[0].size * a.shape[2]), a, b, found)
    return found


def _batch_part(start: int, end: int, a: np.ndarray, b: np.ndarray, found: np.ndarray) -> None:
    np.matmul(a[start:end], b[start:end], out=found[start:end])


def _visible(n_visible: Tensor, shape: torch.Size) -> np.ndarray:
    """(B or 1, T) -> (B H T,)."""
    B, H, T, _ = shape
    return n_visible[:, None].expand(B, H, T).reshape(-1).numpy()


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    losses = np.empty(len(logits), np.float32)
    _share(kernels.cross_entropy, logits.shape, _array(logits), targets.numpy(), losses)
    return torch.from_numpy(losses)


def cross_entropy_gradient(gradient: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    below = np.empty(logits.shape, np.float32)
    arrays = (_array(gradient), _array(logits), targets.numpy(), below)
    _share(kernels.cross_entropy_gradient, below.shape, *arrays)
    return torch.from_numpy(below)


def dropout_factors(rows: Tensor, n_columns: int, drawing: tuple[int, int], probability: float) -> Tensor:
    numbers = rows.reshape(-1).numpy()
    found = np.empty((len(numbers), n_columns), np.float32)
    settings = (dropout_start(*drawing), round(probability * 2**24), np.float32(1.0 / (1.0 - probability)))
    _share(kernels.dropout_factors, found.shape, numbers, *settings, found)
    return torch.from_numpy(found).view(*rows.shape, n_columns)


def sum_of_squares(x: Tensor) -> float:
    flat = _array(x).ravel()
    n_pieces = -(-len(flat) // LONGEST)
    found = np.empty(n_pieces)
    _share(kernels.sums_of_squares, (n_pieces, LONGEST), flat, LONGEST, found)
    return math.fsum(found)


def scale(x: Tensor, factor: float) -> None:
    _share(kernels.scale, (x.numel(),), x.view(-1).numpy(), factor)


def adamw(
    state: tuple[Tensor, Tensor, Tensor],
    gradient: Tensor,
    decay: float,
    betas: tuple[float, float],
    scales: tuple[float, float, float],
) -> None:
    weights, first, second = (tensor.view(-1).numpy() for tensor in state)
    arrays = (weights, first, second, _array(gradient).ravel())
    _share(kernels.adamw, weights.shape, *arrays, (decay, *betas, *scales))


def _matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(M, K), (K, N) -> (M, N), float64 integers.

    numpy's OpenBLAS reached 193 GFLOP/s on two cores, where torch's library had 108 (LOG.md).
    """
    found = np.empty((len(a), b.shape[1]))
    if len(a) < b.shape[1]:  # each thread repacks what is not shared out
        _share(_matmul_columns, (b.shape[1], a.size), a, b, found)
    else:
        _share(_matmul_rows, (len(a), b.size), a, b, found)
    return found


def _matmul_rows(start: int, end: int, a: np.ndarray, b: np.ndarray, found: np.ndarray) -> None:
    np.matmul(a[start:end], b, out=found[start:end])


def _matmul_columns(start: int, end: int, a: np.ndarray, b: np.ndarray, found: np.ndarray) -> None:
    np.matmul(a, b[:, start:end], out=found[:, start:end])


def _product(rows: tuple[np.ndarray, np.ndarray], columns: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return _matmul(rows[0], columns[0].T)


def _rounded(p: np.ndarray, row_scale: np.ndarray, column_scale: np.ndarray) -> Tensor:
    y = np.empty(p.shape, np.float32)
    _share(kernels.rescale, y.shape, p, row_scale, column_scale, y)
    return torch.from_numpy(y)


def _quantised_rows(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    q, scale = np.empty(x.shape), np.empty(len(x))
    _share(kernels.quantise_rows, x.shape, x, q, scale)
    return q, scale


def _quantised_columns(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    q, scale = np.empty(x.shape), np.empty((1, x.shape[1]))
    everything = (np.ones(len(x), np.bool_), np.array([0, len(x)]))
    _share(kernels.quantise_columns, x.T.shape, x, *everything, q, scale)
    return q, scale[0]


def _array(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().numpy()


def _share(kernel: Callable[..., None], shape: tuple[int, ...], *arguments: Any) -> None:
    """Call kernel(start, end, *arguments) for parts of range(shape[0]) on mode.n_threads() threads."""
    n_items, threads = shape[0], n_threads()
    if threads == 1 or math.prod(shape) < WORTH_A_THREAD:
        kernel(0, n_items, *arguments)
        return
    ends = [n_items * i // threads for i in range(threads + 1)]
    parts = [(start, end) for start, end in zip(ends, ends[1:], strict=False) if end > start]
    pool = _pool(threads)
    waiting = [pool.submit(kernel, start, end, *arguments) for start, end in parts[1:]]
    kernel(*parts[0], *arguments)
    for part in waiting:
        part.result()


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    threadpool_limits(1, user_api="blas")  # the library gets its threads from here
    return ThreadPoolExecutor(threads)
