"""The loops of attention in fused.py; see kernels.py."""

import math

import numpy as np

from scratchlm.arithmetic.compile import compiled
from scratchlm.arithmetic.integers import FEW, SMALLEST_EXPONENT, VALUE_BITS, WEIGHT_BITS
from scratchlm.arithmetic.kernels import (
    ABSOLUTE_64,
    INFINITY_64,
    exponent_of,
    exponentials,
    integer_magnitudes,
    largest_32,
    largest_64,
    power_of_two,
    product_of_integers,
    quantise_row,
    row_sum,
)


@compiled()
def quantise_value(row, found):
    """A row of integers.weighted_sum's values; return its factor."""
    largest = largest_32(row.view(np.int32))
    if math.isnan(largest):
        found[:] = np.nan
        return 1.0
    exponent = exponent_of(largest)
    up = power_of_two(VALUE_BITS - exponent)
    for k in range(len(row)):
        found[k] = np.rint(np.float64(row[k]) * up)
    return power_of_two(exponent) if largest > 0 else 0.0


@compiled()
def quantise_values(span, x, q, factor):
    """The values of integers.weighted_sum: (N, D) -> (N, D), (N,)."""
    start, end = span
    for i in range(start, end):
        factor[i] = quantise_value(x[i], q[i])


@compiled()
def quantise_by_sum(x):
    """integers.quantise_by_sum of a row, in place; return its scale."""
    largest = largest_64(x.view(np.int64))
    if math.isnan(largest):
        x[:] = np.nan
        return 1.0
    exponent = exponent_of(largest)
    total = integer_magnitudes(x, power_of_two(20 - exponent))
    exponent = max(exponent - 20 + exponent_of(total), SMALLEST_EXPONENT)
    up = power_of_two(WEIGHT_BITS - exponent)
    for k in range(len(x)):
        x[k] = np.rint(x[k] * up)
    return power_of_two(exponent - WEIGHT_BITS)


@compiled()
def quantise_columns_by_sum(q, scales):
    """The same for each column: (T, N), (N,)."""
    n = q.shape[1]
    largest, totals, up = np.zeros(n, np.int64), np.zeros(n), np.empty(n)
    for t in range(len(q)):
        bits = q[t].view(np.int64)
        for s in range(n):
            largest[s] = max(largest[s], bits[s] & ABSOLUTE_64)
    for s in range(n):
        up[s] = power_of_two(20 - exponent_of(np.int64(largest[s]).view(np.float64)))
    for t in range(len(q)):
        row = q[t]
        for s in range(n):
            totals[s] += np.rint(abs(row[s]) * up[s])
    for s in range(n):
        if largest[s] >= INFINITY_64:
            up[s], scales[s] = np.nan, 1.0
        else:
            exponent = exponent_of(np.int64(largest[s]).view(np.float64)) - 20 + exponent_of(totals[s])
            exponent = max(exponent, SMALLEST_EXPONENT)
            up[s], scales[s] = power_of_two(WEIGHT_BITS - exponent), power_of_two(exponent - WEIGHT_BITS)
    for t in range(len(q)):
        row = q[t]
        for s in range(n):
            row[s] = np.rint(row[s] * up[s])


@compiled()
def softmax(scores, found):
    """Of float64 scores, which are overwritten; zero for the rest of `found`."""
    exponentials(scores)
    total = row_sum(scores)
    for k in range(len(scores)):
        found[k] = np.float32(scores[k] / total)
    found[len(scores) :] = 0.0


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
        for k in range(n):
            scores[k] = np.float64(np.float32(row[k] * factor * factors[k] * root))
        softmax(scores[:n], probabilities)


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


@compiled(reorder=True)
def add_scaled_rows(factors, rows, found):
    """found += Σ factors[j] · rows[j]: of integers, (J,), (J, D) -> (D,)."""
    j = 0
    while j + 4 <= len(factors):
        f0, f1, f2, f3 = factors[j], factors[j + 1], factors[j + 2], factors[j + 3]
        r0, r1, r2, r3 = rows[j], rows[j + 1], rows[j + 2], rows[j + 3]
        for d in range(len(found)):
            found[d] += f0 * r0[d] + f1 * r1[d] + f2 * r2[d] + f3 * r3[d]
        j += 4
    while j < len(factors):
        f0, r0 = factors[j], rows[j]
        for d in range(len(found)):
            found[d] += f0 * r0[d]
        j += 1


