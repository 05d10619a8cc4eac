from typing import Any

import pytest
import torch
from torch import nn

from scratchlm.run.errors import UserError
from scratchlm.run.params import check_params
from scratchlm.training.optimizer import TrainingParams, build_optimizer


@pytest.fixture(scope="session")
def params(training_values: dict[str, Any]) -> Any:
    return lambda **changes: TrainingParams(**training_values | changes)


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
        ({"beta2": 1.0}, "beta2 is 1.0: must be less than or equal to 0.99999"),
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
