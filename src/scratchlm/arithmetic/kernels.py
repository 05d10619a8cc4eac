"""The loops of fused.py, compiled by numba: one pass where plain torch needs ten.

Each kernel works on rows or columns `start` to `end`, so that threads share the work; none of this can change a bit.
numba follows IEEE 754 and contracts nothing unless told to. `_exactly` lets it reorder: used for sums of integers alone.
"""

import math

import numpy as np

from scratchlm.arithmetic.compile import compiled
from scratchlm.arithmetic.elementary import EXP_COEFFICIENTS, LN2, LN2_HIGH, LN2_LOW, LOG2_E, LOG_COEFFICIENTS
from scratchlm.arithmetic.integers import PRODUCT_BITS, SMALLEST_EXPONENT, SUM_BITS, VALUE_BITS, WEIGHT_BITS
from scratchlm.arithmetic.reference import (
    COLUMN_FACTOR,
    EPSILON,
    GELU_CUBE,
    GELU_SLOPE,
    IGNORED,
    ROW_FACTOR,
)

INFINITY_32, INFINITY_64 = 0x7F800000, 0x7FF << 52  # bits
ABSOLUTE_32, ABSOLUTE_64 = 0x7FFFFFFF, (1 << 63) - 1
EXP = tuple(EXP_COEFFICIENTS)
LOG = tuple(LOG_COEFFICIENTS)
HALF_ROOT = math.sqrt(0.5)


@compiled()
def _power(exponent):
    return np.int64((exponent + 1023) << 52).view(np.float64)


@compiled()
def _exponent(x):
    return max((np.float64(x).view(np.int64) >> 52) - 1022, SMALLEST_EXPONENT)


@compiled()
def _exp(x):
    if x < -700.0:
        x = -700.0
    if x > 700.0:
        x = 700.0
    n = np.rint(x * LOG2_E)
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    y = EXP[0]
    y = y * r + EXP[1]
    y = y * r + EXP[2]
    y = y * r + EXP[3]
    y = y * r + EXP[4]
    y = y * r + EXP[5]
    y = y * r + EXP[6]
    y = y * r + EXP[7]
    y = y * r + EXP[8]
    y = y * r + EXP[9]
    y = y * r + EXP[10]
    return y * np.int64((np.int64(np.int32(n)) + 1023) << 52).view(np.float64)


@compiled()
def _log(x):
    bits = np.float64(x).view(np.int64)
    n = (bits >> 52) - 1022
    m = np.int64((bits & ((1 << 52) - 1)) | (1022 << 52)).view(np.float64)
    if m < HALF_ROOT:
        m *= 2.0
        n -= 1
    z = (m - 1.0) / (m + 1.0)
    w = z * z
    y = LOG[0]
    for i in range(1, len(LOG)):
        y = y * w + LOG[i]
    return 2.0 * z * y + n * LN2


@compiled(reorder=True)
def _largest_32(bits):
    """The largest absolute value of float32 numbers, given as int32; NaN if one is NaN or infinite."""
    largest = np.int32(0)
    for k in range(len(bits)):
        largest = max(largest, bits[k] & np.int32(ABSOLUTE_32))
    if largest >= INFINITY_32:
        return np.nan
    return np.float64(np.int32(largest).view(np.float32))


@compiled(reorder=True)
def _largest_64(bits):
    largest = np.int64(0)
    for k in range(len(bits)):
        largest = max(largest, bits[k] & ABSOLUTE_64)
    if largest >= INFINITY_64:
        return np.nan
    return np.int64(largest).view(np.float64)


@compiled(reorder=True)
def _integer_squares(x, factor):
    """Σ round(x · factor)²."""
    found = 0.0
    for k in range(len(x)):
        q = np.rint(np.float64(x[k]) * factor)
        found += q * q
    return found


@compiled(reorder=True)
def _integer_sum(x, factor):
    """Σ round(x · factor)."""
    found = 0.0
    for k in range(len(x)):
        found += np.rint(x[k] * factor)
    return found


