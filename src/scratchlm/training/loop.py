"""The one training loop. Pretraining and every finetuning give it their batches, loss and evaluation."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from scratchlm.arithmetic.autograd import collect_gradients
from scratchlm.arithmetic.fingerprint import arithmetic_fingerprint
from scratchlm.arithmetic.functions import clip_gradients
from scratchlm.arithmetic.mode import compiler, has_static_shapes
from scratchlm.arithmetic.random import random_states, restore_random_states, stream
from scratchlm.fast.compiler import compiled
from scratchlm.fast.cuda_graphs import CapturedGradients
from scratchlm.fast.malloc import Gaps
from scratchlm.model.gpt import GPTModel, evaluating
from scratchlm.run.context import Run
from scratchlm.run.errors import UserError
from scratchlm.run.progress import training_values, validation
from scratchlm.run.tensorboard import event_files
from scratchlm.run.workers import worker_place
from scratchlm.training.gradients import add_gradients, micro_batches
from scratchlm.training.history import StepHistory
from scratchlm.training.optimizer import TrainingParams, build_optimizer
from scratchlm.training.schedule import learning_rate_at
from scratchlm.training.workers import Workers, serve, workers_of

Metrics = Mapping[str, float]


class Batch(NamedTuple):
    """Tensors that the loss takes after the model, and how many items it sums over."""

    tensors: tuple[Tensor, ...]
    n_scored: int


def no_sample(model: nn.Module) -> dict[str, Any]:
    """For a task that shows no examples while it trains."""
    return {}


class Task(NamedTuple):
    """A model's training task.

    batch: indices of examples -> Batch on the CPU. loss: (model, *tensors) -> the summed loss over n_scored items.
    evaluate: model -> the metrics of a row of the curve. sample: model -> a record of what it writes, {} for none.
    These two change nothing: no weights, no random stream. static_loss: like loss, with no shape that depends on the
    tensors' numbers, to be captured and, if is_compiled, compiled; None: there is none. step: instead of
    optimizer_step, for a task that makes its batches with the model; it then calls `update` with a loss of its own,
    and loss is not used. scored: the items, in short, as progress names them.
    """

    name: str
    params: TrainingParams
    n_examples: int
    batch: Callable[[np.ndarray], Batch]
    loss: Callable[..., Tensor]
    evaluate: Callable[[Any], Metrics]
    sample: Callable[[Any], Mapping[str, Any]] = no_sample
    static_loss: Callable[..., Tensor] | None = None
    is_compiled: bool = True
    step: "Callable[[TrainingState], int] | None" = None
    scored: str = "tok"

    @property
    def batches_per_epoch(self) -> int:
        return self.n_examples // self.params.batch_size

    @property
    def n_steps(self) -> int:
        """Optimizer steps in all: an epoch has as many as it has full batches. Raises UserError if that is none."""
        p = self.params
        n_steps = int(p.epochs * self.batches_per_epoch + 1e-9)  # 0.29 * 100 is a little less than 29
        if not n_steps:
            raise UserError(
                f"{self.n_examples} training examples make {self.batches_per_epoch} full batches of {p.batch_size}, so "
                f"{p.epochs} epochs are 0 steps; lower batch_size{' or raise epochs' if self.batches_per_epoch else ''}"
            )
        return n_steps


class Training(NamedTuple):
    """curve: step, epoch, learning rate and metrics of each evaluation. samples: one per evaluation, or none.

    steps: what a task's own step says of each step; of other tasks the rows of StepHistory.
    """

    curve: list[dict[str, float]]
    samples: list[dict[str, Any]]
    steps: list[dict[str, float]]


def train(model: nn.Module, task: Task, run: Run) -> Training:
    """Train `model` in place, evaluating at step 0, every evaluate_every_steps and at the end.

    The mean gradient of a step is over scored items, however the batch is cut into micro batches. Resumes from the
    run's checkpoint, to the same bits as if it had never stopped.
    Raises UserError if there are fewer examples than one batch, or if the loss is not finite.
    """
    n_steps = task.n_steps
    if n_steps < task.params.warmup_steps:
        run.say(f"warmup_steps is {task.params.warmup_steps}, of {n_steps} steps in all: learning_rate is not reached")
    torch.manual_seed(stream(run.seed, f"{task.name} dropout"))
    state = TrainingState(model, task, run)
    model.train()
    if place := worker_place():
        serve(state, place, task.step or optimizer_step)
    run.checkpoint.require(arithmetic_fingerprint(state.device.type))
    if path := run.checkpoint.load():
        state.read(path)
        run.checkpoint.resumed(state.position())
    if state.captured and compiler() and task.is_compiled:
        run.say("compile is true, so the first step of each shape takes half a minute")
    start, n_scored = time.perf_counter(), 0
    with (
        workers_of(state) as state.workers,
        run.progress(n_steps, state.step, "step") as bar,
        run.checkpoint.saving(state.write, state.position, state.size_bytes) as save_if_due,
        event_files(run.events) as write_new,
    ):
        while True:
            if state.evaluation_due():
                if n_scored:
                    if state.device.type == "cuda":
                        torch.cuda.synchronize()  # steps may still be queued
                    s = time.perf_counter() - start
                    spent = {"exchange_seconds": state.workers.exchange_seconds} if state.workers else {}
                    run.record({"step": state.step, "scored_per_second": n_scored / s, "training_seconds": s, **spent})
                state.evaluate()
                bar.note(validation(state.curve[-1]))
                start, n_scored = time.perf_counter(), 0
            write_new(state.steps, state.curve)
            if state.step == n_steps:
                break
            save_if_due()
            n_scored += (task.step or optimizer_step)(state)
            bar.update(1, partial(state.values_shown, n_scored, start))
    model.eval()
    return Training(state.curve, state.samples, state.history.read(state.steps))


class TrainingState:
    """Everything that the rest of a training depends on, between two optimizer steps.

    Data order and learning rate are functions of the step, so they need not be saved.
    """

    def __init__(self, model: nn.Module, task: Task, run: Run) -> None:
        self.model, self.task, self.run = model, task, run
        self.device = next(model.parameters()).device
        gpts = [module for module in model.modules() if isinstance(module, GPTModel)]
        # Then the backward pass draws the dropout again, and reading the random state cannot be captured
        redraws = task.params.checkpoint_activations and any(gpt.config.dropout for gpt in gpts)
        self.captured: CapturedGradients | None = None
        if has_static_shapes() and task.static_loss:
            loss = compiled(task.static_loss) if compiler() and task.is_compiled else task.static_loss
            self.captured = CapturedGradients(model, loss, run, capture=not redraws)
        self.optimizer = build_optimizer(model, task.params)
        for gpt in gpts:
            gpt.checkpoint_activations = task.params.checkpoint_activations
        self.step, self.n_steps = 0, task.n_steps
        self.workers: Workers | None = None
        self.curve: list[dict[str, float]] = []
        self.samples: list[dict[str, Any]] = []
        self.steps: list[dict[str, float]] = []
        self.history = StepHistory(task.params, self.n_steps)
        self.loss: tuple[Tensor, int] | None = None  # summed, of the last micro batch, and over how many items
        self._weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._consistent = True  # False while the weights are between two steps
        self._random = random_states(self.device)
        self._gaps = Gaps()
        self.size_bytes = 3 * sum(p.numel() * p.element_size() for p in self._weights.values())  # AdamW has two moments

    def weights(self) -> list[nn.Parameter]:
        """Those that are trained."""
        return [*self._weights.values()]

    def position(self) -> str | None:
        """The position of training in words; None if no checkpoint can be written or nothing would be lost."""
        can_write = self._consistent and not (self.workers and self.workers.is_busy)
        return f"step {self.step} of {self.n_steps}" if self.step and can_write else None

    def evaluation_due(self) -> bool:
        """Whether the curve lacks a row for this step."""
        due = self.step % self.task.params.evaluate_every_steps == 0 or self.step == self.n_steps
        return due and not (self.curve and self.curve[-1]["step"] == self.step)

    def values_shown(self, n_scored: int, start: float) -> str:
        """The last step in words. The loss is its last micro batch's; to read it waits for a card."""
        loss = self.loss[0].item() / self.loss[1] if self.loss else None
        rate = learning_rate_at(self.step - 1, self.n_steps, self.task.params)
        return training_values(loss, rate, n_scored / (time.perf_counter() - start), self.task.scored)

    def evaluate(self) -> None:
        """Add a row to the curve, and a sample if there is one. Raises UserError for a metric that is not finite."""
        task = self.task
        with evaluating(self.model), self.run.autocast():
            with self.workers.evaluation() if self.workers else nullcontext():
                metrics = dict(task.evaluate(self.model))
            if not all(math.isfinite(value) for value in metrics.values()):
                raise UserError(
                    f"{task.name}: the loss is not a finite number at step {self.step} ({metrics}); "
                    "lower learning_rate, raise warmup_steps, or use precision float32"
                )
            sample = task.sample(self.model)
        rate = learning_rate_at(min(self.step, self.n_steps - 1), self.n_steps, task.params)
        epoch = self.step / task.batches_per_epoch
        if sample:
            self.samples.append({"evaluation": len(self.curve), **metrics, **sample})
        self.curve.append({"step": self.step, "epoch": epoch, "learning_rate": rate, **metrics})
        self.history.read(self.steps)  # waits for nothing: the evaluation has waited for the card

    @contextmanager
    def one_step(self) -> Iterator[None]:
        """The block is one step: its updates, and at the end the random streams, which a failed step advances too."""
        with self.workers.step() if self.workers else nullcontext():
            yield
            self._random = random_states(self.device)
            self.step += 1
            self._consistent = True
            self._gaps.give_back()

    def update_weights(self) -> None:
        """Apply the gradients. From here to the end of the step, nothing can be saved."""
        self._consistent = False
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.workers:
            self.workers.broadcast_weights()

    def write(self, path: Path) -> None:
        """Save the state as it was when the last step ended."""
        state: dict[str, Any] = {
            "step": self.step,
            "curve": self.curve,
            "samples": self.samples[: len(self.curve)],  # an interrupt may come between the two
            "steps": [row for row in self.history.read(self.steps) if row["step"] <= self.step],
            "weights": {name: p.detach() for name, p in self._weights.items()},
            "random": self._random,
        }
        with self.workers.whole_state() if self.workers else nullcontext(), path.open("wb") as file:
            torch.save(state | {"optimizer": self.optimizer.state_dict()}, file)  # of a path, it hides the OSError

    def read(self, path: Path) -> None:
        """Restore what `write` saved."""
        found = torch.load(path, map_location="cpu", weights_only=True)
        self.step, self.curve, self.samples = found["step"], found["curve"], found["samples"]
        self.steps = found["steps"]
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(found["weights"][name])
        self.optimizer.load_state_dict(found["optimizer"])
        self._random = found["random"]
        restore_random_states(self._random)


