"""The steps of a training for its curve: loss, gradient norm and learning rate, the same however a step is divided."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from scratchlm.arithmetic.mode import is_exact
from scratchlm.arithmetic.sequences import summed_items
from scratchlm.training.schedule import learning_rate_at

if TYPE_CHECKING:
    from scratchlm.training.loop import Batch
    from scratchlm.training.optimizer import TrainingParams

MAX_STEPS = 500  # that a curve has at most
UNIT = 2.0**-24  # nats, of losses in precision exact: sums of multiples below 2^53 do not depend on their order

AllReduce = Callable[[Tensor], Tensor]


class _Step(NamedTuple):
    """A step that is not read yet, since that waits for a card."""

    number: int
    losses: Tensor
    n_scored: int
    norm: float | Tensor | None


class StepHistory:
    """Rows with step, loss, gradient_norm and learning_rate of every step, or of at most MAX_STEPS, evenly spaced.

    loss: mean over the scored items of the step before its update, in nats. gradient_norm: before clipping; without
    clipping there is none.
    """

    def __init__(self, params: "TrainingParams", n_steps: int) -> None:
        self._params, self._n_steps = params, n_steps
        self._every = -(-n_steps // MAX_STEPS)
        self._losses: dict[int, Tensor] = {}  # of this step's micro batches, by their numbers
        self._unread: list[_Step] = []

    def add_loss(self, step: int, number: int, loss: Tensor) -> None:
        """Note the summed loss of a micro batch, right after it was computed. number: within the step."""
        if step % self._every:
            return
        items = summed_items() if is_exact() else None
        self._losses[number] = loss.detach().clone() if items is None else (items.double() / UNIT).round().sum() * UNIT

    def add_step(
        self, step: int, batches: "Sequence[Batch]", norm: float | Tensor | None, all_reduce: AllReduce | None
    ) -> None:
        """Note the step that follows `step` others. all_reduce: numbers of each worker -> their sums over all."""
        if step % self._every:
            return
        losses, self._losses, n_micro = self._losses, {}, len(batches)
        if all_reduce:
            found = torch.zeros(n_micro, dtype=torch.float64)
            for number, loss in losses.items():
                found[number] = loss
            values = all_reduce(found)
        else:
            values = torch.stack([losses[number] for number in range(n_micro)])
        self._unread.append(_Step(step + 1, values, sum(batch.n_scored for batch in batches), norm))

    def read(self, rows: list[dict[str, float]]) -> list[dict[str, float]]:
        """Append the noted steps to the rows, and return these. Waits for a card to finish the steps."""
        for step in self._unread:
            if rows and rows[-1]["step"] >= step.number:
                continue  # an interrupt came between the two
            norm = {} if step.norm is None else {"gradient_norm": float(step.norm)}
            rate = learning_rate_at(step.number - 1, self._n_steps, self._params)
            loss = sum(step.losses.tolist()) / step.n_scored
            rows.append({"step": step.number, "loss": loss, **norm, "learning_rate": rate})
        self._unread.clear()
        return rows
