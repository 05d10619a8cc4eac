from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scratchlm.model.lora import LoRAParams, apply_lora, merge_lora
from scratchlm.run.context import Run
from scratchlm.run.errors import UserError
from scratchlm.run.params import with_changes
from scratchlm.run.resume import Checkpoint
from scratchlm.tasks.preference import (
    FinetunePreferenceParams,
    PairEvaluation,
    PairScores,
    Preferences,
    preference_task,
)
from scratchlm.tasks.settings import EvaluationParams
from scratchlm.training.loop import Training, train

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
    values = training_values | {"loss": "dpo", "beta": 0.1, "label_smoothing": 0.0, "dropout": 0.0, "lora": None}
    return lambda **changes: FinetunePreferenceParams(**values | changes)


def trained(model: Any, p: FinetunePreferenceParams, run: Run) -> tuple[Training, PairEvaluation]:
    evaluation = PairEvaluation(PAIRS, p, EVALUATION)
    evaluation.measure_reference(model, run)
    apply_lora(model, p.lora, run.seed)
    return train(model, preference_task(PAIRS, p, evaluation), run), evaluation


def test_a_batch_has_the_chosen_response_of_each_pair_before_the_rejected_one() -> None:
    inputs, targets = PAIRS.batch("train", [1, 0])
    assert inputs.tolist() == [[2, 2, 9, 0], [2, 2, 10, 3], [1, 2, 9, 0], [1, 2, 10, 0]]
    assert targets.tolist() == [
        [-100, 9, 0, -100], [-100, 10, 3, 0], [-100, 9, 0, -100], [-100, 10, 0, -100]
    ]  # fmt: skip


def test_metrics_by_hand() -> None:
    rewards = np.array([[0.5, -0.5], [0.25, 0.75], [0.0, 0.0], [1.0, 0.0]])
    scores = PairScores(rewards, rewards, np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.0, 0.0, 3.0]), np.full(4, 3))
    found = scores.metrics()
    assert {name: found[name] for name in ("loss", "margin", "accuracy", "chosen_reward", "rejected_reward")} == {
        "loss": 2.5, "margin": 0.375, "accuracy": 0.625, "chosen_reward": 0.4375, "rejected_reward": 0.0625,
    }  # fmt: skip
    assert found["kl_per_token"] == 0.5
    assert found["accuracy_low"] < 0.625 < found["accuracy_high"]
    assert scores.rows(["a", "b", "c", "d"])[1] == {
        "id": "b", "loss": 2.0, "chosen_reward": 0.25, "rejected_reward": 0.75, "chosen_log_probability": 0.25,
        "rejected_log_probability": 0.75, "kl_nats": 2.0, "scored_tokens": 3,
    }  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"loss": "ipo"}, {"lora": LoRAParams(rank=2, alpha=2.0, layers="blocks")}])
def test_training_starts_at_even_and_learns_to_prefer(tiny_gpt: Any, params: Any, changes: dict[str, Any]) -> None:
    model, before = tiny_gpt(), tiny_gpt()
    before.load_state_dict(model.state_dict())
    training, evaluation = trained(model, params(epochs=20, learning_rate=0.01, **changes), Run(seed=3))
    merge_lora(model)
    start, end = training.curve[0], training.curve[-1]
    even = 25.0 if changes.get("loss") == "ipo" else np.log(2)
    assert start["val_loss"] == pytest.approx(even, rel=1e-5)
    assert start["val_margin"] == pytest.approx(0, abs=1e-5)
    assert end["val_loss"] < start["val_loss"]
    scores = evaluation.full(model, before)["test"]
    assert scores.metrics()["accuracy"] == 1.0
    assert scores.metrics()["kl_per_token"] > 0
    assert scores.scored_tokens.tolist() == [4, 5, 4, 5, 4]
    np.testing.assert_allclose(
        scores.metrics()["margin"], scores.metrics()["chosen_reward"] - scores.metrics()["rejected_reward"]
    )


@pytest.mark.parametrize("checkpoint_activations", [False, True])
def test_a_resumed_training_ends_with_the_same_bits(
    tiny_gpt: Any, params: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint_activations: bool
) -> None:
    monkeypatch.setenv("SCRATCHLM_RESUME_SECONDS", "0")
    monkeypatch.setattr("scratchlm.run.resume.PAUSE_PER_COST", 0)
    p = params(epochs=4, checkpoint_activations=checkpoint_activations)
    whole = tiny_gpt()
    initial = {name: value.clone() for name, value in whole.state_dict().items()}
    expected, _ = trained(whole, p, Run(seed=3))
    for attempt in (True, False):
        model = tiny_gpt()
        model.load_state_dict(initial)
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
            found, _ = trained(model, p, run)
    assert found == expected
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))


def test_measuring_leaves_the_mode_and_the_random_streams(tiny_gpt: Any, params: Any) -> None:
    model, evaluation = tiny_gpt().train(), PairEvaluation(PAIRS, params(), EVALUATION)
    evaluation.measure_reference(model, Run())
    before = torch.get_rng_state()
    evaluation.evaluate(model)
    assert model.training
    assert torch.equal(before, torch.get_rng_state())


def test_prompts_beyond_the_context_are_refused_and_cut_responses_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"^1 instructions have prompts longer than the model's context of 8 tokens"):
        Preferences({"train": [{"id": "a", "prompt_token_ids": [1] * 9}]}, 0, 8)
    long = rows(1)[0] | {"rejected_token_ids": [3] * 7}
    Preferences({"train": [*rows(2), long], "val": rows(2)}, 0, 8).say_cuts(Run(stage="a"))
    assert capsys.readouterr().err == "a: 1 of 3 train pairs are cut at the context's 8 tokens\n"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"loss": "ipo", "label_smoothing": 0.1},
         "preference_runs.a: label_smoothing is 0.1, but loss ipo has none; set it to 0.0"),
        ({"loss": "kto"}, "preference_runs.a: loss is 'kto': must be 'dpo' or 'ipo'"),
        ({"label_smoothing": 0.5}, "preference_runs.a: label_smoothing is 0.5: must be less than 0.5"),
        ({"beta": 0.0}, "preference_runs.a: beta is 0.0: must "),
        ({"betta": 1.0}, "preference_runs.a: unknown key betta (did you mean beta?); allowed are "),
    ],
)  # fmt: skip
def test_a_mistake_in_a_run_ends_in_one_sentence(params: Any, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        with_changes(params(), {"a": changes}, "preference_runs", "a")
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)
