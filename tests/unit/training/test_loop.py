import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from scratchlm.data.tokenizer import IGNORE_INDEX
from scratchlm.data.windows import TokenWindows
from scratchlm.run.context import Run
from scratchlm.run.errors import UserError
from scratchlm.tasks.instruct import FinetuneInstructParams, Instructions, instruct_task
from scratchlm.tasks.pretraining import pretraining_task
from scratchlm.training.loop import Batch, Task, no_sample, train
from scratchlm.training.optimizer import AdamW, TrainingParams
from scratchlm.training.order import batch_indices
from scratchlm.training.schedule import learning_rate_at

ROWS = [
    {"prompt_token_ids": [1 + i % 3] * (1 + i % 2), "response_token_ids": [(i + j) % 11 for j in range(1 + i % 5)]}
    for i in range(12)
]


@pytest.fixture(scope="session")
def params(training_values: dict[str, Any]) -> Any:
    return lambda **changes: TrainingParams(**training_values | changes)


@pytest.fixture
def learn(tmp_path: Path) -> Callable[..., list[dict[str, float]]]:
    """Trains a model on a task with these parameters; the curve. Keywords change the run."""

    def go(model: torch.nn.Module, task: Task, p: TrainingParams, **run: Any) -> list[dict[str, float]]:
        return train(model, task._replace(params=p), Run(log=tmp_path / "log.jsonl", **{"seed": 7} | run)).curve

    return go


def nothing(model: torch.nn.Module) -> dict[str, float]:
    return {"loss": 0.0}


def windows_task(evaluate: Any = nothing) -> Task:
    """Without parameters: `learn` brings them."""
    return pretraining_task(TokenWindows(np.arange(60) % 11, 6, 4), None, evaluate)  # type: ignore[arg-type]


def responses_task(training_values: dict[str, Any], rows: Any = ROWS) -> Task:
    p = FinetuneInstructParams(**training_values, base="x", mask_instruction=True, dropout=0.0, lora=None)
    instructions = Instructions({"train": rows}, SimpleNamespace(end_token_id=0), 8)  # type: ignore[arg-type]
    return instruct_task(instructions, p, SimpleNamespace(evaluate=nothing, sample=no_sample))  # type: ignore[arg-type]


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_steps_are_full_batches_times_epochs(params: Any) -> None:
    def n_steps(n_examples: int, **changes: Any) -> int:
        return windows_task()._replace(n_examples=n_examples, params=params(**changes)).n_steps

    assert n_steps(11, batch_size=4, epochs=1.0) == 2
    assert n_steps(11, batch_size=4, epochs=2.5) == 5
    assert n_steps(4, batch_size=4, epochs=1) == 1
    assert n_steps(100, batch_size=1, epochs=0.29) == 29  # 0.29 * 100 is 28.999…


@pytest.mark.parametrize(
    ("n_examples", "epochs", "sentence"),
    [
        (3, 2.0, "3 training examples make 0 full batches of 4, so 2.0 epochs are 0 steps; lower batch_size"),
        (
            8,
            0.25,
            "8 training examples make 2 full batches of 4, so 0.25 epochs are 0 steps; "
            "lower batch_size or raise epochs",
        ),
    ],
)
def test_too_few_examples_for_a_step_are_refused(params: Any, n_examples: int, epochs: float, sentence: str) -> None:
    task = windows_task()._replace(n_examples=n_examples, params=params(epochs=epochs))
    with pytest.raises(UserError) as caught:
        _ = task.n_steps
    assert str(caught.value) == sentence


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 2**31 - 1))
def test_an_epoch_takes_each_example_at_most_once_and_leaves_less_than_a_batch(
    n_examples: int, batch_size: int, seed: int
) -> None:
    per_epoch = n_examples // batch_size
    for epoch in range(2 if per_epoch else 0):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        taken = np.concatenate([batch_indices(step, n_examples, batch_size, seed) for step in steps])
        assert len(taken) == len(set(taken.tolist())) == per_epoch * batch_size
        assert set(taken.tolist()) <= set(range(n_examples))


def test_the_examples_of_a_step_depend_on_seed_and_step_alone() -> None:
    forward = [batch_indices(step, 20, 4, 1).tolist() for step in range(15)]
    torch.manual_seed(99)
    backward = [batch_indices(step, 20, 4, 1).tolist() for step in reversed(range(15))]
    assert forward == backward[::-1]
    assert sorted(sum(forward[:5], [])) == sorted(sum(forward[5:10], [])) == [*range(20)]
    assert forward[:5] != forward[5:10] != forward[10:]
    assert forward[:5] != [batch_indices(step, 20, 4, 2).tolist() for step in range(5)]