def optimizer_step(state: TrainingState) -> int:
    """Train on the next batch; return how many items it scored. Raises UserError if it scores none."""
    batches = micro_batches(state.task, state.step, state.run.seed)
    with state.one_step():
        return update(state, batches)


def update(
    state: TrainingState, batches: Sequence[Batch], number: int = 0, loss_of: Callable[..., Tensor] | None = None
) -> int:
    """Apply the mean gradient over the batches' scored items; return how many. Raises UserError if there are none.

    number: of the update within the step. loss_of: instead of the task's loss.
    """
    task, params = state.task, state.task.params
    total = sum(batch.n_scored for batch in batches)
    if not total:
        raise UserError(
            f"{task.name}: step {state.step + 1} scores no target; shorten the prompts or use a longer context"
        )
    if workers := state.workers:
        workers.add_gradients(batches, number, loss_of)
    else:
        add_gradients(state, batches, range(len(batches)), number, loss_of)
    collect_gradients(state.model)
    norm = None
    if params.max_grad_norm is not None:
        parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
        norm = clip_gradients(parameters, params.max_grad_norm, workers.all_gather if workers else None)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate_at(state.step, state.n_steps, params)
    state.update_weights()
    if not loss_of:
        state.history.add_step(state.step, batches, norm, workers.all_reduce if workers else None)
    return total
