"""The loops of fused.py, compiled by numba: one pass where plain torch needs ten.

Each kernel works on rows or columns `start` to `end`, so that threads share the work; none of this can change a bit.
numba follows IEEE 754 and contracts nothing unless told to. `reorder` lets it; see compile.py.
"""

import math

import numpy as np

from scratchlm.arithmetic.compile import compiled
from scratchlm.arithmetic.elementary import EXP_COEFFICIENTS, LN2, LN2_HIGH, LN2_LOW, LOG2_E, LOG_COEFFICIENTS
from scratchlm.arithmetic.integers import PRODUCT_BITS, SMALLEST_EXPONENT, SUM_BITS

INFINITY_32, INFINITY_64 = 0x7F800000, 0x7FF << 52  # bits
ABSOLUTE_32, ABSOLUTE_64 = 0x7FFFFFFF, (1 << 63) - 1
EXP = tuple(EXP_COEFFICIENTS)
LOG = tuple(LOG_COEFFICIENTS)
HALF_ROOT = math.sqrt(0.5)


@compiled()
def power_of_two(exponent):
    return np.int64((exponent + 1023) << 52).view(np.float64)


@compiled()
def exponent_of(x):
    return max((np.float64(x).view(np.int64) >> 52) - 1022, SMALLEST_EXPONENT)


@compiled()
def exp(x):
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
def log(x):
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
    return 2.0 * z * y + n * LN2 if x < np.inf else x


@compiled(reorder=True)
def largest_32(bits):
    """The largest absolute value of float32 numbers, given as int32; NaN if one is NaN or infinite."""
    largest = np.int32(0)
    for k in range(len(bits)):
        largest = max(largest, bits[k] & np.int32(ABSOLUTE_32))
    if largest >= INFINITY_32:
        return np.nan
    return np.float64(np.int32(largest).view(np.float32))


@compiled(reorder=True)
def largest_64(bits):
    largest = np.int64(0)
    for k in range(len(bits)):
        largest = max(largest, bits[k] & ABSOLUTE_64)
    if largest >= INFINITY_64:
        return np.nan
    return np.int64(largest).view(np.float64)


@compiled()
def exponentials(x):
    """e to the difference from the largest, in place; return the largest, NaN if one is. float64.

    The maximum is that of integers in the same order, because LLVM finds the one of floats, which may be NaN, serially.
    """
    bits = x.view(np.int64)
    highest, lowest = ~np.int64(ABSOLUTE_64), np.int64(ABSOLUTE_64)
    for k in range(len(bits)):
        key = bits[k] ^ ((bits[k] >> 63) & ABSOLUTE_64)
        highest, lowest = max(highest, key), min(lowest, key)
    if highest > INFINITY_64 or lowest < ~INFINITY_64:
        x[:] = np.nan
        return np.nan
    largest = np.int64(highest ^ ((highest >> 63) & ABSOLUTE_64)).view(np.float64)
    for k in range(len(x)):
        x[k] = exp(x[k] - largest)
    return largest


@compiled(reorder=True)
def integer_squares(x, factor):
    """Σ round(x · factor)²."""
    found = 0.0
    for k in range(len(x)):
        q = np.rint(np.float64(x[k]) * factor)
        found += q * q
    return found


@compiled(reorder=True)
def integer_sum(x, factor):
    """Σ round(x · factor)."""
    found = 0.0
    for k in range(len(x)):
        found += np.rint(x[k] * factor)
    return found


@compiled(reorder=True)
def integer_magnitudes(x, factor):
    """Σ round(|x| · factor)."""
    found = 0.0
    for k in range(len(x)):
        found += np.rint(abs(x[k]) * factor)
    return found


@compiled(reorder=True)
def product_of_integers(a, b):
    """Σ a b of two rows."""
    found = 0.0
    for k in range(len(a)):
        found += a[k] * b[k]
    return found


@compiled()
def row_sum(x):
    """integers.exact_sum of float64 numbers."""
    largest = largest_64(x.view(np.int64))
    if math.isnan(largest):
        return np.nan
    exponent = exponent_of(largest)
    return integer_sum(x, power_of_two(SUM_BITS - exponent)) * power_of_two(exponent - SUM_BITS)


@compiled()
def quantise_row(row, found):
    """integers.quantise of one row; return its scale."""
    largest = largest_32(row.view(np.int32))
    if math.isnan(largest):
        found[:] = np.nan
        return 1.0
    exponent = exponent_of(largest)
    squares = integer_squares(row, power_of_two(17 - exponent))
    exponent = exponent - 17 + ((exponent_of(squares) + 1) >> 1)
    factor = power_of_two(PRODUCT_BITS - exponent)
    for k in range(len(row)):
        found[k] = np.rint(np.float64(row[k]) * factor)
    return power_of_two(exponent - PRODUCT_BITS)
