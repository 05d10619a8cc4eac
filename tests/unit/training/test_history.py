import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from scratchlm.arithmetic.mode import exact_arithmetic
from scratchlm.data.windows import TokenWindows
from scratchlm.run.context import Run
from scratchlm.tasks.pretraining import pretraining_task
from scratchlm.training.history import MAX_STEPS, StepHistory
from scratchlm.training.loop import Batch, Task, train
from scratchlm.training.optimizer import AdamW, TrainingParams
from scratchlm.training.order import batch_indices
from scratchlm.training.schedule import learning_rate_at


def windows_task(params: TrainingParams) -> Task:
    windows = TokenWindows(np.arange(90) * 7 % 11, 6, 4)
    return pretraining_task(windows, params, lambda model: {"loss": 0.0})  # type: ignore[arg-type]


def steps(model: torch.nn.Module, params: TrainingParams, **run: Any) -> Sequence[dict[str, float]]:
    return train(model, windows_task(params), Run(**{"seed": 7} | run)).steps


def test_rows_have_the_loss_norm_and_rate_of_a_plain_loop(tiny_gpt: Any, training_values: dict[str, Any]) -> None:
    changes = {
        "epochs": 2.0,
        "batch_size": 4,
        "max_micro_batch_size": 3,
        "weight_decay_on": "all",
        "max_grad_norm": 0.5,
    }
    params = TrainingParams(**training_values | changes)
    task, plain = windows_task(params), tiny_gpt().double()
    found = steps(tiny_gpt().double(), params)
    optimizer = AdamW(plain.parameters(), lr=1.0, betas=(0.9, 0.99), weight_decay=0.1)
    expected = []
    for step in range(task.n_steps):
        rate = optimizer.param_groups[0]["lr"] = learning_rate_at(step, task.n_steps, params)
        inputs, targets = task.batch(batch_indices(step, task.n_examples, 4, 7)).tensors
        loss = F.cross_entropy(plain(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        expected.append({"step": step + 1, "loss": loss.item(), "gradient_norm": norm.item(), "learning_rate": rate})
    assert len(expected) > 6 and max(row["gradient_norm"] for row in expected) > 0.5
    assert [pytest.approx(row, rel=1e-6) for row in expected] == found


def test_in_exact_no_bit_of_a_row_depends_on_micro_batches(tiny_gpt: Any, training_values: dict[str, Any]) -> None:
    found = []
    for size in (1, 3, 6):
        params = TrainingParams(**training_values | {"epochs": 2.0, "batch_size": 6, "max_micro_batch_size": size})
        with exact_arithmetic():
            found.append(steps(tiny_gpt(dropout=0.2), params, precision="exact"))
    assert len(found[0]) > 3
    assert found[0] == found[1] == found[2]


def test_a_long_training_has_rows_of_evenly_spaced_steps(training_values: dict[str, Any]) -> None:
    params = TrainingParams(**training_values | {"max_grad_norm": None})
    history, n_steps = StepHistory(params, 3 * MAX_STEPS - 1), 3 * MAX_STEPS - 1
    rows: list[dict[str, float]] = []
    for step in range(n_steps):
        for number, loss in enumerate((1.0, 3.0)):
            history.add_loss(step, number, torch.tensor(loss * step))
        history.add_step(step, [Batch((), 2), Batch((), 6)], None, None)
        if step in (0, 700):
            history.read(rows)
    assert [row["step"] for row in history.read(rows)] == [*range(1, n_steps + 1, 3)]
    assert len(rows) == MAX_STEPS
    assert [row["loss"] for row in rows[:3]] == [0.0, 1.5, 3.0]
    assert not any("gradient_norm" in row or math.isnan(row["loss"]) for row in rows)


def test_no_two_rows_are_of_one_step_after_an_interrupt_while_they_were_read(training_values: dict[str, Any]) -> None:
    history = StepHistory(TrainingParams(**training_values), 4)
    for step in range(2):
        history.add_loss(step, 0, torch.tensor(1.0))
        history.add_step(step, [Batch((), 1)], 2.0, None)
    first = {"step": 1, "loss": 1.0, "gradient_norm": 2.0, "learning_rate": 0.1}
    assert [row["step"] for row in history.read([first])] == [1, 2]