def test_a_run_is_that_of_a_plain_loop_with_torchs_own_parts(tiny_gpt: Any, params: Any, learn: Any) -> None:
    p = params(epochs=3, weight_decay_on="all", max_grad_norm=0.5)
    task = windows_task()
    model, plain = tiny_gpt().double(), tiny_gpt().double()
    learn(model, task, p)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1.0, betas=(0.9, 0.99), weight_decay=0.1, foreach=False)
    n_steps = task._replace(params=p).n_steps
    assert n_steps > 6
    for step in range(n_steps):
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, n_steps, p)
        inputs, targets = task.batch(batch_indices(step, task.n_examples, 4, 7)).tensors
        F.cross_entropy(plain(inputs).flatten(0, 1), targets.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(weights(model), weights(plain), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("micro", [1, 3, 5])
def test_micro_batches_with_unequal_scored_tokens_give_the_weights_of_one_batch(
    tiny_gpt: Any, params: Any, learn: Any, training_values: dict[str, Any], micro: int
) -> None:
    task = responses_task(training_values)
    assert len({task.batch(np.arange(i, i + 3)).n_scored for i in range(0, 12, 3)}) > 1
    results = []
    for size in (6, micro):
        model = tiny_gpt().double()
        learn(model, task, params(batch_size=6, max_micro_batch_size=size, epochs=3))
        results.append(weights(model))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-8)


def test_a_micro_batch_may_score_nothing_but_a_whole_batch_may_not(
    tiny_gpt: Any, params: Any, learn: Any, training_values: dict[str, Any]
) -> None:
    task = responses_task(training_values)

    def without_targets(*rows: int) -> Task:
        def batch(indices: np.ndarray) -> Batch:
            inputs, targets = task.batch(indices).tensors
            targets[np.isin(indices, rows)] = IGNORE_INDEX
            return Batch((inputs, targets), int((targets != IGNORE_INDEX).sum()))

        return task._replace(batch=batch)

    model = tiny_gpt()
    learn(model, without_targets(3), params(max_micro_batch_size=1))
    assert all(value.isfinite().all() for value in model.state_dict().values())
    with pytest.raises(UserError) as caught:
        learn(model, without_targets(*range(len(ROWS))), params())
    assert str(caught.value) == (
        "finetune_instruct: step 1 scores no target; shorten the prompts or use a longer context"
    )


def test_evaluating_more_often_changes_no_weight(tiny_gpt: Any, params: Any, learn: Any) -> None:
    results = []
    for every in (1, 1000):
        model = tiny_gpt(dropout=0.3)

        def evaluate(model: torch.nn.Module) -> dict[str, float]:
            assert not model.training
            assert not torch.is_grad_enabled()
            return {"loss": model(torch.zeros(1, 3, dtype=torch.long)).mean().item()}

        curve = learn(model, windows_task(evaluate), params(evaluate_every_steps=every, epochs=2))
        results.append((weights(model), curve))
    (one, often), (other, seldom) = results
    assert len(often) > len(seldom) == 2
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert often[0] == seldom[0] and often[-1] == seldom[-1]


def test_two_runs_give_the_same_weights_bit_for_bit_and_another_seed_others(
    tiny_gpt: Any, params: Any, learn: Any
) -> None:
    results = []
    for seed in (7, 7, 8):
        torch.manual_seed(len(results))  # what happened before must not matter
        model = tiny_gpt(dropout=0.3)
        learn(model, windows_task(), params(), seed=seed)
        results.append(weights(model))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert not torch.equal(results[0]["head.weight"], results[2]["head.weight"])


def test_dropout_is_drawn_anew_from_the_tasks_own_stream(tiny_gpt: Any, params: Any, learn: Any) -> None:
    results = []
    for name in ("pretrain", "other"):
        model = tiny_gpt(dropout=0.3)
        learn(model, windows_task()._replace(name=name), params())
        results.append(model.head.weight.clone())
    assert not torch.equal(*results)


def test_each_step_of_each_task_and_seed_has_its_own_exact_dropout_and_each_row_its_place(
    tiny_gpt: Any, params: Any, learn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "scratchlm.training.gradients.begin_forward", lambda key, n_before: calls.append((key, n_before))
    )
    for seed, name in ((7, "pretrain"), (8, "pretrain"), (7, "other")):
        learn(tiny_gpt(), windows_task()._replace(name=name), params(max_micro_batch_size=2), seed=seed)
    assert [n_before for _, n_before in calls] == [0, 2] * 9  # two micro batches in each of three steps
    assert len({key for key, _ in calls}) == 9


def test_the_curve_has_step_epoch_rate_and_metrics_by_hand(
    tiny_gpt: Any, params: Any, learn: Any, tmp_path: Path
) -> None:
    metrics = iter([{"loss": 3.0}, {"loss": 2.0}, {"loss": 1.0}, {"loss": 0.5}])
    task = windows_task(lambda model: next(metrics))
    assert task.n_examples == 14
    p = params(epochs=1.7, evaluate_every_steps=2, schedule="constant", warmup_steps=4)  # three steps an epoch
    curve = learn(tiny_gpt(), task, p)
    assert curve == [
        {"step": 0, "epoch": 0.0, "learning_rate": pytest.approx(0.0025), "loss": 3.0},
        {"step": 2, "epoch": pytest.approx(2 / 3), "learning_rate": pytest.approx(0.0075), "loss": 2.0},
        {"step": 4, "epoch": pytest.approx(4 / 3), "learning_rate": pytest.approx(0.01), "loss": 1.0},
        {"step": 5, "epoch": pytest.approx(5 / 3), "learning_rate": pytest.approx(0.01), "loss": 0.5},
    ]
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [2, 4, 5]
    falling = params(schedule="cosine", epochs=1.7)
    rates = [row["learning_rate"] for row in learn(tiny_gpt(), windows_task(), falling)]
    assert rates == [learning_rate_at(0, 5, falling), learning_rate_at(4, 5, falling)]  # the last one that was used
    assert set(records[0]) == {"step", "scored_per_second", "training_seconds"}
    scored = [record["scored_per_second"] * record["training_seconds"] for record in records]
    assert scored == pytest.approx([2 * 4 * 6, 2 * 4 * 6, 4 * 6], rel=1e-4)  # batches, windows, tokens


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_run_with_the_remedy(
    tiny_gpt: Any, params: Any, learn: Any, value: float
) -> None:
    metrics = iter([{"loss": 1.0, "accuracy": 0.5}, {"loss": value, "accuracy": 0.5}])
    with pytest.raises(UserError) as caught:
        learn(tiny_gpt(), windows_task(lambda model: next(metrics)), params(evaluate_every_steps=2))
    assert str(caught.value) == (
        f"pretrain: the loss is not a finite number at step 2 ({{'loss': {value}, 'accuracy': 0.5}}); "
        "lower learning_rate, raise warmup_steps, or use precision float32"
    )


def test_gradients_are_clipped_from_the_first_step(params: Any, learn: Any) -> None:
    norms = []

    class Line(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(3))

    def loss(model: Line, x: torch.Tensor) -> torch.Tensor:
        return (model.weight * x).sum() * 100

    model = Line()
    step = AdamW.step

    def watched(self: AdamW, *arguments: Any) -> Any:
        norms.append(model.weight.grad.norm().item())
        return step(self, *arguments)

    p = params(epochs=3, max_grad_norm=0.25)
    task = Task("line", p, 4, lambda indices: Batch((torch.ones(len(indices), 3),), len(indices)), loss, nothing)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdamW, "step", watched)
        learn(model, task, p)
    assert norms == pytest.approx([0.25] * 3, rel=1e-4)