@compiled(reorder=True)
def _integer_magnitudes(x, factor):
    """Σ round(|x| · factor)."""
    found = 0.0
    for k in range(len(x)):
        found += np.rint(abs(x[k]) * factor)
    return found


@compiled()
def _row_sum(x):
    """integers.exact_sum of float64 numbers."""
    largest = _largest_64(x.view(np.int64))
    if math.isnan(largest):
        return np.nan
    exponent = _exponent(largest)
    return _integer_sum(x, _power(SUM_BITS - exponent)) * _power(exponent - SUM_BITS)


@compiled()
def quantise_rows(start, end, x, q, scale):
    """integers.quantise: (N, K) -> (N, K), (N,)."""
    for i in range(start, end):
        row, found = x[i], q[i]
        largest = _largest_32(row.view(np.int32))
        if math.isnan(largest):
            found[:] = np.nan
            scale[i] = 1.0
            continue
        exponent = _exponent(largest)
        squares = _integer_squares(row, _power(17 - exponent))
        exponent = exponent - 17 + ((_exponent(squares) + 1) >> 1)
        factor = _power(PRODUCT_BITS - exponent)
        for k in range(len(row)):
            found[k] = np.rint(np.float64(row[k]) * factor)
        scale[i] = _power(exponent - PRODUCT_BITS)


@compiled()
def quantise_columns(start, end, x, kept, ends, q, scale):
    """integers.quantise of the columns of (N, C), for each sequence by itself: -> (N, C), (sequences, C).

    Rows that are not `kept` count as zero. Sequence b is rows ends[b] to ends[b + 1].
    """
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
            factors[c] = _power(17 - _exponent(np.float64(np.int32(largest[c]).view(np.float32))))
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
                exponent = _exponent(np.float64(np.int32(largest[c]).view(np.float32)))
                exponent = exponent - 17 + ((_exponent(squares[c]) + 1) >> 1)
                factors[c] = _power(PRODUCT_BITS - exponent)
                scale[b, start + c] = _power(exponent - PRODUCT_BITS)
        for t in range(first, last):
            found = q[t, start:end]
            if kept[t]:
                row = x[t, start:end]
                for c in range(n):
                    found[c] = np.rint(np.float64(row[c]) * factors[c])
            else:
                found[:] = 0.0


@compiled()
def rescale(start, end, p, row_scale, column_scale, y):
    """p · row_scale · column_scale, rounded: (M, N) float64, (M,), (N,) -> (M, N) float32."""
    for i in range(start, end):
        row, found, factor = p[i], y[i], row_scale[i]
        for k in range(len(row)):
            found[k] = np.float32(row[k] * factor * column_scale[k])


@compiled()
def rescale_with_bias(start, end, p, row_scale, column_scale, bias, y):
    """The same, plus bias."""
    for i in range(start, end):
        row, found, factor = p[i], y[i], row_scale[i]
        for k in range(len(row)):
            found[k] = np.float32(row[k] * factor * column_scale[k]) + bias[k]


@compiled()
def accumulate(start, end, p, row_scale, column_scale, collected):
    """collected += p · row_scale · column_scale, in float64."""
    for i in range(start, end):
        row, found, factor = p[i], collected[i], row_scale[i]
        for k in range(len(row)):
            found[k] += row[k] * factor * column_scale[k]


@compiled()
def _column_factors(start, end, x, first, last, factors, scales):
    """How integers.quantise_for_sum scales columns of the rows first to last, up and back."""
    n = end - start
    scales[:] = 0.0
    for t in range(first, last):
        row = x[t, start:end]
        for c in range(n):
            magnitude = abs(np.float64(row[c]))
            scales[c] = magnitude if not magnitude <= scales[c] else scales[c]
    for c in range(n):
        finite = scales[c] < np.inf
        exponent = _exponent(scales[c]) if finite else 0
        factors[c] = _power(SUM_BITS - exponent) if finite else np.nan
        scales[c] = _power(exponent - SUM_BITS)


