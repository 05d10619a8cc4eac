"""Sums in precision `exact`: correctly rounded, in any order, at any scale."""

from fractions import Fraction

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from scratchlm.arithmetic.integers import (
    CHUNK,
    FEW,
    LONGEST,
    exact_sum,
    product,
    quantise,
    quantise_by_sum,
    quantise_for_sum,
    weighted_sum,
)

KINDS = ["normal", "one large", "zeros", "mixed signs", "all equal"]


def numbers(seed: int, shape: tuple[int, ...], exponent: int, kind: str) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=source)
    if kind == "one large":
        x = x * 1e-6
        x[..., 0] = 1.0
    elif kind == "zeros":
        x = x * (torch.rand(shape, generator=source) > 0.7)
    elif kind == "mixed signs":
        x = x * 10.0 ** torch.randint(-6, 7, shape, generator=source)
    elif kind == "all equal":
        x = torch.full(shape, 0.7)
    return (x.double() * 10.0**exponent).float()


cases = given(
    seed=st.integers(0, 10**6),
    M=st.integers(1, 4),
    N=st.integers(1, 4),
    K=st.integers(1, 300),
    exponent=st.integers(-44, 30),  # below -38: subnormal
    kind=st.sampled_from(KINDS),
)


def fractions(x: Tensor) -> list[Fraction]:
    return [Fraction(v) for v in x.flatten().tolist()]


@cases
def test_a_product_is_that_of_the_rounded_operands_rounded_once(
    seed: int, M: int, N: int, K: int, exponent: int, kind: str
) -> None:
    a, b = numbers(seed, (M, K), exponent, kind), numbers(seed + 1, (N, K), -exponent if exponent > 0 else 0, kind)
    (q_a, scale_a), (q_b, scale_b) = quantise(a), quantise(b)
    assert torch.equal(q_a, q_a.round()) and torch.equal(q_b, q_b.round())
    found = product(a, b)
    for i in range(M):
        for j in range(N):
            exact = sum(x * y for x, y in zip(fractions(q_a[i]), fractions(q_b[j]), strict=True))
            exact *= Fraction(scale_a[i].item()) * Fraction(scale_b[j].item())
            assert Fraction(found[i, j].item()) == exact
            assert sum(abs(x * y) for x, y in zip(fractions(q_a[i]), fractions(q_b[j]), strict=True)) <= 2**53


@cases
def test_what_rounding_the_operands_changes_is_far_below_a_float32_digit_of_their_norms(
    seed: int, M: int, N: int, K: int, exponent: int, kind: str
) -> None:
    x = numbers(seed, (M, K), exponent, kind).double()
    for q, scale in (quantise(x), quantise_by_sum(x), quantise_for_sum(x)):
        error = (q * scale - x).abs().amax(-1)
        assert (error <= 2**-26 * x.abs().sum(-1)).all()


@cases
def test_the_order_of_a_sum_changes_nothing(seed: int, M: int, N: int, K: int, exponent: int, kind: str) -> None:
    a, b = numbers(seed, (M, K), exponent, kind), numbers(seed + 1, (N, K), 0, kind)
    order = torch.randperm(K, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(product(a, b), product(a[:, order], b[:, order]))
    assert torch.equal(exact_sum(a), exact_sum(a[:, order]))
    values = b.T.contiguous()
    few = order[order < FEW]
    assert torch.equal(weighted_sum(a[:, :FEW], values[:FEW]), weighted_sum(a[:, few], values[few]))


@cases
def test_a_weighted_sum_is_that_of_the_rounded_operands(
    seed: int, M: int, N: int, K: int, exponent: int, kind: str
) -> None:
    weights, values = numbers(seed, (M, K), exponent, kind), numbers(seed + 1, (K, N), 0, kind)
    found, wanted = weighted_sum(weights, values), weights.double() @ values.double()
    bound = weights.double().abs() @ values.double().abs().amax(-1, keepdim=True) * (2**-24 + 64 * 2**-28)
    assert ((found - wanted).abs() <= bound).all()


def test_zero_weights_hide_values_and_padding_hides_nothing() -> None:
    weights, values = numbers(1, (3, 20), 0, "normal"), numbers(2, (20, 5), 0, "normal")
    padded = torch.cat([weights, torch.zeros(3, 4)], dim=1), torch.cat([values, 1e9 * torch.ones(4, 5)])
    assert torch.equal(weighted_sum(weights, values), weighted_sum(*padded))
    assert torch.equal(exact_sum(weights), exact_sum(padded[0]))
    wide = torch.cat([values.T, torch.zeros(5, 4)], dim=1)
    assert torch.equal(product(weights, values.T), product(padded[0], wide))


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_infinity_and_nan_become_nan_in_their_row_alone(bad: float) -> None:
    a, b = numbers(1, (3, 20), 0, "normal"), numbers(2, (4, 20), 0, "normal")
    a[1, 7] = bad
    for found in (product(a, b), exact_sum(a), weighted_sum(a, b.T.contiguous())):
        assert found[1].isnan().all()
        assert found[[0, 2]].isfinite().all()


def test_long_rows_are_cut_and_too_long_sums_refused() -> None:
    a, b = numbers(1, (2, 2 * CHUNK + 100), 0, "normal"), numbers(2, (3, 2 * CHUNK + 100), 0, "normal")
    assert torch.allclose(product(a, b), a.double() @ b.double().T, rtol=0, atol=1e-3)
    with pytest.raises(AssertionError, match=f"is not exact; {LONGEST} is the most"):
        exact_sum(torch.ones(1, LONGEST + 1))


@pytest.mark.parametrize("K", [16, 64, 256, 768, 1024, 3072, 50257])
def test_a_product_is_as_near_to_float64_as_twice_that_of_float32(K: int) -> None:
    source = torch.Generator().manual_seed(K)
    for scale in (torch.ones(K), torch.where(torch.arange(K) % 97 == 3, 20.0, 1.0)):  # as activations have outliers
        a, b = torch.randn(64, K, generator=source) * scale, torch.randn(96, K, generator=source)
        true = a.double() @ b.double().T
        ours, theirs = (product(a, b).float() - true).abs(), ((a @ b.T).double() - true).abs()
        assert ours.mean() <= 2 * theirs.mean()
        assert ours.max() <= 2 * theirs.max()


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("S", [16, 64, 256, 1024])
def test_attention_is_as_near_to_float64_as_twice_float32(S: int, sharpness: float) -> None:
    source = torch.Generator().manual_seed(S)
    weights = (sharpness * torch.randn(64, S, generator=source)).softmax(-1)
    values = torch.randn(S, 64, generator=source)
    true = weights.double() @ values.double()
    ours, theirs = (weighted_sum(weights, values).float() - true).abs(), ((weights @ values).double() - true).abs()
    assert ours.mean() <= 2 * theirs.mean()
    assert ours.max() <= 2 * theirs.max()