def test_the_model_is_left_ready_to_be_used(tiny_gpt: Any, params: Any, learn: Any) -> None:
    model = tiny_gpt(dropout=0.5)
    learn(model, windows_task(), params())
    assert not any(module.training for module in model.modules())


def test_the_model_learns_what_repeats(tiny_gpt: Any, params: Any, learn: Any) -> None:
    model, task = tiny_gpt(emb_dim=16), windows_task()
    learn(model, task, params(epochs=30, learning_rate=0.02))
    inputs, targets = task.batch(np.arange(4)).tensors
    assert (model(inputs).argmax(-1) == targets).all()


def test_bfloat16_trains_weights_that_stay_in_float32(tiny_gpt: Any, params: Any, learn: Any) -> None:
    model = tiny_gpt()
    seen = set()
    model.head.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    learn(model, windows_task(), params(), precision="bfloat16")
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_batch_of_windows_by_hand() -> None:
    task = windows_task()
    batch = task.batch(np.array([1, 0]))
    assert batch.n_scored == 12
    assert [tensor.tolist() for tensor in batch.tensors] == [
        [[4, 5, 6, 7, 8, 9], [0, 1, 2, 3, 4, 5]],
        [[5, 6, 7, 8, 9, 10], [1, 2, 3, 4, 5, 6]],
    ]


def test_a_sample_is_kept_beside_the_metrics_of_each_evaluation(tiny_gpt: Any, params: Any) -> None:
    def sample(model: torch.nn.Module) -> dict[str, str]:
        assert not model.training and not torch.is_grad_enabled()
        return {"text": "a heron"}

    task = windows_task()._replace(sample=sample, params=params(evaluate_every_steps=2))
    assert train(tiny_gpt(), task, Run()).samples == [
        {"evaluation": i, "loss": 0.0, "text": "a heron"} for i in range(3)
    ]