@compiled()
def add_column_sums(start, end, x, ends, collected):
    """reference.add_column_sums."""
    n = end - start
    factors, scales, sums = np.empty(n), np.empty(n), np.empty(n)
    for b in range(len(ends) - 1):
        _column_factors(start, end, x, ends[b], ends[b + 1], factors, scales)
        sums[:] = 0.0
        for t in range(ends[b], ends[b + 1]):
            row = x[t, start:end]
            for c in range(n):
                sums[c] += np.rint(np.float64(row[c]) * factors[c])
        for c in range(n):
            collected[start + c] += sums[c] * scales[c]


@compiled()
def add_rows(start, end, x, ends, unique, starts, places, collected):
    """reference.add_rows. unique: the ids of each sequence, from starts[b] on; places: (N,) of each row among them."""
    n = end - start
    factors, scales = np.empty(n), np.empty(n)
    for b in range(len(ends) - 1):
        _column_factors(start, end, x, ends[b], ends[b + 1], factors, scales)
        sums = np.zeros((starts[b + 1] - starts[b], n))
        for t in range(ends[b], ends[b + 1]):
            row, found = x[t, start:end], sums[places[t]]
            for c in range(n):
                found[c] += np.rint(np.float64(row[c]) * factors[c])
        for u in range(len(sums)):
            to = collected[unique[starts[b] + u], start:end]
            for c in range(n):
                to[c] += sums[u, c] * scales[c]


@compiled()
def _normalise(row, normal):
    """Write (x - mean) / deviation to `normal`, float64; return 1 / deviation."""
    C = len(row)
    for c in range(C):
        normal[c] = np.float64(row[c])
    mean = _row_sum(normal) * (1.0 / C)
    squares = np.empty(C)
    for c in range(C):
        normal[c] -= mean
        squares[c] = normal[c] * normal[c]
    reciprocal = 1.0 / math.sqrt(_row_sum(squares) * (1.0 / C) + EPSILON)
    for c in range(C):
        normal[c] *= reciprocal
    return reciprocal


@compiled()
def layer_norm(start, end, x, scale, shift, y):
    """reference.layer_norm."""
    normal = np.empty(x.shape[1])
    for i in range(start, end):
        _normalise(x[i], normal)
        found = y[i]
        for c in range(len(normal)):
            found[c] = np.float32(normal[c] * np.float64(scale[c]) + np.float64(shift[c]))


@compiled()
def layer_norm_gradients(start, end, gradient, x, scale, below, scale_rows):
    """reference.layer_norm_gradients."""
    C = x.shape[1]
    normal, inner, along = np.empty(C), np.empty(C), np.empty(C)
    for i in range(start, end):
        reciprocal = _normalise(x[i], normal)
        above, found, found_scale = gradient[i], below[i], scale_rows[i]
        for c in range(C):
            inner[c] = np.float64(above[c]) * np.float64(scale[c])
            along[c] = inner[c] * normal[c]
            found_scale[c] = np.float64(above[c]) * normal[c]
        mean = _row_sum(inner) * (1.0 / C)
        slope = _row_sum(along) * (1.0 / C)
        for c in range(C):
            found[c] = np.float32((inner[c] - mean - normal[c] * slope) * reciprocal)


@compiled()
def gelu(start, end, x, y):
    """reference.gelu of flat arrays."""
    for i in range(start, end):
        v = np.float64(x[i])
        u = GELU_SLOPE * (v + GELU_CUBE * (v * v * v))
        y[i] = np.float32(v * (1.0 / (1.0 + _exp(-2.0 * u))))


