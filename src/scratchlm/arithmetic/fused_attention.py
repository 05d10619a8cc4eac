"""Attention of reference.py for a CPU, equal to the bit; see fused.py."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from scratchlm.arithmetic import attention_kernels, product_kernels
from scratchlm.arithmetic.sharing import array, share

NONE = np.empty((0, 0), np.float32)


def attention(
    query: Tensor, key: Tensor, value: Tensor, n_visible: Tensor, factors: Tensor | None
) -> tuple[Tensor, Tensor]:
    (B, H, T, D), S = query.shape, key.shape[2]
    visible = _visible(n_visible, query.shape)
    if T == 1 and factors is None:
        return _attend_once(query, key, value, visible)
    (q_query, query_scale), (q_key, key_scale) = (_grouped(product_kernels.quantise_rows, x) for x in (query, key))
    p = _batch_product(q_query, q_key.transpose(0, 2, 1)).reshape(-1, S)
    found = np.empty((B * H * T, S), np.float32)
    arrays = (p, (query_scale.reshape(-1), key_scale, 1.0 / math.sqrt(D)), visible, found)
    share(attention_kernels.attention_probabilities, found.shape, *arrays)
    weights = found if factors is None else found * array(factors).reshape(-1, S)
    return _weighted_sum(weights, value, visible), torch.from_numpy(found).view(B, H, T, S)


def _attend_once(query: Tensor, key: Tensor, value: Tensor, visible: np.ndarray) -> tuple[Tensor, Tensor]:
    """The same for one query per sequence and head."""
    B, H, S, D = key.shape
    found = np.empty((B * H, D), np.float32), np.empty((B * H, S), np.float32)
    inputs = (*(array(x.flatten(0, 1)) for x in (query[:, :, 0], key, value)), 1.0 / math.sqrt(D))
    share(attention_kernels.attend_once, (B * H, S, D), inputs, visible, found)
    context, probabilities = map(torch.from_numpy, found)
    return context.view(B, H, 1, D), probabilities.view(B, H, 1, S)


def attention_gradients(
    gradient: Tensor, inputs: tuple[Tensor, Tensor, Tensor], saved: tuple[Tensor, Tensor], factors: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = inputs
    (B, H, T, D), S = query.shape, key.shape[2]
    visible = _visible(saved[1], query.shape)
    shares = array(saved[0]).reshape(-1, S)
    dropped = NONE if factors is None else array(factors).reshape(-1, S)
    (q_gradient, gradient_scale), (q_value, value_scale) = (
        _grouped(product_kernels.quantise_rows, x) for x in (gradient, value)
    )
    p = _batch_product(q_gradient, q_value.transpose(0, 2, 1)).reshape(-1, S)
    slopes = np.empty((B * H * T, S), np.float32)
    scales = (gradient_scale.reshape(-1), value_scale, 1.0 / math.sqrt(D))
    arrays = (p, scales, (shares, visible, dropped), slopes)
    share(attention_kernels.attention_slopes, slopes.shape, *arrays)
    weights = shares * dropped if len(dropped) else shares
    return (
        _weighted_sum(slopes, key, visible),
        _column_sum(slopes, query, visible),
        _column_sum(weights, gradient, visible),
    )


def _weighted_sum(weights: np.ndarray, values: Tensor, visible: np.ndarray) -> Tensor:
    """integers.weighted_sum, rounded: (B H T, S), (B, H, S, D) -> (B, H, T, D)."""
    B, H, _, D = values.shape
    found = np.empty((len(weights), D), np.float32)
    work = (*weights.shape, D)
    share(
        attention_kernels.weighted_rows,
        work,
        weights,
        _grouped(attention_kernels.quantise_values, values),
        visible,
        found,
    )
    return torch.from_numpy(found).view(B, H, -1, D)


def _column_sum(weights: np.ndarray, values: Tensor, visible: np.ndarray) -> Tensor:
    """The same with transposed weights: (B H T, S), (B, H, T, D) -> (B, H, S, D)."""
    (B, H, T, D), S = values.shape, weights.shape[1]
    found = np.empty((B * H, S, D), np.float32)
    rows = _grouped(attention_kernels.quantise_values, values)
    arrays = (weights.reshape(-1, T, S), rows, visible.reshape(-1, T), found)
    share(attention_kernels.weighted_columns, (B * H, T * S * D), *arrays)
    return torch.from_numpy(found).view(B, H, S, D)


def _grouped(quantise: Callable[..., None], x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Integers and scales of rows, (B, H, T, D) -> (B H, T, D), (B H, T)."""
    B, H, T, D = x.shape
    q, scale = np.empty((B * H * T, D)), np.empty(B * H * T)
    share(quantise, q.shape, array(x).reshape(-1, D), q, scale)
    return q.reshape(B * H, T, D), scale.reshape(B * H, T)


def _batch_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(G, M, K), (G, K, N) -> (G, M, N), float64 integers."""
    found = np.empty((*a.shape[:2], b.shape[2]))
    share(_batch_part, (len(a), found[0].size * a.shape[2]), a, b, found)
    return found


def _batch_part(span: tuple[int, int], a: np.ndarray, b: np.ndarray, found: np.ndarray) -> None:
    start, end = span
    np.matmul(a[start:end], b[start:end], out=found[start:end])


def _visible(n_visible: Tensor, shape: torch.Size) -> np.ndarray:
    """(B or 1, T) -> (B H T,)."""
    B, H, T, _ = shape
    return n_visible[:, None].expand(B, H, T).reshape(-1).numpy()
