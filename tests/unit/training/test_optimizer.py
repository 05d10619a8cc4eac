import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scratchlm.run.errors import UserError
from scratchlm.run.params import check_params
from scratchlm.training.optimizer import TrainingParams, build_optimizer, learning_rate_at


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


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(2)
        self.embedding = nn.Embedding(4, 3)
        self.tied = nn.Linear(3, 4, bias=False)
        self.tied.weight = self.embedding.weight
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def decay_by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}


def test_decay_spares_vectors_and_a_tied_or_frozen_matrix_counts_once_or_not_at_all(params: Any) -> None:
    model = Mixed()
    assert decay_by_name(model, build_optimizer(model, params(weight_decay=0.3, weight_decay_on="matrices"))) == {
        "linear.weight": 0.3,
        "embedding.weight": 0.3,
        "linear.bias": 0.0,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
    }


def test_decay_on_all_is_on_all(params: Any) -> None:
    model = Mixed()
    decay = decay_by_name(model, build_optimizer(model, params(weight_decay=0.3, weight_decay_on="all")))
    assert len(decay) == 5
    assert set(decay.values()) == {0.3}


def test_only_vectors_to_train_leave_no_empty_group(params: Any) -> None:
    (group,) = build_optimizer(nn.LayerNorm(3), params()).param_groups
    assert group["weight_decay"] == 0.0


def test_steps_are_those_of_plain_adamw(params: Any) -> None:
    p = params(weight_decay=0.3, weight_decay_on="all", beta1=0.8, beta2=0.9, learning_rate=0.05)
    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()
    theirs.load_state_dict(ours.state_dict())
    optimizers = [
        build_optimizer(ours, p),
        torch.optim.AdamW(theirs.parameters(), lr=0.05, betas=(0.8, 0.9), eps=1e-8, weight_decay=0.3, foreach=False),
    ]
    for _ in range(5):
        x = torch.randn(4, 3, dtype=torch.float64)
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"epochs": 0}, "epochs is 0: must be greater than 0"),
        ({"batch_size": 0}, "batch_size is 0: must be greater than or equal to 1"),
        ({"learning_rate": "4e-4"}, "learning_rate is '4e-4': must be a valid number"),
        ({"schedule": "linear"}, "schedule is 'linear': must be 'constant' or 'cosine'"),
        ({"beta2": 1.0}, "beta2 is 1.0: must be less than 1"),
        ({"warmup_steps": 1.5}, "warmup_steps is 1.5: must be a valid integer"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1: must be greater than or equal to 0"),
    ],
)
def test_settings_out_of_range_are_refused(
    training_values: dict[str, Any], change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError) as caught:
        check_params(training_values | change, TrainingParams, source="params.yaml")
    assert str(caught.value) == f"params.yaml: {sentence}"