@compiled()
def gelu_gradient(start, end, gradient, x, below):
    """reference.gelu_gradient of flat arrays."""
    for i in range(start, end):
        v = np.float64(x[i])
        u = GELU_SLOPE * (v + GELU_CUBE * (v * v * v))
        s = 1.0 / (1.0 + _exp(-2.0 * u))
        slope = GELU_SLOPE * (1.0 + 3 * GELU_CUBE * (v * v))
        below[i] = np.float32(np.float64(gradient[i]) * (s + v * s * (1.0 - s) * (2.0 * slope)))


@compiled()
def quantise_values(start, end, x, q, factor):
    """The values of integers.weighted_sum: (N, D) -> (N, D), (N,)."""
    for i in range(start, end):
        row, found = x[i], q[i]
        largest = _largest_32(row.view(np.int32))
        if math.isnan(largest):
            found[:] = np.nan
            factor[i] = 1.0
            continue
        exponent = _exponent(largest)
        up = _power(VALUE_BITS - exponent)
        for k in range(len(row)):
            found[k] = np.rint(np.float64(row[k]) * up)
        factor[i] = _power(exponent) if largest > 0 else 0.0


@compiled()
def _quantise_by_sum(x, q):
    """integers.quantise_by_sum of a row; return its scale."""
    largest = _largest_64(x.view(np.int64))
    if math.isnan(largest):
        q[:] = np.nan
        return 1.0
    exponent = _exponent(largest)
    total = _integer_magnitudes(x, _power(20 - exponent))
    exponent = max(exponent - 20 + _exponent(total), SMALLEST_EXPONENT)
    up = _power(WEIGHT_BITS - exponent)
    for k in range(len(x)):
        q[k] = np.rint(x[k] * up)
    return _power(exponent - WEIGHT_BITS)


@compiled()
def attention_probabilities(start, end, p, query_scale, key_scale, n_visible, root, found):
    """Softmax of exact q · k / √D over the visible positions: (G T, S) float64, (G T,), (G, S), (G T,) -> (G T, S).

    G: a sequence and a head. root: 1 / √D.
    """
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
            scores[k] = _exp(scores[k] - largest)
        total = _row_sum(scores[:n])
        for k in range(n):
            probabilities[k] = np.float32(scores[k] / total)
        probabilities[n:] = 0.0


@compiled()
def attention_slopes(start, end, p, scales, factors, probabilities, n_visible, root, found):
    """The gradient of q · k from exact gradient · value, (G T, S) float64 -> (G T, S).

    scales: of gradients, (G T,), and of values, (G, S). factors: of dropout, (G T, S), or no rows.
    """
    gradient_scale, value_scale = scales
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
        total = _row_sum(along[:n])
        for k in range(n):
            slopes[k] = np.float32(np.float64(shares[k]) * (inner[k] - total) * root)
        slopes[n:] = 0.0


