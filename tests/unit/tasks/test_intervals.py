import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from scratchlm.tasks.intervals import CONFIDENCE, QUANTILE, mean_interval, paired_share_interval, share_interval


def test_one_value_is_its_own_interval() -> None:
    assert mean_interval([42], seed=1) == (42.0, 42.0)


def test_equal_values_have_no_spread() -> None:
    assert mean_interval([7.5] * 12, seed=1) == (7.5, 7.5)


def test_two_values_reach_from_one_to_the_other() -> None:
    """A resample's mean is 0, 50 or 100 with chances 1/4, 1/2, 1/4: both tails hold more than 2.5 %."""
    assert mean_interval([0.0, 100.0], seed=1) == (0.0, 100.0)


def test_the_interval_is_that_of_resampled_means() -> None:
    """An independent bootstrap written out; quantiles of 2000 and 20,000 means differ by about 2 % of the spread."""
    values = np.random.default_rng(3).exponential(10, size=60)
    draws = np.random.default_rng(4).integers(60, size=(20_000, 60))
    expected = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    spread = values.std() / np.sqrt(60)
    np.testing.assert_allclose(mean_interval(values.tolist(), seed=5), expected, atol=0.2 * spread)


@pytest.mark.parametrize("n", [2, 3, 110, 1000])
def test_the_interval_of_a_mean_is_scipys(n: int) -> None:
    values = np.random.default_rng(n).exponential(30, size=n)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=2000, confidence_level=0.95, method="percentile",
        rng=np.random.default_rng(7),
    ).confidence_interval  # fmt: skip
    assert mean_interval(values.tolist(), seed=7) == pytest.approx((expected.low, expected.high), rel=1e-12)


@given(n=st.integers(1, 2000), share=st.floats(0, 1))
def test_the_interval_of_a_share_is_scipys(n: int, share: float) -> None:
    expected = stats.binomtest(round(share * n), n).proportion_ci(CONFIDENCE, method="wilson")
    assert share_interval(round(share * n), n) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert pytest.approx(stats.norm.ppf((1 + CONFIDENCE) / 2), rel=1e-15) == QUANTILE


def test_the_interval_depends_on_its_seed_alone() -> None:
    values = [1.0, 5.0, 2.0, 9.0, 4.0]
    np.random.seed(0)
    first = mean_interval(values, seed=1)
    np.random.seed(1)
    assert mean_interval(values, seed=1) == first
    assert np.random.random() == np.random.RandomState(1).random()


@pytest.mark.long
def test_the_interval_covers_the_true_mean_about_95_times_in_100() -> None:
    """For 40 normal values the percentile interval is expected to cover in 94.0 % (Student's t with 39 degrees).

    Over 300 draws the share found has a standard deviation of 1.4 points; four of them are allowed.
    """
    source = np.random.default_rng(11)
    covered = 0
    for seed in range(300):
        low, high = mean_interval(source.normal(50, 20, size=40).tolist(), seed)
        covered += low <= 50 <= high
    assert covered / 300 == pytest.approx(0.94, abs=4 * 0.014)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe 1998, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_is_the_textbooks(successes: int, n: int, low: float, high: float) -> None:
    assert share_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(n=st.integers(1, 500), share=st.floats(0, 1))
def test_wilsons_interval_solves_its_equation_and_holds_the_share(n: int, share: float) -> None:
    """Wilson 1927: both ends p satisfy (found - p)² = z² p (1 - p) / n."""
    successes = round(share * n)
    found, z = successes / n, 1.959963984540054
    low, high = share_interval(successes, n)
    assert 0 <= low <= found + 1e-12 and found - 1e-12 <= high <= 1
    for p in (low, high):
        assert (found - p) ** 2 == pytest.approx(z**2 * p * (1 - p) / n, abs=1e-9)


def test_the_interval_of_a_paired_difference_by_hand() -> None:
    """18 and 8 of 98: 19 / 100 less 9 / 100, with a variance of (0.28 - 0.01) / 100."""
    low, high = paired_share_interval(18, 8, 98)
    assert (low, high) == pytest.approx((0.1 - QUANTILE * 0.0519615, 0.1 + QUANTILE * 0.0519615), abs=1e-6)
    assert paired_share_interval(8, 18, 98) == pytest.approx((-high, -low))


def test_systems_that_always_agree_still_leave_room_for_a_difference() -> None:
    low, high = paired_share_interval(0, 0, 300)
    assert -0.02 < low < 0 < high < 0.02
