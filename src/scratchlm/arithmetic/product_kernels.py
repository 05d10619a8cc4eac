"""The loops around products of integers, and of gradient sums, in fused.py; see kernels.py."""

import numpy as np

from scratchlm.arithmetic.compile import compiled
from scratchlm.arithmetic.integers import PRODUCT_BITS, SUM_BITS
from scratchlm.arithmetic.kernels import ABSOLUTE_32, INFINITY_32, exponent_of, power_of_two, quantise_row


@compiled()
def quantise_rows(span, x, q, scale):
    """integers.quantise: (N, K) -> (N, K), (N,)."""
    start, end = span
    for i in range(start, end):
        scale[i] = quantise_row(x[i], q[i])


@compiled()
def quantise_columns(span, x, kept, ends, found):
    """integers.quantise of the columns of (N, C), for each sequence by itself: -> (N, C), (sequences, C).

    Rows that are not `kept` count as zero. Sequence b is rows ends[b] to ends[b + 1].
    """
    start, end = span
    q, scale = found
    n = end - start
    largest, factors, squares = np.empty(n, np.int32), np.empty(n), np.empty(n)
    for b in range(len(ends) - 1):
        first, last = ends[b], ends[b + 1]
        largest[:] = 0
        squares[:] = 0.0
        for t in range(first, last):
            if kept[t]:
                bits = x[t, start:end].view(np.int32)
                for c in range(n):
                    largest[c] = max(largest[c], bits[c] & np.int32(ABSOLUTE_32))
        for c in range(n):
            factors[c] = power_of_two(17 - exponent_of(np.float64(np.int32(largest[c]).view(np.float32))))
        for t in range(first, last):
            if kept[t]:
                row = x[t, start:end]
                for c in range(n):
                    rounded = np.rint(np.float64(row[c]) * factors[c])
                    squares[c] += rounded * rounded
        for c in range(n):
            if largest[c] >= INFINITY_32:
                factors[c] = np.nan
                scale[b, start + c] = 1.0
            else:
                exponent = exponent_of(np.float64(np.int32(largest[c]).view(np.float32)))
                exponent = exponent - 17 + ((exponent_of(squares[c]) + 1) >> 1)
                factors[c] = power_of_two(PRODUCT_BITS - exponent)
                scale[b, start + c] = power_of_two(exponent - PRODUCT_BITS)
        for t in range(first, last):
            to = q[t, start:end]
            if kept[t]:
                row = x[t, start:end]
                for c in range(n):
                    to[c] = np.rint(np.float64(row[c]) * factors[c])
            else:
                to[:] = 0.0


@compiled()
def rescale(span, p, row_scale, column_scale, y):
    """p · row_scale · column_scale, rounded: (M, N) float64, (M,), (N,) -> (M, N) float32."""
    start, end = span
    for i in range(start, end):
        row, found, factor = p[i], y[i], row_scale[i]
        for k in range(len(row)):
            found[k] = np.float32(row[k] * factor * column_scale[k])


@compiled()
def rescale_with_bias(span, p, row_scale, column_scale, bias, y):
    """The same, plus bias."""
    start, end = span
    for i in range(start, end):
        row, found, factor = p[i], y[i], row_scale[i]
        for k in range(len(row)):
            found[k] = np.float32(row[k] * factor * column_scale[k]) + bias[k]


@compiled()
def accumulate(span, p, row_scale, column_scale, collected):
    """collected += p · row_scale · column_scale, in float64."""
    start, end = span
    for i in range(start, end):
        row, found, factor = p[i], collected[i], row_scale[i]
        for k in range(len(row)):
            found[k] += row[k] * factor * column_scale[k]


@compiled()
def column_factors(span, x, factors, scales):
    """How integers.quantise_for_sum scales the columns of x, up and back."""
    start, end = span
    n = end - start
    scales[:] = 0.0
    for t in range(len(x)):
        row = x[t, start:end]
        for c in range(n):
            magnitude = abs(np.float64(row[c]))
            scales[c] = magnitude if magnitude > scales[c] or magnitude != magnitude else scales[c]
    for c in range(n):
        finite = scales[c] < np.inf
        exponent = exponent_of(scales[c]) if finite else 0
        factors[c] = power_of_two(SUM_BITS - exponent) if finite else np.nan
        scales[c] = power_of_two(exponent - SUM_BITS)


@compiled()
def add_column_sums(span, x, ends, collected):
    """reference.add_column_sums."""
    start, end = span
    n = end - start
    factors, scales, sums = np.empty(n), np.empty(n), np.empty(n)
    for b in range(len(ends) - 1):
        column_factors(span, x[ends[b] : ends[b + 1]], factors, scales)
        sums[:] = 0.0
        for t in range(ends[b], ends[b + 1]):
            row = x[t, start:end]
            for c in range(n):
                sums[c] += np.rint(np.float64(row[c]) * factors[c])
        for c in range(n):
            collected[start + c] += sums[c] * scales[c]


@compiled()
def add_rows(span, x, ends, ids, collected):
    """reference.add_rows.

    ids: those of each sequence without repetition, from starts[b] on; starts; and the place of each row among them.
    """
    start, end = span
    unique, starts, places = ids
    n = end - start
    factors, scales = np.empty(n), np.empty(n)
    for b in range(len(ends) - 1):
        column_factors(span, x[ends[b] : ends[b + 1]], factors, scales)
        sums = np.zeros((starts[b + 1] - starts[b], n))
        for t in range(ends[b], ends[b + 1]):
            row, found = x[t, start:end], sums[places[t]]
            for c in range(n):
                found[c] += np.rint(np.float64(row[c]) * factors[c])
        for u in range(len(sums)):
            to = collected[unique[starts[b] + u], start:end]
            for c in range(n):
                to[c] += sums[u, c] * scales[c]
