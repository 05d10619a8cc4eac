import math
from collections.abc import Callable

import mpmath
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scratchlm.arithmetic import portable

LARGEST = math.log(1.7976931348623157e308)


def correctly_rounded(function: Callable[..., mpmath.mpf], x: float) -> float:
    """mpmath's value of 200 bits, rounded once."""
    with mpmath.workprec(200):
        return float(function(mpmath.mpf(x)))


@given(st.floats(-700, LARGEST))
@example(0.0)
@example(2.0**-53)
@example(-(2.0**-54))
@example(5e-324)
@example(7.5417527749959590085206221e-10)  # the hardest argument, 113 bits: Lefèvre and Muller 2001
def test_exp_is_correctly_rounded(x: float) -> None:
    assert portable.exp(x) == correctly_rounded(mpmath.exp, x)
    assert portable.exp(x) == pytest.approx(math.exp(x), rel=1e-15)


@given(st.floats(5e-324, 1.7976931348623157e308))
@example(1.0)
@example(1 + 2.0**-52)
@example(1 - 2.0**-53)
@example(5e-324)
@example(2.0)
def test_log_is_correctly_rounded(x: float) -> None:
    assert portable.log(x) == correctly_rounded(mpmath.log, x)
    assert portable.log(x) == pytest.approx(math.log(x), rel=1e-15)


@given(st.floats(-portable.MAX_COSINE, portable.MAX_COSINE))
@example(0.0)
@example(1e-8)
@example(math.pi / 2)
@example(3 * math.pi / 2 - math.pi)
@example(math.pi)
def test_cos_is_correctly_rounded(x: float) -> None:
    assert portable.cos(x) == correctly_rounded(mpmath.cos, x)
    assert portable.cos(x) == pytest.approx(math.cos(x), rel=1e-15)


def test_exp_ends_in_zero_and_in_infinity() -> None:
    assert portable.exp(-math.inf) == portable.exp(-1e300) == 0.0
    assert portable.exp(math.inf) == portable.exp(1e300) == portable.exp(710) == math.inf
    assert math.isnan(portable.exp(math.nan))


@pytest.mark.parametrize("x", [0.0, -1.0, math.nan, -math.inf])
def test_only_positive_numbers_have_a_logarithm(x: float) -> None:
    with pytest.raises(ValueError, match="^the logarithm of "):
        portable.log(x)


def test_cos_is_for_half_a_turn() -> None:
    with pytest.raises(AssertionError):
        portable.cos(4.1)


def test_the_callers_decimal_context_changes_nothing() -> None:
    import decimal

    with decimal.localcontext(decimal.Context(prec=3, rounding=decimal.ROUND_UP)):
        assert (portable.exp(0.3), portable.log(0.3), portable.cos(0.3)) == (
            correctly_rounded(mpmath.exp, 0.3), correctly_rounded(mpmath.log, 0.3), correctly_rounded(mpmath.cos, 0.3),
        )  # fmt: skip
        assert decimal.getcontext().prec == 3
