import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scratchlm.training.optimizer import TrainingParams
from scratchlm.training.schedule import learning_rate_at


@pytest.fixture(scope="session")
def params(training_values: dict[str, Any]) -> Any:
    return lambda **changes: TrainingParams(**training_values | changes)


def test_warmup_rises_in_equal_parts_and_the_cosine_falls_by_hand(params: Any) -> None:
    p = params(learning_rate=0.8, min_learning_rate=0.2, warmup_steps=4, schedule="cosine")
    rates = [learning_rate_at(step, 12, p) for step in range(12)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == pytest.approx(0.8)  # the cosine starts at the peak
    assert rates[6] == pytest.approx(0.2 + 0.6 * (1 + math.sqrt(0.5)) / 2)  # a quarter of the way
    assert rates[8] == pytest.approx(0.5)  # half-way
    assert rates[11] == pytest.approx(0.2 + 0.3 * (1 + math.cos(math.pi * 7 / 8)))


def test_a_constant_rate_stays_after_the_warmup(params: Any) -> None:
    p = params(learning_rate=0.3, warmup_steps=3, schedule="constant")
    assert [learning_rate_at(step, 6, p) for step in range(6)] == pytest.approx([0.1, 0.2, 0.3, 0.3, 0.3, 0.3])


def test_without_warmup_the_first_step_has_the_full_rate(params: Any) -> None:
    assert learning_rate_at(0, 5, params(warmup_steps=0)) == pytest.approx(0.01)


def test_a_warmup_longer_than_the_training_only_rises(params: Any) -> None:
    rates = [learning_rate_at(step, 3, params(learning_rate=1.0, warmup_steps=10)) for step in range(3)]
    assert rates == pytest.approx([0.1, 0.2, 0.3])


def test_the_schedule_is_torchs_cosine(params: Any) -> None:
    p = params(learning_rate=0.5, min_learning_rate=0.1, warmup_steps=0)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=9, eta_min=0.1)
    for step in range(9):
        assert learning_rate_at(step, 9, p) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        scheduler.step()


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(0, 60), st.sampled_from(["cosine", "constant"]))
def test_the_rate_never_leaves_its_bounds(params: Any, n_steps: int, warmup_steps: int, schedule: str) -> None:
    p = params(warmup_steps=warmup_steps, schedule=schedule)
    rates = [learning_rate_at(step, n_steps, p) for step in range(n_steps)]
    assert all(0 < rate <= 0.01 + 1e-12 for rate in rates)
    assert all(rate >= 0.001 for rate in rates[warmup_steps:])
    assert rates[:warmup_steps] == sorted(rates[:warmup_steps])
    assert rates[warmup_steps:] == sorted(rates[warmup_steps:], reverse=True)
