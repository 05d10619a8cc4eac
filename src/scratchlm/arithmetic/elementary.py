"""Square root, and exponential and logarithm made of +, -, ×, ÷ and shifts of bits, each correctly rounded everywhere.

Those of torch and of the C library differ in the last bit between processors. float64 in and out; the relative error
is below 1e-11 (tests/unit/arithmetic/test_elementary.py).
"""

import math

import numpy as np
import torch
from torch import Tensor

from scratchlm.arithmetic.integers import power_of_two

LOG2_E = 1.4426950408889634
LN2_HIGH, LN2_LOW = 0.693147180369123816490, 1.90821492927058770002e-10  # their sum is ln 2; n LN2_HIGH is exact
LN2 = 0.6931471805599453
EXP_COEFFICIENTS = [1 / math.factorial(n) for n in range(10, -1, -1)]  # of exp's power series, highest first
LOG_COEFFICIENTS = [1 / n for n in range(17, 0, -2)]  # of artanh's
LARGEST_EXPONENT = 700.0
HALF_ROOT = 0.7071067811865476


def sqrt(x: Tensor) -> Tensor:
    """The square root, correctly rounded: float64.

    torch's own on a CPU calls MKL, whose last bit is wrong for one number in 70.
    """
    return torch.from_numpy(np.sqrt(x.numpy())) if x.device.type == "cpu" else torch.sqrt(x)


def exp(x: Tensor) -> Tensor:
    """e^x; below -700 it is e^-700 and above 700 e^700."""
    x = x.clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT)
    n = torch.round(x * LOG2_E)
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    y = torch.full_like(r, EXP_COEFFICIENTS[0])
    for coefficient in EXP_COEFFICIENTS[1:]:
        y = y * r + coefficient
    return y * power_of_two(torch.nan_to_num(n).to(torch.int64))


def log(x: Tensor) -> Tensor:
    """ln x of a positive, normal number: 2 artanh((m - 1) / (m + 1)) + n ln 2, where x = m 2^n; NaN and ∞ stay."""
    bits = x.contiguous().view(torch.int64)
    n = (bits >> 52) - 1022
    m = ((bits & ((1 << 52) - 1)) | (1022 << 52)).view(torch.float64)  # in [1/2, 1)
    small = m < HALF_ROOT
    m = torch.where(small, m * 2.0, m)
    n = n - small.to(torch.int64)
    z = (m - 1.0) / (m + 1.0)
    w = z * z
    y = torch.full_like(w, LOG_COEFFICIENTS[0])
    for coefficient in LOG_COEFFICIENTS[1:]:
        y = y * w + coefficient
    return torch.where(torch.isfinite(x), 2.0 * z * y + n.double() * LN2, x)
