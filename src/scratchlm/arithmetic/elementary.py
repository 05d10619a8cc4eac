"""Square root, and exponential, logarithm, sine and cosine of +, -, ×, ÷ and shifts of bits, each correctly rounded.

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
# Their sum is π/2; n HALF_PI_HIGH is exact for n below 2^23
HALF_PI_HIGH, HALF_PI_LOW = 1.570796325802803, 9.920935796805404e-10
SIN_COEFFICIENTS = [(-1) ** n / math.factorial(2 * n + 1) for n in range(8, -1, -1)]  # of x² in sin x / x
COS_COEFFICIENTS = [(-1) ** n / math.factorial(2 * n) for n in range(8, -1, -1)]


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
    return _polynomial(EXP_COEFFICIENTS, r) * power_of_two(torch.nan_to_num(n).to(torch.int64))


def log(x: Tensor) -> Tensor:
    """ln x of a positive, normal number: 2 artanh((m - 1) / (m + 1)) + n ln 2, where x = m 2^n; NaN and ∞ stay."""
    bits = x.contiguous().view(torch.int64)
    n = (bits >> 52) - 1022
    m = ((bits & ((1 << 52) - 1)) | (1022 << 52)).view(torch.float64)  # in [1/2, 1)
    small = m < HALF_ROOT
    m = torch.where(small, m * 2.0, m)
    n = n - small.to(torch.int64)
    z = (m - 1.0) / (m + 1.0)
    y = _polynomial(LOG_COEFFICIENTS, z * z)
    return torch.where(torch.isfinite(x), 2.0 * z * y + n.double() * LN2, x)


def sin_cos(x: Tensor) -> tuple[Tensor, Tensor]:
    """sin x and cos x, for |x| up to a million: x = n π/2 + r, and the power series of both at r."""
    n = torch.round(x * (2 / math.pi))
    r = (x - n * HALF_PI_HIGH) - n * HALF_PI_LOW
    square = r * r
    sine, cosine = r * _polynomial(SIN_COEFFICIENTS, square), _polynomial(COS_COEFFICIENTS, square)
    quarter = n.to(torch.int64) & 3
    swapped = quarter % 2 == 1
    first, second = torch.where(swapped, cosine, sine), torch.where(swapped, sine, cosine)
    return (
        torch.where(quarter >= 2, -first, first),
        torch.where((quarter == 1) | (quarter == 2), -second, second),
    )


def _polynomial(coefficients: list[float], x: Tensor) -> Tensor:
    """Highest power first, by Horner's rule."""
    y = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        y = y * x + coefficient
    return y
