"""Sums whose rounding cannot depend on their order: the foundation of precision `exact`.

A float64 sum of integers is exact as long as no partial sum exceeds 2^53. Then it is the same in any order, by any
library, on any number of threads. So each operand is first rounded to integers times a power of two, its scale:

    a ≈ s_a q_a and b ≈ s_b q_b with ‖q_a‖ ≤ 2^26 and ‖q_b‖ ≤ 2^26  =>  Σ|q_a q_b| ≤ ‖q_a‖ ‖q_b‖ ≤ 2^52 (Cauchy-Schwarz)

and a · b ≈ s_a s_b Σ q_a q_b, where the sum is exact. A scale depends on its own row alone, so padding, the other
rows of a batch and later tokens change nothing. NaN or infinity in a row makes its results NaN.
The functions take any float dtype and device that has float64, and return float64.
"""

import torch
from torch import Tensor

PRODUCT_BITS = 26
SUM_BITS = 35
LONGEST = 1 << 18  # numbers in a sum
CHUNK = 4096  # numbers in one product of integers; the parts of a longer one are added in float64
WEIGHT_BITS, VALUE_BITS = 28, 24  # of weighted_sum
FEW = 64  # rows that weighted_sum adds exactly; it adds such sums in float64
SMALLEST_EXPONENT = -600  # smaller numbers, such as zero, count as this small


def power_of_two(exponent: Tensor) -> Tensor:
    """2 to the exponent: int64 between -1022 and 1023 -> float64."""
    return ((exponent + 1023) << 52).view(torch.float64)


def exponent_of(x: Tensor) -> Tensor:
    """The smallest e with x < 2^e: non-negative finite float64 -> int64."""
    return ((x.view(torch.int64) >> 52) - 1022).clamp(min=SMALLEST_EXPONENT)


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """x ≈ q · scale along the last dimension, with ‖q‖ a little over 2^26 at most: (…, K) -> (…, K), (…, 1)."""
    wide = x.double()
    largest = _largest(wide)
    exponent = exponent_of(largest)
    coarse = torch.round(wide * power_of_two(17 - exponent))
    squares = (coarse * coarse).sum(-1, keepdim=True)  # exact: at most 2^18 terms of 2^34
    exponent = exponent - 17 + ((exponent_of(squares) + 1) >> 1)  # ‖x‖ < 2^exponent, nearly
    q = torch.round(wide * _or_nan(power_of_two(PRODUCT_BITS - exponent), largest))
    return q, power_of_two(exponent - PRODUCT_BITS)


def product(a: Tensor, b: Tensor) -> Tensor:
    """The products of all rows of a with all rows of b: (…, M, K), (…, N, K) -> (…, M, N).

    Longer rows are cut, each part is exact, and the parts are added in order.
    """
    parts = zip(a.split(CHUNK, dim=-1), b.split(CHUNK, dim=-1), strict=True)
    products = [_product(part_a, part_b) for part_a, part_b in parts]
    return sum(products[1:], products[0])


def _product(a: Tensor, b: Tensor) -> Tensor:
    (q_a, scale_a), (q_b, scale_b) = quantise(a), quantise(b)
    return torch.matmul(q_a, q_b.mT) * scale_a * scale_b.mT


def weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """Sums of rows, Σ_k weights[m, k] values[k]: (…, M, K), (…, K, N) -> (…, M, N).

    Unlike `product` of transposed values, it treats each row of values by itself, so that a row of weight zero changes
    nothing: attention needs that. It takes FEW rows at a time, because many small weights would have too few bits:
    Σ|q_w q_v| ≤ ‖q_w‖₁ max|q_v| ≤ 2^28 · 2^24 (Hölder), with room for rounding.
    """
    parts = zip(weights.split(FEW, dim=-1), values.split(FEW, dim=-2), strict=True)
    sums = [_weighted_sum(part, rows) for part, rows in parts]
    return sum(sums[1:], sums[0])


def _weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    wide = values.double()
    largest = _largest(wide)
    exponent = exponent_of(largest)
    q_values = torch.round(wide * _or_nan(power_of_two(VALUE_BITS - exponent), largest))
    factor = torch.where(largest == 0, largest, power_of_two(exponent))
    scaled = weights.double() * factor.mT
    q_weights, scale = quantise_by_sum(scaled)
    return torch.matmul(q_weights, q_values) * (scale * 2.0**-VALUE_BITS)


def quantise_by_sum(x: Tensor) -> tuple[Tensor, Tensor]:
    """x ≈ q · scale along the last dimension, with Σ|q| at most 1.25 · 2^28: float64 (…, K) -> (…, K), (…, 1)."""
    largest = _largest(x)
    exponent = exponent_of(largest)
    coarse = torch.round(x.abs() * power_of_two(20 - exponent))
    exponent = (exponent - 20 + exponent_of(coarse.sum(-1, keepdim=True))).clamp(min=SMALLEST_EXPONENT)
    q = torch.round(x * _or_nan(power_of_two(WEIGHT_BITS - exponent), largest))
    return q, power_of_two(exponent - WEIGHT_BITS)


def quantise_for_sum(x: Tensor) -> tuple[Tensor, Tensor]:
    """x ≈ q · scale along the last dimension, with |q| ≤ 2^35: (…, K) -> (…, K), (…, 1)."""
    wide = x.double()
    largest = _largest(wide)
    exponent = exponent_of(largest)
    q = torch.round(wide * _or_nan(power_of_two(SUM_BITS - exponent), largest))
    return q, power_of_two(exponent - SUM_BITS)


def exact_sum(x: Tensor) -> Tensor:
    """The sum along the last dimension: (…, K) -> (…, 1)."""
    q, scale = quantise_for_sum(x)
    return q.sum(-1, keepdim=True) * scale


def _largest(wide: Tensor) -> Tensor:
    """The largest absolute value along the last dimension, (…, 1); 0 in place of infinity and NaN, see _or_nan."""
    assert wide.shape[-1] <= LONGEST, f"a sum of {wide.shape[-1]} numbers is not exact; {LONGEST} is the most"
    return wide.abs().amax(-1, keepdim=True)


def _or_nan(scale: Tensor, largest: Tensor) -> Tensor:
    return torch.where(torch.isfinite(largest), scale, torch.nan)
