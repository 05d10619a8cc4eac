"""The loops of the norms, GELU, SwiGLU, cross-entropy, dropout and AdamW in fused.py; see kernels.py."""

import math

import numpy as np

from scratchlm.arithmetic.compile import compiled
from scratchlm.arithmetic.kernels import exp, exponentials, log, row_sum
from scratchlm.arithmetic.reference import COLUMN_FACTOR, EPSILON, GELU_CUBE, GELU_SLOPE, IGNORED, ROW_FACTOR


@compiled()
def widen(row, found):
    for k in range(len(row)):
        found[k] = np.float64(row[k])


@compiled()
def normalise(row, normal):
    """Write (x - mean) / deviation to `normal`, float64; return 1 / deviation."""
    C = len(row)
    widen(row, normal)
    mean = row_sum(normal) * (1.0 / C)
    squares = np.empty(C)
    for c in range(C):
        normal[c] -= mean
        squares[c] = normal[c] * normal[c]
    reciprocal = 1.0 / math.sqrt(row_sum(squares) * (1.0 / C) + EPSILON)
    for c in range(C):
        normal[c] *= reciprocal
    return reciprocal


@compiled()
def layer_norm(span, x, scale, shift, y):
    """reference.layer_norm."""
    start, end = span
    normal = np.empty(x.shape[1])
    for i in range(start, end):
        normalise(x[i], normal)
        found = y[i]
        for c in range(len(normal)):
            found[c] = np.float32(normal[c] * np.float64(scale[c]) + np.float64(shift[c]))


@compiled()
def layer_norm_gradients(span, gradient, x, scale, found):
    """reference.layer_norm_gradients."""
    start, end = span
    below, scale_rows = found
    C = x.shape[1]
    normal, inner, along = np.empty(C), np.empty(C), np.empty(C)
    for i in range(start, end):
        reciprocal = normalise(x[i], normal)
        above, to, to_scale = gradient[i], below[i], scale_rows[i]
        for c in range(C):
            inner[c] = np.float64(above[c]) * np.float64(scale[c])
            along[c] = inner[c] * normal[c]
            to_scale[c] = np.float64(above[c]) * normal[c]
        mean = row_sum(inner) * (1.0 / C)
        slope = row_sum(along) * (1.0 / C)
        for c in range(C):
            to[c] = np.float32((inner[c] - mean - normal[c] * slope) * reciprocal)


@compiled()
def reciprocal_of_size(row, epsilon, squares):
    """1 / √(mean of the squares + ε); `squares` is room for C numbers."""
    C = len(row)
    for c in range(C):
        squares[c] = np.float64(row[c]) * np.float64(row[c])
    return 1.0 / math.sqrt(row_sum(squares) * (1.0 / C) + epsilon)


@compiled()
def rms_norm(span, x, scale, epsilon, y):
    """reference.rms_norm."""
    start, end = span
    squares = np.empty(x.shape[1])
    for i in range(start, end):
        row, found = x[i], y[i]
        reciprocal = reciprocal_of_size(row, epsilon, squares)
        for c in range(len(squares)):
            found[c] = np.float32(np.float64(row[c]) * reciprocal * np.float64(scale[c]))


@compiled()
def rms_norm_gradients(span, gradient, x, scale, epsilon, found):
    """reference.rms_norm_gradients."""
    start, end = span
    below, scale_rows = found
    C = x.shape[1]
    normal, inner, along = np.empty(C), np.empty(C), np.empty(C)
    for i in range(start, end):
        row, above, to, to_scale = x[i], gradient[i], below[i], scale_rows[i]
        reciprocal = reciprocal_of_size(row, epsilon, along)
        for c in range(C):
            normal[c] = np.float64(row[c]) * reciprocal
            inner[c] = np.float64(above[c]) * np.float64(scale[c])
            along[c] = inner[c] * normal[c]
            to_scale[c] = np.float64(above[c]) * normal[c]
        slope = row_sum(along) * (1.0 / C)
        for c in range(C):
            to[c] = np.float32((inner[c] - normal[c] * slope) * reciprocal)


@compiled()
def gelu(span, x, y):
    """reference.gelu of flat arrays."""
    start, end = span
    x, y = x[start:end], y[start:end]  # so that no index can be negative, which LLVM would check at each step
    for i in range(len(x)):
        v = np.float64(x[i])
        u = GELU_SLOPE * (v + GELU_CUBE * (v * v * v))
        y[i] = np.float32(v * (1.0 / (1.0 + exp(-2.0 * u))))


@compiled()
def gelu_gradient(span, gradient, x, below):
    """reference.gelu_gradient of flat arrays."""
    start, end = span
    gradient, x, below = gradient[start:end], x[start:end], below[start:end]
    for i in range(len(x)):
        v = np.float64(x[i])
        u = GELU_SLOPE * (v + GELU_CUBE * (v * v * v))
        s = 1.0 / (1.0 + exp(-2.0 * u))
        slope = GELU_SLOPE * (1.0 + 3 * GELU_CUBE * (v * v))
        below[i] = np.float32(np.float64(gradient[i]) * (s + v * s * (1.0 - s) * (2.0 * slope)))