@compiled()
def weighted_rows(span, weights, values, n_visible, found):
    """integers.weighted_sum, rounded: (G T, S), integers (G, S, D) and factors (G, S) -> (G T, D).

    Only the first n_visible (G T,) weights of a row are not zero.
    """
    start, end = span
    integers, factors = values
    D, T = integers.shape[2], len(weights) // len(factors)
    flat, scales, part, totals = np.empty(FEW * FEW), np.empty(FEW), np.empty((FEW, D)), np.empty((FEW, D))
    while start < end:
        up, rows = factors[start // T], integers[start // T]
        n = min(FEW, end - start, T - start % T)  # rows of one group
        totals[:n] = 0.0
        most = n_visible[start : start + n].max()
        for first in range(0, most, FEW):
            width = min(FEW, most - first)
            q = flat[: n * width].reshape(n, width)
            for r in range(n):
                m = min(width, max(0, n_visible[start + r] - first))
                row, factor, to = weights[start + r, first : first + m], up[first : first + m], q[r]
                for k in range(m):
                    to[k] = np.float64(row[k]) * factor[k]
                to[m:] = 0.0
                scales[r] = quantise_by_sum(to[:m])
            np.dot(q, rows[first : first + width], part[:n])
            add_scaled(part[:n], scales, totals)
        for r in range(n):
            for d in range(D):
                found[start + r, d] = np.float32(totals[r, d])
        start += n


@compiled()
def add_scaled(part, scales, totals):
    """Add sums of integers to totals: (N, D), (N,)."""
    for r in range(len(part)):
        for d in range(part.shape[1]):
            totals[r, d] += part[r, d] * scales[r] * 2.0**-VALUE_BITS


@compiled()
def attend_once(span, inputs, n_visible, found):
    """Attention of one query per sequence and head: (G, D), (G, S, D) twice -> (G, D), and the softmax, (G, S).

    Each key and value is rounded where it is used, in place of arrays of integers. Pays in decoding, LOG.md.
    """
    start, end = span
    query, keys, values, root = inputs
    contexts, probabilities = found
    S, D = keys.shape[1:]
    scores, q, key, rows = np.empty(S), np.empty(D), np.empty(D), np.empty((FEW, D))
    weights, part, total = np.empty(FEW), np.empty(D), np.empty(D)
    for i in range(start, end):
        n, factor = n_visible[i], quantise_row(query[i], q)
        for k in range(n):
            key_factor = quantise_row(keys[i, k], key)
            scores[k] = np.float64(np.float32(product_of_integers(q, key) * factor * key_factor * root))
        softmax(scores[:n], probabilities[i])
        total[:] = 0.0
        for first in range(0, n, FEW):
            m = min(FEW, n - first)
            for k in range(m):
                weights[k] = np.float64(probabilities[i, first + k]) * quantise_value(values[i, first + k], rows[k])
            scale = quantise_by_sum(weights[:m])
            part[:] = 0.0
            add_scaled_rows(weights[:m], rows[:m], part)
            for d in range(D):
                total[d] += part[d] * scale * 2.0**-VALUE_BITS
        for d in range(D):
            contexts[i, d] = np.float32(total[d])


@compiled()
def weighted_columns(span, weights, values, n_visible, found):
    """The same with transposed weights: (G, T, S), integers (G, T, D) and factors (G, T) -> (G, S, D)."""
    start, end = span
    integers, factors = values
    _, T, S = weights.shape
    D = integers.shape[2]
    flat, scales, part, totals = np.empty(S * FEW), np.empty(S), np.empty((S, D)), np.empty((S, D))
    for g in range(start, end):
        totals[:] = 0.0
        for first in range(0, T, FEW):
            m = min(FEW, T - first)
            n = n_visible[g, first : first + m].max()
            q = flat[: m * n].reshape(m, n)
            for t in range(m):
                row, factor, to = weights[g, first + t, :n], factors[g, first + t], q[t]
                for s in range(n):
                    to[s] = np.float64(row[s]) * factor
            quantise_columns_by_sum(q, scales)
            np.dot(q.T, integers[g, first : first + m], part[:n])
            add_scaled(part[:n], scales, totals)
        for s in range(S):
            for d in range(D):
                found[g, s, d] = np.float32(totals[s, d])
