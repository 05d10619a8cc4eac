"""One training by several processes: each computes some of a step's micro batches, and no bit depends on how many.

Parameters cut a step into micro batches; the number of workers never does. Each worker computes a contiguous share of
them. The stage's own process (rank 0) adds their gradients in the order of the micro batches, as it does alone, updates
the weights and sends them to the others for the next step. It has the only state; the others keep nothing.

The arithmetic `exact` adds gradients sequence by sequence, so there a worker sends the gradient of each sequence.
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import torch

from scratchlm.arithmetic.fingerprint import arithmetic_fingerprint
from scratchlm.arithmetic.mode import compiler, is_exact, n_threads, shared_threads
from scratchlm.arithmetic.sequences import sequences_apart
from scratchlm.run.errors import UserError
from scratchlm.run.workers import COUNT_VARIABLE, Place, WorkerProcesses, ready, requested_workers, worker_processes
from scratchlm.training import exchange
from scratchlm.training.gradients import add_gradients, micro_batches, n_micro_batches

if TYPE_CHECKING:
    from scratchlm.training.loop import Batch, TrainingState


def n_workers(state: "TrainingState") -> int:
    """How many processes train. Says why if they are fewer than the user wants."""
    wanted = requested_workers()
    if wanted == 1:
        return 1
    n_most = n_micro_batches(state.task)
    at_most = f"at max_micro_batch_size {state.task.params.max_micro_batch_size}"
    reason = f"{at_most} a step has micro batches for no more than {n_most}; lower it to use more"
    if state.task.step:
        n_most, reason = 1, "this stage makes its batches with the model; one process trains"
    elif state.device.type != "cpu" or compiler():
        n_most, reason = 1, "only trainings on the device cpu, with compile false, are divided; one process trains"
    if n_most < wanted:
        state.run.say(f"{COUNT_VARIABLE} is {wanted}, but {reason}")
    return min(wanted, n_most)


@contextmanager
def workers_of(state: "TrainingState") -> Iterator["Workers | None"]:
    """Within the block other processes take part in the training; None if there are none."""
    if (n := n_workers(state)) == 1:
        yield None
        return
    beside = state.run.log or Path(tempfile.gettempdir(), "scratchlm")
    threads = n_threads() if is_exact() else torch.get_num_threads()
    with worker_processes(n, threads, is_exact(), beside) as processes:
        try:
            yield Workers(state, processes)
        finally:
            exchange.disconnect()


class Workers:
    """The other workers, as the stage's own process uses them. They are connected at the first step.

    Raises UserError if one has ended, does not answer, or computes with other parameters or data.
    """

    def __init__(self, state: "TrainingState", processes: WorkerProcesses) -> None:
        self._state, self._processes = state, processes
        self._parameters = [*state.model.parameters()]
        self._place: Place | None = None  # once they are connected

    def add_gradients(self, batches: "Sequence[Batch]") -> None:
        """Have all workers compute the gradients of a step's micro batches, and add them in their order."""
        with self._losing_none():
            place = self._place or self._connect()
            exchange.share_weights(self._state.weights(), self._state.step)
        with shared_threads(place.threads):
            add_gradients(self._state, batches, share(len(batches), place))
        for rank in range(1, place.n_workers):
            for _ in share(len(batches), place._replace(rank=rank)):
                with self._losing_none():
                    found = exchange.receive_gradients(self._parameters, rank)
                exchange.add_gradients(self._parameters, found)

    def _connect(self) -> Place:
        self._place = place = self._processes.wait_until_ready()
        exchange.connect(place)
        self._processes.when_one_ends(exchange.cut)
        refuse_differences(self._state, place)
        return place

    @contextmanager
    def _losing_none(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # of gloo
            raise self._processes.lost(str(error).partition("\n")[0]) from None


def serve(state: "TrainingState", place: Place) -> NoReturn:
    """Compute this worker's share of each step, until the stage's own process ends the training."""
    parameters = [*state.model.parameters()]
    ready()
    with _ending_with_the_others():
        exchange.connect(place)
        refuse_differences(state, place)
    with shared_threads(place.threads), sequences_apart():
        while True:
            with _ending_with_the_others():
                state.step = exchange.share_weights(state.weights(), state.step)
            batches, found = micro_batches(state.task, state.step, state.run.seed), []
            for i in share(len(batches), place):
                add_gradients(state, batches, [i])
                found.append(exchange.take_gradients(parameters))
            with _ending_with_the_others():
                for gradients in found:
                    exchange.send_gradients(gradients)


@contextmanager
def _ending_with_the_others() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of gloo: another process has closed the connection
        print(str(error).partition("\n")[0], file=sys.stderr, flush=True)
        os._exit(1)


def share(n_micro: int, place: Place) -> list[int]:
    """The numbers of the micro batches that a worker computes, of n_micro; the first workers may have one more."""
    return np.array_split(np.arange(n_micro), place.n_workers)[place.rank].tolist()


def refuse_differences(state: "TrainingState", place: Place) -> None:
    """Raises UserError unless all workers, each of which calls this, compute the same from the same."""
    if not exchange.all_equal(arithmetic_fingerprint(state.device.type), place):
        raise UserError(
            f"the processors of the workers differ, and compute other last digits in precision {state.run.precision}; "
            "train on nodes of one kind, or set precision to exact"
        )
    if not exchange.all_equal(digest(state), place):
        raise UserError(
            "the workers of this training have read other parameters or data, since a file has changed meanwhile; "
            "run this again"
        )


def digest(state: "TrainingState") -> str:
    """A hash of what all workers must have in common: parameters, the shapes of weights, a first batch."""
    task, run = state.task, state.run
    values = [task.name, task.params.model_dump_json(), task.n_examples, run.seed, run.precision]
    values += [weight.shape for weight in state.weights()]
    found = hashlib.sha256(repr(values).encode())
    for batch in micro_batches(task, 0, run.seed):
        for tensor in batch.tensors:
            found.update(tensor.numpy().tobytes())
    return found.hexdigest()
