"""The loops of attention in fused.py; see kernels.py."""

import math

import numpy as np

from scratchlm.arithmetic.compile import compiled
from scratchlm.arithmetic.integers import SMALLEST_EXPONENT, VALUE_BITS, WEIGHT_BITS
from scratchlm.arithmetic.kernels import (
    exp,
    exponent_of,
    integer_magnitudes,
    largest_32,
    largest_64,
    power_of_two,
    row_sum,
)


@compiled()
def quantise_values(span, x, q, factor):
    """The values of integers.weighted_sum: (N, D) -> (N, D), (N,)."""
    start, end = span
    for i in range(start, end):
        row, found = x[i], q[i]
        largest = largest_32(row.view(np.int32))
        if math.isnan(largest):
            found[:] = np.nan
            factor[i] = 1.0
            continue
        exponent = exponent_of(largest)
        up = power_of_two(VALUE_BITS - exponent)
        for k in range(len(row)):
            found[k] = np.rint(np.float64(row[k]) * up)
        factor[i] = power_of_two(exponent) if largest > 0 else 0.0


@compiled()
def quantise_by_sum(x, q):
    """integers.quantise_by_sum of a row; return its scale."""
    largest = largest_64(x.view(np.int64))
    if math.isnan(largest):
        q[:] = np.nan
        return 1.0
    exponent = exponent_of(largest)
    total = integer_magnitudes(x, power_of_two(20 - exponent))
    exponent = max(exponent - 20 + exponent_of(total), SMALLEST_EXPONENT)
    up = power_of_two(WEIGHT_BITS - exponent)
    for k in range(len(x)):
        q[k] = np.rint(x[k] * up)
    return power_of_two(exponent - WEIGHT_BITS)


@compiled()
def attention_probabilities(span, p, scales, n_visible, found):
    """Softmax of exact q · k / √D over the visible positions: (G T, S) float64, (G T,), (G, S), (G T,) -> (G T, S).

    G: a sequence and a head. scales: of queries, of keys, and 1 / √D.
    """
    start, end = span
    query_scale, key_scale, root = scales
    S = p.shape[1]
    T = len(p) // len(key_scale)
    scores = np.empty(S)
    for i in range(start, end):
        row, factors, factor, n, probabilities = p[i], key_scale[i // T], query_scale[i], n_visible[i], found[i]
        largest = -np.inf
        for k in range(n):
            scores[k] = np.float64(np.float32(row[k] * factor * factors[k] * root))
        for k in range(n):
            largest = scores[k] if not scores[k] <= largest else largest
        for k in range(n):
            scores[k] = exp(scores[k] - largest)
        total = row_sum(scores[:n])
        for k in range(n):
            probabilities[k] = np.float32(scores[k] / total)
        probabilities[n:] = 0.0


@compiled()
def attention_slopes(span, p, scales, saved, found):
    """The gradient of q · k from exact gradient · value, (G T, S) float64 -> (G T, S).

    scales: of gradients, (G T,), of values, (G, S), and 1 / √D. saved: probabilities, n_visible, and dropout's factors,
    (G T, S) or no rows.
    """
    start, end = span
    gradient_scale, value_scale, root = scales
    probabilities, n_visible, factors = saved
    S = p.shape[1]
    T = len(p) // len(value_scale)
    inner, along = np.empty(S), np.empty(S)
    for i in range(start, end):
        row, others, factor, n = p[i], value_scale[i // T], gradient_scale[i], n_visible[i]
        shares, slopes = probabilities[i], found[i]
        for k in range(n):
            inner[k] = np.float64(np.float32(row[k] * factor * others[k]))
        if len(factors):
            for k in range(n):
                inner[k] = np.float64(np.float32(inner[k]) * factors[i, k])
        for k in range(n):
            along[k] = inner[k] * np.float64(shares[k])
        total = row_sum(along[:n])
        for k in range(n):
            slopes[k] = np.float32(np.float64(shares[k]) * (inner[k] - total) * root)
        slopes[n:] = 0.0


@compiled()
def fold_rows(span, weights, factors, n_visible, q, scale):
    """The weights of integers.weighted_sum: (G T, S), (G, S) -> (G T, S), (G T,); zero from n_visible (G T,) on."""
    start, end = span
    T = len(weights) // len(factors)
    scaled = np.empty(weights.shape[1])
    for i in range(start, end):
        row, up, n = weights[i], factors[i // T], n_visible[i]
        for k in range(n):
            scaled[k] = np.float64(row[k]) * up[k]
        scale[i] = quantise_by_sum(scaled[:n], q[i, :n])
        q[i, n:] = 0.0


@compiled()
def fold_columns(span, weights, factors, q, scale):
    """The same for weights of columns: (G, T, S), (G, T) -> (G, T, S), (G, S)."""
    start, end = span
    _, T, S = weights.shape
    largest, ups, totals = np.empty(S), np.empty(S), np.empty(S)
    for g in range(start, end):
        largest[:] = 0.0
        totals[:] = 0.0
        for t in range(T):
            row, factor = weights[g, t], factors[g, t]
            for s in range(S):
                magnitude = abs(np.float64(row[s]) * factor)
                largest[s] = magnitude if not magnitude <= largest[s] else largest[s]
        for s in range(S):
            ups[s] = power_of_two(20 - (exponent_of(largest[s]) if largest[s] < np.inf else 0))
        for t in range(T):
            row, factor = weights[g, t], factors[g, t]
            for s in range(S):
                totals[s] += np.rint(abs(np.float64(row[s]) * factor) * ups[s])
        for s in range(S):
            if largest[s] < np.inf:
                exponent = max(exponent_of(largest[s]) - 20 + exponent_of(totals[s]), SMALLEST_EXPONENT)
                ups[s] = power_of_two(WEIGHT_BITS - exponent)
                scale[g, s] = power_of_two(exponent - WEIGHT_BITS)
            else:
                ups[s] = np.nan
                scale[g, s] = 1.0
        for t in range(T):
            row, factor, found = weights[g, t], factors[g, t], q[g, t]
            for s in range(S):
                found[s] = np.rint(np.float64(row[s]) * factor * ups[s])
