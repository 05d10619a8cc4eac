"""The gradient of a step: a sum over its micro batches in their order, whoever computes them."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from scratchlm.arithmetic.mode import is_exact
from scratchlm.arithmetic.random import stream
from scratchlm.arithmetic.sequences import begin_forward
from scratchlm.fast.cuda_graphs import pinned
from scratchlm.training.order import batch_indices

if TYPE_CHECKING:
    from scratchlm.training.loop import Batch, Task, TrainingState


def micro_batches(task: "Task", step: int, seed: int) -> "list[Batch]":
    """The micro batches of a step, which parameters alone decide on."""
    indices = batch_indices(step, task.n_examples, task.params.batch_size, seed)
    return [task.batch(part) for part in np.array_split(indices, task.params.n_micro_batches)]


def add_gradients(
    state: "TrainingState", batches: "Sequence[Batch]", own: Iterable[int], number: int = 0,
    loss_of: Callable[..., Tensor] | None = None,
) -> None:  # fmt: skip
    """Add the gradients of the micro batches that `own` numbers, each divided by the scored items of all of them.

    On a CPU, where workers may divide them, what dropout draws for a micro batch does not depend on those computed
    before it. number, loss_of: see loop.update.
    """
    total = sum(batch.n_scored for batch in batches)
    purpose = f"{state.task.name} dropout {state.step}" + (f" {number}" if number else "")
    key = stream(state.run.seed, purpose)
    for i in own:
        batch, n_before = batches[i], sum(len(batch.tensors[-1]) for batch in batches[:i])
        if len(batches) > 1 and state.device.type == "cpu" and not is_exact():
            torch.manual_seed(stream(key, f"micro batch {i}"))
        if state.captured and not loss_of:
            loss = state.captured.add(batch.tensors, total, is_only=len(batches) == 1)
            state.loss = loss, batch.n_scored
            state.history.add_loss(state.step, i, loss)
            continue
        begin_forward(key, n_before)
        with state.run.autocast():
            tensors = (to_device(tensor, state.device) for tensor in batch.tensors)
            loss = (loss_of or state.task.loss)(state.model, *tensors)
        if not loss_of:
            state.history.add_loss(state.step, i, loss)
        (loss / total).backward()
        state.loss = loss.detach(), batch.n_scored


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device. To a GPU it is copied while this process goes on to prepare the next step."""
    return pinned(tensor, device).to(device, non_blocking=device.type == "cuda")