@compiled()
def swiglu(span, x, y):
    """reference.swiglu: (N, 2 C) -> (N, C)."""
    start, end = span
    C = y.shape[1]
    for i in range(start, end):
        gates, ups, found = x[i, :C], x[i, C:], y[i]
        for c in range(C):
            gate = np.float64(gates[c])
            found[c] = np.float32(gate * (1.0 / (1.0 + exp(-gate))) * np.float64(ups[c]))


@compiled()
def swiglu_gradient(span, gradient, x, below):
    """reference.swiglu_gradient."""
    start, end = span
    C = gradient.shape[1]
    for i in range(start, end):
        gates, ups, above = x[i, :C], x[i, C:], gradient[i]
        to_gates, to_ups = below[i, :C], below[i, C:]
        for c in range(C):
            gate, g = np.float64(gates[c]), np.float64(above[c])
            s = 1.0 / (1.0 + exp(-gate))
            to_gates[c] = np.float32(g * np.float64(ups[c]) * (s + gate * s * (1.0 - s)))
            to_ups[c] = np.float32(g * (gate * s))


@compiled()
def cross_entropy(span, logits, targets, losses):
    """reference.cross_entropy."""
    start, end = span
    e = np.empty(logits.shape[1])
    for i in range(start, end):
        if targets[i] == IGNORED:
            losses[i] = 0.0
            continue
        widen(logits[i], e)
        largest = exponentials(e)
        normaliser = log(row_sum(e)) + largest
        losses[i] = np.float32(normaliser - np.float64(logits[i, targets[i]]))


@compiled()
def cross_entropy_gradient(span, gradient, logits, targets, below):
    """reference.cross_entropy_gradient."""
    start, end = span
    e = np.empty(logits.shape[1])
    for i in range(start, end):
        found, factor = below[i], np.float64(gradient[i])
        if targets[i] == IGNORED:
            found[:] = 0.0
            continue
        widen(logits[i], e)
        exponentials(e)
        total = row_sum(e)
        for k in range(len(found)):
            found[k] = np.float32(e[k] / total * factor)
        k = targets[i]
        found[k] = np.float32((e[k] / total - 1.0) * factor)


@compiled()
def dropout_factors(span, rows, start_of_hash, threshold, factor, found):
    """reference.dropout_factors: (N,) row numbers -> (N, C) float32."""
    start, end = span
    for i in range(start, end):
        base = mix(np.uint64(start_of_hash) + np.uint64(rows[i]) * np.uint64(ROW_FACTOR))
        row = found[i]
        for c in range(len(row)):
            bits = mix(base + np.uint64(c) * np.uint64(COLUMN_FACTOR))
            row[c] = factor if (bits >> np.uint64(40)) >= np.uint64(threshold) else np.float32(0.0)


@compiled()
def mix(z):
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@compiled()
def rounded_sum(span, first, second, found):
    """reference.rounded_sum of flat arrays; `second` is empty if there is none."""
    start, end = span
    first, second, found = first[start:end], second[start:end], found[start:end]
    if len(second):
        for i in range(len(found)):
            found[i] = np.float32(first[i] + second[i])
    else:
        for i in range(len(found)):
            found[i] = np.float32(first[i])


@compiled()
def scale(span, x, factor):
    """reference.scale of a flat array."""
    x = x[span[0] : span[1]]
    for i in range(len(x)):
        x[i] = np.float32(np.float64(x[i]) * factor)


@compiled()
def adamw(span, weights, first, second, gradient, settings):
    """reference.adamw on flat arrays. settings: decay, beta1, beta2, step, correction, epsilon."""
    start, end = span
    weights, first, second, gradient = weights[start:end], first[start:end], second[start:end], gradient[start:end]
    decay, beta1, beta2, step, correction, epsilon = settings
    for i in range(len(weights)):
        g = np.float64(gradient[i])
        m = np.float32(np.float64(first[i]) * beta1 + g * (1.0 - beta1))
        v = np.float32(np.float64(second[i]) * beta2 + (g * g) * (1.0 - beta2))
        update = step * np.float64(m) / (math.sqrt(np.float64(v)) * correction + epsilon)
        weights[i] = np.float32(np.float64(weights[i]) * decay - update)
        first[i] = m
        second[i] = v


@compiled()
def sums_of_squares(span, x, at_once, found):
    """integers.exact_sum of the squares of each `at_once` numbers of a flat float32 array: -> (pieces,) float64."""
    start, end = span
    squares = np.empty(at_once)
    for i in range(start, end):
        piece = x[i * at_once : (i + 1) * at_once]
        for k in range(len(piece)):
            squares[k] = np.float64(piece[k]) * np.float64(piece[k])
        found[i] = row_sum(squares[: len(piece)])
