import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scratchlm.model.lora import LoRAParams, merge_lora
from scratchlm.model.reward import RewardModel
from scratchlm.run.context import Run
from scratchlm.run.errors import UserError
from scratchlm.run.params import with_changes
from scratchlm.run.resume import Checkpoint
from scratchlm.tasks.preference import Preferences
from scratchlm.tasks.reward import (
    RewardEvaluation,
    RewardModelParams,
    RewardScores,
    build_reward_model,
    pair_losses,
    reward_task,
)
from scratchlm.tasks.settings import EvaluationParams
from scratchlm.training.loop import Training, train
from scratchlm.training.reward import rewards

EVALUATION = EvaluationParams(context_length=8, batch_size=4, max_rows=4)


def rows(n: int) -> list[dict[str, Any]]:
    """Pairs that prefer the token 9 to the token 10."""
    return [
        {"id": f"pair-{i}", "instruction": f"{i}", "input": "", "chosen": "9", "rejected": "10",
         "prompt_token_ids": [1 + i % 7, 2], "chosen_token_ids": [9], "rejected_token_ids": [10, 3][: 1 + i % 2]}
        for i in range(n)
    ]  # fmt: skip


PAIRS = Preferences({"train": rows(8), "val": rows(3), "test": rows(5)}, 0, 8)


@pytest.fixture(scope="session")
def params(training_values: dict[str, Any]) -> Any:
    return lambda **changes: RewardModelParams(**training_values | {"dropout": 0.0, "lora": None} | changes)


def trained(model: RewardModel, p: RewardModelParams, run: Run) -> Training:
    return train(model, reward_task(PAIRS, p, RewardEvaluation(PAIRS, EVALUATION)), run)


def test_a_pair_is_two_sequences_without_an_end_token_cut_at_the_context() -> None:
    assert PAIRS.sequences("train", [1, 0]) == [[2, 2, 9], [2, 2, 10, 3], [1, 2, 9], [1, 2, 10]]
    long = Preferences({"train": [rows(1)[0] | {"rejected_token_ids": [3] * 9}]}, 0, 8)
    assert long.sequences("train", [0]) == [[1, 2, 9], [1, 2, 3, 3, 3, 3, 3, 3]]


def test_the_loss_by_hand() -> None:
    # σ(ln 3) = 3/4
    found = pair_losses(torch.tensor([[math.log(3), 0.0], [2.0, 2.0], [0.0, math.log(3)]], dtype=torch.float64))
    assert found.tolist() == pytest.approx([math.log(4 / 3), math.log(2), math.log(4)], rel=1e-6)
    assert pair_losses(torch.tensor([[0.0, 1e6]]).double()).tolist() == pytest.approx([1e6])


def test_metrics_by_hand() -> None:
    values = np.array([[0.5, -0.5], [0.25, 0.75], [0.0, 0.0], [1.0, 0.0]])
    scores = RewardScores(values, np.array([1.0, 2.0, 3.0, 4.0]))
    found = scores.metrics()
    assert {name: found[name] for name in ("loss", "margin", "accuracy", "chosen_reward", "rejected_reward")} == {
        "loss": 2.5, "margin": 0.375, "accuracy": 0.625, "chosen_reward": 0.4375, "rejected_reward": 0.0625,
    }  # fmt: skip
    # σ(1) = 0.7311 twice, right both times; σ(0.5) = 0.6225, wrong; a tie at 0.5, half right
    assert found["calibration_error"] == pytest.approx((2 * (1 - 0.731059) + 0.622459) / 4, rel=1e-5)
    assert found["accuracy_low"] < 0.625 < found["accuracy_high"]
    assert scores.rows(["a", "b", "c", "d"])[1] == {
        "id": "b", "loss": 2.0, "chosen_reward": 0.25, "rejected_reward": 0.75,
    }  # fmt: skip


@pytest.mark.parametrize("layers", ["none", "attention", "all"])
def test_training_starts_at_even_and_learns_to_rate(tiny_gpt: Any, params: Any, layers: Any) -> None:
    lora = None if layers == "none" else LoRAParams(rank=2, alpha=2.0, layers=layers)
    p = params(epochs=20, learning_rate=0.01, lora=lora)
    model, before = build_reward_model(tiny_gpt(), p, seed=3), tiny_gpt()
    curve = trained(model, p, Run(seed=3)).curve
    assert (curve[0]["val_loss"], curve[0]["val_accuracy"]) == (pytest.approx(math.log(2)), 0.5)
    assert curve[-1]["val_loss"] < 0.2
    merge_lora(model)
    same = torch.equal(model.backbone.token_embedding.weight, before.token_embedding.weight)
    assert same == (lora is not None)
    scores = RewardEvaluation(PAIRS, EVALUATION).full(model)
    assert scores["test"].metrics()["accuracy"] == 1.0


def test_chosen_responses_of_the_train_split_have_mean_reward_0(tiny_gpt: Any, params: Any) -> None:
    p = params(epochs=5)
    model = build_reward_model(tiny_gpt(), p, seed=3)
    trained(model, p, Run(seed=3))
    before = rewards(model, PAIRS.sequences("test", range(5)))
    scores = RewardEvaluation(PAIRS, EVALUATION).full(model)
    assert scores["train"].metrics()["chosen_reward"] == pytest.approx(0, abs=1e-6)
    after = rewards(model, PAIRS.sequences("test", range(5)))
    torch.testing.assert_close(after, before - model.origin.double(), rtol=0, atol=1e-6)
    assert abs(model.origin.item()) > 0.01
    np.testing.assert_allclose(scores["test"].rewards.flatten(), after, rtol=0, atol=1e-6)


@pytest.mark.parametrize("checkpoint_activations", [False, True])
def test_a_resumed_training_ends_with_the_same_bits(
    tiny_gpt: Any, params: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint_activations: bool
) -> None:
    monkeypatch.setenv("SCRATCHLM_RESUME_SECONDS", "0")
    monkeypatch.setattr("scratchlm.run.resume.PAUSE_PER_COST", 0)
    p = params(epochs=4, checkpoint_activations=checkpoint_activations, dropout=0.2)
    whole = build_reward_model(tiny_gpt(dropout=0.2), p, seed=3)
    expected = trained(whole, p, Run(seed=3))
    for attempt in (True, False):
        model = build_reward_model(tiny_gpt(dropout=0.2), p, seed=3)
        run = Run(seed=3, checkpoint=Checkpoint(tmp_path, "f" * 64))
        if attempt:
            n_left = 5

            def interrupt(module: Any, *_: Any) -> None:
                nonlocal n_left
                n_left -= module.training
                if n_left == 0:
                    raise KeyboardInterrupt

            handle = model.head.register_forward_hook(interrupt)
            with pytest.raises(KeyboardInterrupt):
                trained(model, p, run)
            handle.remove()
        else:
            found = trained(model, p, run)
            assert run.checkpoint.position is not None
    assert found == expected
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))


def test_a_mistake_in_a_run_ends_in_one_sentence(params: Any) -> None:
    with pytest.raises(UserError) as caught:
        with_changes(params(), {"a": {"droput": 0.1}}, "reward_runs", "a")
    assert str(caught.value).startswith("reward_runs.a: unknown key droput (did you mean dropout?); allowed are ")
    assert "\n" not in str(caught.value)