@compiled()
def fold_rows(start, end, weights, factors, n_visible, q, scale):
    """The weights of integers.weighted_sum: (G T, S), (G, S) -> (G T, S), (G T,); zero from n_visible (G T,) on."""
    T = len(weights) // len(factors)
    scaled = np.empty(weights.shape[1])
    for i in range(start, end):
        row, up, n = weights[i], factors[i // T], n_visible[i]
        for k in range(n):
            scaled[k] = np.float64(row[k]) * up[k]
        scale[i] = _quantise_by_sum(scaled[:n], q[i, :n])
        q[i, n:] = 0.0


@compiled()
def fold_columns(start, end, weights, factors, q, scale):
    """The same for weights of columns: (G, T, S), (G, T) -> (G, T, S), (G, S)."""
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
            ups[s] = _power(20 - (_exponent(largest[s]) if largest[s] < np.inf else 0))
        for t in range(T):
            row, factor = weights[g, t], factors[g, t]
            for s in range(S):
                totals[s] += np.rint(abs(np.float64(row[s]) * factor) * ups[s])
        for s in range(S):
            if largest[s] < np.inf:
                exponent = max(_exponent(largest[s]) - 20 + _exponent(totals[s]), SMALLEST_EXPONENT)
                ups[s] = _power(WEIGHT_BITS - exponent)
                scale[g, s] = _power(exponent - WEIGHT_BITS)
            else:
                ups[s] = np.nan
                scale[g, s] = 1.0
        for t in range(T):
            row, factor, found = weights[g, t], factors[g, t], q[g, t]
            for s in range(S):
                found[s] = np.rint(np.float64(row[s]) * factor * ups[s])


@compiled()
def cross_entropy(start, end, logits, targets, losses):
    """reference.cross_entropy."""
    exponentials = np.empty(logits.shape[1])
    for i in range(start, end):
        if targets[i] == IGNORED:
            losses[i] = 0.0
            continue
        largest = _exponentials(logits[i], exponentials)
        normaliser = _log(_row_sum(exponentials)) + largest
        losses[i] = np.float32(normaliser - np.float64(logits[i, targets[i]]))


@compiled()
def cross_entropy_gradient(start, end, gradient, logits, targets, below):
    """reference.cross_entropy_gradient."""
    exponentials = np.empty(logits.shape[1])
    for i in range(start, end):
        found, factor = below[i], np.float64(gradient[i])
        if targets[i] == IGNORED:
            found[:] = 0.0
            continue
        _exponentials(logits[i], exponentials)
        total = _row_sum(exponentials)
        for k in range(len(found)):
            found[k] = np.float32(exponentials[k] / total * factor)
        k = targets[i]
        found[k] = np.float32((exponentials[k] / total - 1.0) * factor)


@compiled()
def _exponentials(row, found):
    """e to the difference from the largest, which is returned."""
    largest = -np.inf
    for k in range(len(row)):
        value = np.float64(row[k])
        largest = value if not value <= largest else largest
    for k in range(len(row)):
        found[k] = _exp(np.float64(row[k]) - largest)
    return largest


@compiled()
def dropout_factors(start, end, rows, start_of_hash, threshold, factor, found):
    """reference.dropout_factors: (N,) row numbers -> (N, C) float32."""
    for i in range(start, end):
        base = _mix(np.uint64(start_of_hash) + np.uint64(rows[i]) * np.uint64(ROW_FACTOR))
        row = found[i]
        for c in range(len(row)):
            bits = _mix(base + np.uint64(c) * np.uint64(COLUMN_FACTOR))
            row[c] = factor if (bits >> np.uint64(40)) >= np.uint64(threshold) else np.float32(0.0)


@compiled()
def _mix(z):
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@compiled()
def scale(start, end, x, factor):
    """reference.scale of a flat array."""
    for i in range(start, end):
        x[i] = np.float32(np.float64(x[i]) * factor)


@compiled()
def adamw(start, end, weights, first, second, gradient, settings):
    """reference.adamw on flat arrays. settings: decay, beta1, beta2, step, correction, epsilon."""
    decay, beta1, beta2, step, correction, epsilon = settings
    for i in range(start, end):
        g = np.float64(gradient[i])
        m = np.float32(np.float64(first[i]) * beta1 + g * (1.0 - beta1))
        v = np.float32(np.float64(second[i]) * beta2 + (g * g) * (1.0 - beta2))
        update = step * np.float64(m) / (math.sqrt(np.float64(v)) * correction + epsilon)
        weights[i] = np.float32(np.float64(weights[i]) * decay - update)
        first[i] = m
        second[i] = v


@compiled()
def sums_of_squares(start, end, x, at_once, found):
    """integers.exact_sum of the squares of each `at_once` numbers of a flat float32 array: -> (pieces,) float64."""
    squares = np.empty(at_once)
    for i in range(start, end):
        piece = x[i * at_once : (i + 1) * at_once]
        for k in range(len(piece)):
            squares[k] = np.float64(piece[k]) * np.float64(piece[k])
        found[i] = _row_sum(squares[: len(piece)])
