"""One training by several processes: each computes some of a step's micro batches, and no bit depends on how many.

Parameters cut a step into micro batches; the number of workers never does. Each worker computes a contiguous share of
them and owns some of the model's parameters. Gradients go to the owners of their parameters, who add them in the order
of the micro batches, as one process does, update these parameters, and send them to all. So an owner has the only
optimizer state of its parameters (ZeRO, Rajbhandari et al. 2020, section 5); the stage's own process (rank 0) collects
it for each checkpoint.

The arithmetic `exact` adds gradients sequence by sequence, so there a worker sends the gradient of each sequence.
"""

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from scratchlm.arithmetic.fingerprint import arithmetic_fingerprint
from scratchlm.arithmetic.mode import compiler, is_exact, n_threads, shared_threads
from scratchlm.arithmetic.sequences import sequences_apart
from scratchlm.model.gpt import evaluating
from scratchlm.run.context import Run
from scratchlm.run.errors import UserError
from scratchlm.run.interrupts import uninterrupted
from scratchlm.run.workers import (
    Place,
    WorkerProcesses,
    limited_workers,
    ready,
    requested_workers,
    worker_processes,
)
from scratchlm.training import exchange
from scratchlm.training.evaluation import dividing_batches
from scratchlm.training.gradients import add_gradients, micro_batches

if TYPE_CHECKING:
    from scratchlm.training.loop import Batch, TrainingState

STEP, EVALUATE, COLLECT = 0, 1, 2  # commands to the other workers; COLLECT: send your optimizer state


def n_workers(state: "TrainingState") -> int:
    """How many processes train. Says why if they are fewer than the user wants."""
    if requested_workers() == 1:
        return 1
    n_most = state.task.params.n_micro_batches
    at_most = f"at max_micro_batch_size {state.task.params.max_micro_batch_size}"
    reason = f"{at_most} a step has micro batches for no more than {n_most}; lower it to use more"
    if state.device.type != "cpu" or compiler():
        n_most, reason = 1, "only trainings on the device cpu, with compile false, are divided; one process trains"
    return limited_workers(n_most, reason, state.run.say)


def other_processes(n: int, run: Run) -> AbstractContextManager[WorkerProcesses]:
    """Within the block, n - 1 other processes run this one's command; they share the threads of exact arithmetic."""
    threads = n_threads() if is_exact() else torch.get_num_threads()
    return worker_processes(n, threads, is_exact(), run.log or Path(tempfile.gettempdir(), "scratchlm"))


@contextmanager
def workers_of(state: "TrainingState") -> Iterator["Workers | None"]:
    """Within the block other processes take part in the training; None if there are none."""
    if (n := n_workers(state)) == 1:
        yield None
        return
    with other_processes(n, state.run) as processes:
        try:
            yield Workers(state, processes.place(0), processes)
        finally:
            exchange.disconnect()


