from pathlib import Path

import numpy as np
import pytest

from scratchlm.compare.seeds import run_seeds, spread, spreads
from scratchlm.run.errors import UserError

RESULTS = [
    {"test": {"accuracy": 0.90, "loss": 0.5}, "parameters": 17_670_914, "judge": "reference", "masked": True},
    {"test": {"accuracy": 0.92, "loss": 0.7}, "parameters": 17_670_914, "judge": "reference", "masked": True},
    {"test": {"accuracy": 0.94, "loss": 0.6}, "parameters": 17_670_914, "judge": "reference", "masked": True},
]


def test_three_values_by_hand():
    row = spread([1.0, 2.0, 3.0])
    assert (row.mean, row.deviation, row.low, row.high) == (2.0, 1.0, 1.0, 3.0)
    assert row.minimum_detectable_difference == pytest.approx(4.302653 * 2**0.5)  # Student's t, from a table


@pytest.mark.parametrize("n", [2, *(pytest.param(n, marks=pytest.mark.long) for n in (5, 10))])
def test_nineteen_of_twenty_differences_of_equal_runs_are_below_the_minimum(n):
    draws = np.random.default_rng(3).normal(size=(20_000, n + 2))
    kept = [abs(a - b) <= spread(runs).minimum_detectable_difference for a, b, *runs in draws.tolist()]
    assert np.mean(kept) == pytest.approx(0.95, abs=0.005)


def test_every_number_has_a_spread_and_nothing_else_has_one():
    metrics = spreads(RESULTS)
    assert list(metrics) == ["test.accuracy", "test.loss", "parameters"]
    assert metrics["test.loss"].values == (0.5, 0.7, 0.6)
    assert metrics["parameters"].minimum_detectable_difference == 0


def test_a_number_that_one_run_lacks_has_no_spread():
    assert list(spreads([*RESULTS, {"test": {"accuracy": 0.91, "loss": None}}])) == ["test.accuracy"]


@pytest.mark.parametrize("n", [-1, 1, 1001])
def test_a_number_of_runs_that_shows_no_spread_or_never_ends_is_refused(tmp_path: Path, n: int):
    with pytest.raises(UserError, match=f"^--seeds is {n}; 2 to 1,000 runs are allowed: give --seeds 5, for example$"):
        run_seeds(tmp_path, "pretrain", n)


def test_a_thousand_runs_are_allowed(tmp_path: Path):
    with pytest.raises(UserError, match="has no dvc.yaml"):
        run_seeds(tmp_path, "pretrain", 1000)


@pytest.mark.parametrize("jobs", [0, 65])
def test_fewer_than_one_job_and_more_than_64_are_refused(tmp_path: Path, jobs: int):
    with pytest.raises(UserError, match=f"^--jobs is {jobs}; 1 to 64 runs at once are allowed: give --jobs 2, for"):
        run_seeds(tmp_path, "pretrain", 2, jobs=jobs)
