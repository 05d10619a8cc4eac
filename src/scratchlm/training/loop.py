"""The one training loop. Pretraining and both finetunings give it their batches, loss and evaluation."""

import math
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from scratchlm.arithmetic.fingerprint import arithmetic_fingerprint
from scratchlm.run.device import RuntimeParams, autocast, generator, random_states, restore_random_states, stream
from scratchlm.run.errors import UserError
from scratchlm.run.files import append_log
from scratchlm.run.resume import Resume
from scratchlm.training.optimizer import TrainingParams, build_optimizer, learning_rate_at


class Batch(NamedTuple):
    """Tensors that the loss takes after the model, and how many items it sums over."""

    tensors: tuple[Tensor, ...]
    n_scored: int


class Task(NamedTuple):
    """What is trained on what.

    batch: indices of examples -> Batch on the CPU. loss: (model, *tensors) -> the summed loss over n_scored items.
    evaluate: the figures of a curve row, computed without touching the training's random streams.
    samples: what evaluate collects beside, one entry a call.
    """

    name: str
    n_examples: int
    batch: Callable[[np.ndarray], Batch]
    loss: Callable[..., Tensor]
    evaluate: Callable[[], Mapping[str, float]]
    samples: list[dict[str, Any]]


def train(
    model: nn.Module,
    task: Task,
    params: TrainingParams,
    runtime: RuntimeParams,
    device: torch.device,
    log: Path,
    resume: Resume,
) -> list[dict[str, float]]:
    """Train `model` in place; return the curve: step, epoch, learning rate and the evaluation's figures.

    The mean gradient of a step is over scored items, however the batch is cut into micro batches.
    Goes on from what `resume` holds, to the same bits as if it had never stopped.
    Raises UserError if there are fewer examples than one batch, or if the loss stops being a number.
    """
    n_steps = count_steps(task.n_examples, params)
    torch.manual_seed(stream(runtime.seed, f"{task.name} dropout"))
    state = TrainingState(model, build_optimizer(model, params), task.samples, device)

    def position() -> str | None:
        return f"step {state.step} of {n_steps}" if state.step and state.whole else None

    resume.only_under(arithmetic_fingerprint(device))
    if kept := resume.load():
        state.read(kept)
        resume.resumed(position())
    start, n_scored = time.perf_counter(), 0
    model.train()
    with (
        tqdm(total=n_steps, initial=state.step, desc=task.name, unit="step") as bar,
        resume.keeping(state.write, position, state.size_bytes) as keep_if_due,
    ):
        while True:
            evaluation_due = state.step % params.evaluate_every_steps == 0 or state.step == n_steps
            if evaluation_due and not (state.curve and state.curve[-1]["step"] == state.step):
                if n_scored:
                    seconds = time.perf_counter() - start
                    speed = {"scored_per_second": n_scored / seconds, "training_seconds": seconds}
                    append_log(log, {"step": state.step, **speed})
                state.curve.append(_evaluate(model, task, state.step, n_steps, params, runtime, device))
                start, n_scored = time.perf_counter(), 0
            if state.step == n_steps:
                break
            keep_if_due()
            n_scored += optimizer_step(model, task, state, n_steps, params, runtime, device)
            bar.update()
    model.eval()
    return state.curve


class TrainingState:
    """All that the rest of a training depends on, between two optimizer steps.

    Data order and learning rate are functions of the step, so the step stands for them.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, samples: list[dict[str, Any]], device: torch.device
    ) -> None:
        self.step = 0
        self.curve: list[dict[str, float]] = []
        self.optimizer = optimizer
        self._weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.whole = True  # False while the weights are between two steps
        self._samples, self._device = samples, device
        self._random = random_states(device)
        self.size_bytes = 3 * sum(p.numel() * p.element_size() for p in self._weights.values())  # AdamW has two moments

    def update(self) -> None:
        """The optimizer's step, after which the random streams are noted: a step that is given up moves them too."""
        self.whole = False
        self.optimizer.step()
        self._random = random_states(self._device)
        self.step += 1
        self.whole = True

    def write(self, path: Path) -> None:
        """The state as it was when the last step ended."""
        torch.save(
            {
                "step": self.step,
                "curve": self.curve,
                "samples": self._samples[: len(self.curve)],
                "weights": {name: p.detach() for name, p in self._weights.items()},
                "optimizer": self.optimizer.state_dict(),
                "random": self._random,
            },
            path,
        )

    def read(self, path: Path) -> None:
        """Take over what `write` wrote."""
        found = torch.load(path, map_location="cpu", weights_only=True)
        self.step, self.curve, self._random = found["step"], found["curve"], found["random"]
        self._samples[:] = found["samples"]
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(found["weights"][name])
        self.optimizer.load_state_dict(found["optimizer"])
        restore_random_states(self._random)


def count_steps(n_examples: int, params: TrainingParams) -> int:
    """Optimizer steps in all: an epoch has as many as it has full batches. Raises UserError if that is none."""
    per_epoch = n_examples // params.batch_size
    n_steps = int(params.epochs * per_epoch + 1e-9)  # 0.29 * 100 is a little less than 29
    if not n_steps:
        raise UserError(
            f"{n_examples} training examples give {per_epoch} batches of {params.batch_size} an epoch, and "
            f"{params.epochs} epochs no step; lower batch_size{' or raise epochs' if per_epoch else ''}"
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


def optimizer_step(
    model: nn.Module,
    task: Task,
    state: TrainingState,
    n_steps: int,
    params: TrainingParams,
    runtime: RuntimeParams,
    device: torch.device,
) -> int:
    """Train `model` on the next batch of `task`; return how many items it scored. n_steps: of the whole training.

    Raises UserError if the batch scores nothing.
    """
    indices = batch_indices(state.step, task.n_examples, params.batch_size, runtime.seed)
    n_micro = math.ceil(len(indices) / params.max_micro_batch_size)
    batches = [task.batch(part) for part in np.array_split(indices, n_micro)]
    total = sum(batch.n_scored for batch in batches)
    if not total:
        raise UserError(
            f"{task.name}: no target is scored in step {state.step + 1}; shorten the prompts or widen the context"
        )
    for batch in batches:
        with autocast(runtime, device):
            loss = task.loss(model, *(tensor.to(device) for tensor in batch.tensors))
        (loss / total).backward()
    if params.max_grad_norm is not None:
        parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, params.max_grad_norm)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate_at(state.step, n_steps, params)
    state.update()
    state.optimizer.zero_grad(set_to_none=True)
    return total


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
        raise UserError(
            f"{task.name}: the loss is no longer a number at step {step} ({dict(figures)}); "
            "lower learning_rate, raise warmup_steps, or use precision float32"
        )
    rate = learning_rate_at(min(step, n_steps - 1), n_steps, params)
    epoch = step / (task.n_examples // params.batch_size)
    return {"step": step, "epoch": epoch, "learning_rate": rate, **figures}