class Workers:
    """All workers of a training, as one of them uses them. They are connected at the first step.

    processes: of the other workers, in the stage's own process, where each method raises UserError if one has ended or
    does not answer. In the others, each ends the process then.
    """

    def __init__(self, state: "TrainingState", place: Place, processes: WorkerProcesses | None) -> None:
        self._state, self._place, self._processes = state, place, processes
        self._parameters = state.weights()
        self._exchange = exchange.Exchange(self._parameters, place)
        numbers = {parameter: i for i, parameter in enumerate(self._parameters)}
        self._order = [numbers[p] for group in state.optimizer.param_groups for p in group["params"]]
        self._is_connected = False
        self.is_busy = False  # while no checkpoint can be collected
        self.exchange_seconds = 0.0  # in which this worker waited for messages

    def connect(self) -> None:
        """Connect the workers, and give each the weights, the step and its parameters' optimizer state.

        Raises UserError if they compute with different parameters or data.
        """
        with self._exchanging():
            if self._processes:
                exchange.connect(self._place, self._processes.check)
                self._processes.when_one_ends(exchange.cut)
            else:
                exchange.connect(self._place)
            refuse_differences(self._state, self._place)
            self._state.step = exchange.broadcast_number(self._state.step)
            exchange.broadcast_weights([self._parameters])
            if self._processes:
                for rank in range(1, self._place.n_workers):
                    exchange.send_moments(self._state.optimizer, self._exchange.owned_by(rank), rank)
                self._forget_moments()
            else:
                self._receive_moments(self._place.rank, 0)
        self._is_connected = True

    @contextmanager
    def step(self) -> Iterator[None]:
        """The block is one step of all workers."""
        if self._processes and not self._is_connected:
            self._place = self._processes.wait_until_ready()
        with self._together(STEP):
            yield

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Within the block, the workers divide the batches of an evaluation.

        Before the first step, the stage's own process computes them all while the others start.
        """
        if not self._is_connected:
            yield
            return
        with self._together(EVALUATE):
            yield

    def add_gradients(self, batches: "Sequence[Batch]", number: int, loss_of: Callable[..., Tensor] | None) -> None:
        """Compute the gradients of own micro batches, and add all gradients of own parameters; see loop.update."""
        rank, order = self._place.rank, messages(len(batches), self._place)
        for message, sender in order:
            if sender != rank:
                with self._exchanging():
                    self._exchange.post(message, sender)
        own: dict[int, exchange.Gradients] = {}
        with sequences_apart() if rank else nullcontext():
            for i in share(len(batches), self._place):
                add_gradients(self._state, batches, [i], number, loss_of)
                if (i, rank) in order:
                    gradients = exchange.take_gradients(self._parameters)
                    with self._exchanging():
                        own[i] = self._exchange.send(gradients, i)
        for message, sender in order:
            with self._exchanging():
                found = own.pop(message) if sender == rank else self._exchange.receive(message, sender)
            exchange.add_gradients(self._parameters, found)
        with self._exchanging():
            self._exchange.finish()

    def all_gather(self, values: Sequence[float]) -> list[float]:
        """From values of own parameters, those of all that have gradients, in the order of the optimizer."""
        with self._exchanging():
            return self._exchange.all_gather(values, self._order)

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sums of the values of all workers: float64 in any shape, which is overwritten."""
        with self._exchanging():
            return exchange.all_reduce(values)

    def broadcast_weights(self) -> None:
        """Give each worker the parameters that the others have updated."""
        with self._exchanging():
            exchange.broadcast_weights([self._exchange.owned_by(rank) for rank in range(self._place.n_workers)])

    @contextmanager
    def whole_state(self) -> Iterator[None]:
        """Within the block, the stage's own process has the optimizer state of all parameters; Ctrl-C waits for it."""
        with uninterrupted():
            if self._is_connected:
                self._command(COLLECT)
                with self._exchanging():
                    for rank in range(1, self._place.n_workers):
                        self._receive_moments(rank, rank)
            yield
            if self._is_connected:
                self._forget_moments()

    def serve(self, step: "Callable[[TrainingState], int]") -> NoReturn:
        """Connect with the others and take part in each step, until the stage's own process ends the training."""
        self.connect()
        state = self._state
        while True:
            with self._exchanging():
                command = exchange.broadcast_number(STEP)
            if command == STEP:
                step(state)
            elif command == EVALUATE:
                with self.evaluation(), evaluating(state.model), state.run.autocast():
                    state.task.evaluate(state.model)
            else:
                with self._exchanging():
                    exchange.send_moments(state.optimizer, self._exchange.owned_by(self._place.rank), 0)

    @contextmanager
    def _together(self, command: int) -> Iterator[None]:
        """The block is work of all workers, who share the threads of the exact arithmetic; Ctrl-C waits for it."""
        with uninterrupted():
            self.is_busy = True
            if not self._is_connected:
                self.connect()
            if self._processes:
                self._command(command)
            with shared_threads(self._place.threads), dividing_batches(self._map_batches):
                yield
            self.is_busy = False

    def _map_batches(self, compute: Callable[[Any], Any], batches: Sequence[Any]) -> list[Any]:
        own = [compute(batches[i]) for i in share(len(batches), self._place)]
        with self._exchanging():
            return exchange.join_lists(own, self._place)

    def _command(self, command: int) -> None:
        with self._exchanging():
            exchange.broadcast_number(command)

    def _receive_moments(self, owner: int, sender: int) -> None:
        exchange.receive_moments(self._state.optimizer, self._exchange.owned_by(owner), sender)

    def _forget_moments(self) -> None:
        for rank in range(1, self._place.n_workers):
            for parameter in self._exchange.owned_by(rank):
                self._state.optimizer.state.pop(parameter, None)

    @contextmanager
    def _exchanging(self) -> Iterator[None]:
        """The time in the block counts as exchange. A closed connection ends the training; see the class."""
        begin = time.perf_counter()
        try:
            yield
        except RuntimeError as error:  # of gloo
            fault = str(error).partition("\n")[0]
            if self._processes:
                raise self._processes.lost(fault) from None
            print(fault, file=sys.stderr, flush=True)
            os._exit(1)
        self.exchange_seconds += time.perf_counter() - begin


def messages(n_micro: int, place: Place) -> list[tuple[int, int]]:
    """The messages with gradients of a step in the order of their sums: micro batch and rank of the worker that sends.

    Rank 0 has the first micro batches, and sends their sum with the last of them.
    """
    shares = [share(n_micro, place._replace(rank=rank)) for rank in range(place.n_workers)]
    return [(shares[0][-1], 0)] + [(i, rank) for rank, own in enumerate(shares[1:], 1) for i in own]


def serve(state: "TrainingState", place: Place, step: "Callable[[TrainingState], int]") -> NoReturn:
    """Compute this worker's share of each step, and update its parameters, until the training ends."""
    ready()
    state.workers = Workers(state, place, None)
    state.workers.serve(step)


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
