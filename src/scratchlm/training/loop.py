"""The one training loop. Pretraining and both finetunings give it their batches, loss and evaluation."""

import math
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from scratchlm.artifacts import append_log
from scratchlm.runtime import RuntimeParams, autocast, generator, stream
from scratchlm.training.optimizer import TrainingParams, build_optimizer, learning_rate_at


class Batch(NamedTuple):
    """Tensors that the loss takes after the model, and how many items it sums over."""

    tensors: tuple[Tensor, ...]
    n_scored: int


class Task(NamedTuple):
    """What is trained on what.

    batch: indices of examples -> Batch on the CPU. loss: (model, *tensors) -> the summed loss over n_scored items.
    evaluate: the figures of a curve row, computed without touching the training's random streams.
    """

    name: str
    n_examples: int
    batch: Callable[[np.ndarray], Batch]
    loss: Callable[..., Tensor]
    evaluate: Callable[[], Mapping[str, float]]


def train(
    model: nn.Module, task: Task, params: TrainingParams, runtime: RuntimeParams, device: torch.device, log: Path
) -> list[dict[str, float]]:
    """Train `model` in place; return the curve: step, epoch, learning rate and the evaluation's figures.

    The mean gradient of a step is over scored items, however the batch is cut into micro batches.
    Raises ValueError if there are fewer examples than one batch, or if the loss stops being a number.
    """
    n_steps = count_steps(task.n_examples, params)
    optimizer = build_optimizer(model, params)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    curve = [_evaluate(model, task, 0, n_steps, params, runtime, device)]
    start, n_scored = time.perf_counter(), 0
    torch.manual_seed(stream(runtime.seed, f"{task.name} dropout"))
    model.train()
    for step in tqdm(range(n_steps), desc=task.name, unit="step"):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, n_steps, params)
        indices = batch_indices(step, task.n_examples, params.batch_size, runtime.seed)
        n_micro = math.ceil(len(indices) / params.max_micro_batch_size)
        batches = [task.batch(part) for part in np.array_split(indices, n_micro)]
        total = sum(batch.n_scored for batch in batches)
        if not total:
            raise ValueError(
                f"{task.name}: no target is scored in step {step + 1}; shorten the prompts or widen the context"
            )
        for batch in batches:
            with autocast(runtime, device):
                loss = task.loss(model, *(tensor.to(device) for tensor in batch.tensors))
            (loss / total).backward()
        if params.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, params.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        n_scored += total
        if (step + 1) % params.evaluate_every_steps == 0 or step + 1 == n_steps:
            seconds = time.perf_counter() - start
            append_log(log, {"step": step + 1, "scored_per_second": n_scored / seconds, "training_seconds": seconds})
            curve.append(_evaluate(model, task, step + 1, n_steps, params, runtime, device))
            start, n_scored = time.perf_counter(), 0
    model.eval()
    return curve


def count_steps(n_examples: int, params: TrainingParams) -> int:
    """Optimizer steps in all: an epoch has as many as it has full batches. Raises ValueError if that is none."""
    per_epoch = n_examples // params.batch_size
    n_steps = int(params.epochs * per_epoch)
    if not n_steps:
        raise ValueError(
            f"{n_examples} training examples give {per_epoch} batches of {params.batch_size} an epoch, and "
            f"{params.epochs} epochs no step; lower batch_size or raise epochs"
        )
    return n_steps


def batch_indices(step: int, n_examples: int, batch_size: int, seed: int) -> np.ndarray:
    """The examples of one step, (batch_size,) int64; each epoch is its own shuffle.

    A function of its arguments alone: no state is kept from step to step.
    """
    per_epoch = n_examples // batch_size
    epoch, place = divmod(step, per_epoch)
    order = _epoch_order(n_examples, seed, epoch)
    return order[place * batch_size : (place + 1) * batch_size]


@lru_cache(maxsize=1)  # one epoch at a time
def _epoch_order(n_examples: int, seed: int, epoch: int) -> np.ndarray:
    return torch.randperm(n_examples, generator=generator(seed, f"data order {epoch}")).numpy()


def _evaluate(
    model: nn.Module,
    task: Task,
    step: int,
    n_steps: int,
    params: TrainingParams,
    runtime: RuntimeParams,
    device: torch.device,
) -> dict[str, float]:
    model.eval()
    with torch.no_grad(), autocast(runtime, device):
        figures = task.evaluate()
    model.train()
    if not all(math.isfinite(value) for value in figures.values()):
        raise ValueError(
            f"{task.name}: the loss is no longer a number at step {step} ({dict(figures)}); "
            "lower learning_rate, raise warmup_steps, or use precision float32"
        )
    rate = learning_rate_at(min(step, n_steps - 1), n_steps, params)
    epoch = step / (task.n_examples // params.batch_size)
    return {"step": step, "epoch": epoch, "learning_rate": rate, **figures}
