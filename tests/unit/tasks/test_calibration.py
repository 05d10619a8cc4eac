"""The calibration error against numbers by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchlm.tasks.calibration import N_BINS, CalibrationBin, calibration_bins, calibration_error


def margin(confidence: float) -> float:
    return math.log(confidence / (1 - confidence))


def test_bins_and_error_by_hand() -> None:
    # Two choices with confidence 0.62 and 0.64, one of them right; three with 0.9, of which two; one wrong with 0.98
    margins = [margin(0.62), -margin(0.64), margin(0.9) - 1e-9, margin(0.9) - 1e-9, -margin(0.9) + 1e-9, -margin(0.98)]
    bins = calibration_bins(margins)
    assert [(found.n, found.right, found.accuracy) for found in bins] == [(2, 1, 0.5), (3, 2, 2 / 3), (1, 0, 0)]
    assert [found.confidence for found in bins] == pytest.approx([0.63, 0.9, 0.98])
    # (2 · |0.5 - 0.63| + 3 · |2/3 - 0.9| + 1 · |0 - 0.98|) / 6
    assert calibration_error(bins) == pytest.approx((0.26 + 0.7 + 0.98) / 6)


def test_ties_are_half_right_at_confidence_one_half() -> None:
    assert calibration_bins([0.0, 0.0]) == [CalibrationBin(2, 0.5, 1.0)]
    assert calibration_error(calibration_bins([0.0])) == 0.0


def test_certain_choices_are_in_the_last_bin() -> None:
    assert calibration_bins([800.0, -800.0]) == [CalibrationBin(2, 1.0, 1.0)]
    assert calibration_error(calibration_bins([800.0, -800.0])) == 0.5


def test_a_bin_includes_its_upper_end() -> None:
    (found,) = calibration_bins([math.log(3)])  # σ = 3/4, the end of the fifth of ten bins from 1/2 to 1
    assert len(calibration_bins([math.log(3), margin(0.71)])) == 1
    assert len(calibration_bins([math.log(3), margin(0.76)])) == 2
    assert found.confidence == 0.75


@given(st.lists(st.floats(-50, 50), min_size=1))
def test_every_choice_is_in_one_bin_and_the_error_is_a_proportion(margins: list[float]) -> None:
    bins = calibration_bins(margins)
    assert sum(found.n for found in bins) == len(margins)
    assert len(bins) <= N_BINS
    assert 0 <= calibration_error(bins) <= 1
    assert [found.confidence for found in bins] == sorted(found.confidence for found in bins)
