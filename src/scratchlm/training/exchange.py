"""The messages between the workers of a training, by torch's gloo: gradients to their owners, weights to all."""

import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from scratchlm.arithmetic.mode import is_exact
from scratchlm.run.errors import UserError
from scratchlm.run.workers import POLL_SECONDS, Place, timeout_seconds

MOMENTS = "exp_avg", "exp_avg_sq"  # of AdamW
COUNTS, VALUES = 0, 1 << 20  # tags of messages; the second is added to the number of a micro batch
INTERFACE_VARIABLE = "GLOO_SOCKET_IFNAME"  # gloo's own
CONNECT_SECONDS = 60.0  # for workers that are ready
_sockets: list[socket.socket] = []  # of gloo's connections

# Gradients of a worker: number of a parameter, use (see sequences.GradientSum; "" is `grad`) -> those to be added in
# this order, each in the parameter's shape
Gradients = dict[tuple[int, str], list[Tensor]]


def connect(place: Place, check: Callable[[], None] = lambda: None) -> None:
    """Connect this process with the others of the training.

    That is through the network interface that the user names, or else the one that has the address of this place. Rank
    0 connects when the others are ready, and is given `check`, which raises UserError if one has ended.
    Raises UserError if no interface has the address.
    """
    os.environ[INTERFACE_VARIABLE] = os.environ.get(INTERFACE_VARIABLE) or _interface(place.address)
    timeout, is_first = timedelta(seconds=timeout_seconds()), place.rank == 0
    if Path(place.store).is_absolute():
        store: dist.Store = dist.FileStore(place.store, place.n_workers)
    else:
        host, _, port = place.store.rpartition(":")
        listener = place.listener if is_first else None
        store = dist.TCPStore(
            host, int(port), place.n_workers, is_first, timeout, wait_for_workers=False, master_listen_fd=listener
        )
    _meet(store, place, check)
    before = _descriptors()
    dist.init_process_group("gloo", None, timeout, place.n_workers, place.rank, store)
    _sockets[:] = [socket.socket(fileno=os.dup(number)) for number in _descriptors() - before]


def _interface(address: str) -> str:
    """The name of the network interface of this machine that has an address."""
    for name, found in psutil.net_if_addrs().items():
        if address in [known.address for known in found]:
            return name
    raise UserError(
        f"no network interface of this machine has the address {address}; set {INTERFACE_VARIABLE} to the name of the "
        "one that the other workers can reach"
    )


def _meet(store: dist.Store, place: Place, check: Callable[[], None]) -> None:
    """Wait until all workers have called this: gloo would wait for one that has ended, too, and cannot be stopped."""
    names = [f"rank {rank}" for rank in range(place.n_workers)]
    limit = timeout_seconds() if place.rank else min(CONNECT_SECONDS, timeout_seconds())
    deadline = time.monotonic() + limit
    store.set(names[place.rank], "")
    while not store.check(names):
        check()
        if time.monotonic() > deadline:
            raise RuntimeError(f"it has not connected for {limit:.0f} seconds")
        time.sleep(POLL_SECONDS)


def cut() -> None:
    """End the exchanges of this process, which then raise RuntimeError. Any thread may call this.

    A connection to a machine that has been lost does not end by itself, and gloo's `abort` leaves it waiting.
    """
    for connection in [*_sockets]:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def disconnect() -> None:
    """Close the connections, if there are any. Exchanges with this worker then raise RuntimeError in the others."""
    while _sockets:
        _sockets.pop().close()
    if dist.is_initialized():
        dist.destroy_process_group()


def _descriptors() -> set[int]:
    return {connection.fd for connection in psutil.Process().net_connections("tcp") if connection.raddr}


def join_lists(own: list[Any], place: Place) -> list[Any]:
    """The lists of all workers, each of which calls this, one after the other in the order of ranks."""
    lists: list[Any] = [None] * place.n_workers
    dist.all_gather_object(lists, own)
    return [*chain.from_iterable(lists)]


def all_equal(value: str, place: Place) -> bool:
    """Whether all workers, each of which calls this, have the same value."""
    return len({*join_lists([value], place)}) == 1


def broadcast_number(number: int) -> int:
    """The number of rank 0, for all workers."""
    message = torch.tensor([number])
    dist.broadcast(message, 0)
    return int(message)


def all_reduce(values: Tensor) -> Tensor:
    """Replace values by their sums over all workers."""
    dist.all_reduce(values)
    return values


@torch.no_grad()
def broadcast_weights(parameters: Sequence[Sequence[nn.Parameter]]) -> None:
    """Overwrite all workers' weights of the parameters in the list number r with those of rank r."""
    flat = [torch.cat([weight.flatten() for weight in weights]) for weights in parameters if weights]
    works = [dist.broadcast(x, rank, async_op=True) for rank, x in enumerate(flat)]
    for rank, (work, x) in enumerate(zip(works, flat, strict=True)):
        assert work
        work.wait()
        if rank != dist.get_rank():
            for weight, part in zip(parameters[rank], x.split([w.numel() for w in parameters[rank]]), strict=True):
                weight.copy_(part.view_as(weight))


def owners_of(parameters: Sequence[nn.Parameter], n_workers: int) -> list[int]:
    """The rank of each parameter's owner, so that all have about as many weights; the first ranks have the largest.

    A parameter is never divided, since the last digits of its gradient's norm and of its update depend on its shape.
    """
    owners, loads = [0] * len(parameters), [0] * n_workers
    for number in sorted(range(len(parameters)), key=lambda number: -parameters[number].numel()):
        owners[number] = rank = loads.index(min(loads))
        loads[rank] += parameters[number].numel()
    return owners


def take_gradients(parameters: Sequence[nn.Parameter]) -> Gradients:
    """Take the gradients that the last backward passes left away from the parameters, which then have none."""
    found: Gradients = {}
    for number, parameter in enumerate(parameters):
        if parameter.grad is not None:
            found[number, ""] = [parameter.grad]
            parameter.grad = None
        for use, sums in parameter.__dict__.pop("exact_gradients", {}).items():
            found[number, use] = sums
    return found


@torch.no_grad()
def add_gradients(parameters: Sequence[nn.Parameter], gradients: Gradients) -> None:
    """Add gradients to those of the parameters, as the backward pass of the micro batch would have done it here."""
    for (number, use), found in gradients.items():
        parameter = parameters[number]
        for gradient in found:
            if use:
                sums = parameter.__dict__.setdefault("exact_gradients", {})
                sums.setdefault(use, [torch.zeros_like(parameter, dtype=torch.float64)])[0].add_(gradient)
            elif parameter.grad is None:
                parameter.grad = torch.empty_like(parameter).copy_(gradient)
            else:
                parameter.grad += gradient


def send_moments(optimizer: Optimizer, parameters: Iterable[nn.Parameter], rank: int) -> None:
    """Send the worker of this rank the optimizer's state of some parameters."""
    states = [optimizer.state.get(parameter, {}) for parameter in parameters]
    dist.send_object_list([[int(state["step"]) if state else 0 for state in states]], rank)
    flat = [state[name].flatten() for state in states if state for name in MOMENTS]
    if flat:
        dist.send(torch.cat(flat), rank)


def receive_moments(optimizer: Optimizer, parameters: Sequence[nn.Parameter], rank: int) -> None:
    """What send_moments sends from the worker of this rank."""
    message: list[list[int]] = [[]]
    dist.recv_object_list(message, rank)
    found = [(parameter, n) for parameter, n in zip(parameters, message[0], strict=True) if n]
    if not found:
        return
    flat = torch.empty(len(MOMENTS) * sum(parameter.numel() for parameter, _ in found))
    dist.recv(flat, rank)
    parts = iter(flat.split([parameter.numel() for parameter, _ in found for _ in MOMENTS]))
    for parameter, n_updates in found:
        moments = {name: next(parts).view_as(parameter).clone() for name in MOMENTS}
        optimizer.state[parameter] = {"step": torch.tensor(float(n_updates)), **moments}


class Exchange:
    """Gradients on their way from the workers that compute them to those that own their parameters."""

    def __init__(self, parameters: Sequence[nn.Parameter], place: Place) -> None:
        self._parameters, self._place = parameters, place
        self.owners = owners_of(parameters, place.n_workers)
        self._keys: list[tuple[int, str]] = []  # of a micro batch's gradients, which are the same in all workers
        self._posted: dict[int, tuple[dist.Work, Tensor]] = {}  # number of a message -> what will arrive
        self._sent: list[tuple[dist.Work, Tensor]] = []  # a tensor must stay until it has arrived

    def owned_by(self, rank: int) -> list[nn.Parameter]:
        """The parameters of one worker."""
        return [weight for weight, owner in zip(self._parameters, self.owners, strict=True) if owner == rank]

    def send(self, gradients: Gradients, message: int) -> Gradients:
        """Send those gradients to the owners of their parameters; return this worker's own."""
        self._keys = sorted(gradients)
        for rank in range(self._place.n_workers):
            parts = [gradients[key] for key in self._keys if self.owners[key[0]] == rank]
            if rank == self._place.rank or not parts:
                continue
            if is_exact():
                self._isend(torch.tensor([len(part) for part in parts]), rank, COUNTS + message)
            flat = [x.flatten().to(_dtype()) for part in parts for x in part]
            self._isend(torch.cat(flat), rank, VALUES + message)
        return {key: gradients[key] for key in self._own_keys()}

    def post(self, message: int, rank: int) -> None:
        """Let a message arrive while this worker computes, if its size is known already."""
        if not is_exact() and (keys := self._own_keys()):
            self._posted[message] = self._irecv([1] * len(keys), message, rank)

    def receive(self, message: int, rank: int) -> Gradients:
        """The gradients of own parameters in a message from the worker of this rank."""
        if not (keys := self._own_keys()):
            return {}
        counts = [1] * len(keys)
        if is_exact():
            arrived = torch.empty(len(keys), dtype=torch.int64)
            dist.recv(arrived, rank, tag=COUNTS + message)
            counts = arrived.tolist()
        posted = self._posted.pop(message) if message in self._posted else self._irecv(counts, message, rank)
        work, flat = posted
        work.wait()
        parts = flat.split(self._sizes(counts))
        shapes = [self._parameters[number].shape for number, _ in keys]
        return {key: [*part.view(-1, *shape)] for key, part, shape in zip(keys, parts, shapes, strict=True)}

    def finish(self) -> None:
        """Wait until all that was sent has arrived."""
        for work, _ in self._sent:
            work.wait()
        self._sent.clear()

    def all_gather(self, values: Sequence[float], order: Sequence[int]) -> list[float]:
        """One value of each parameter that has a gradient; each worker gives those of its own parameters.

        order: numbers of all parameters, in whose order the values are given and returned.
        """
        with_gradient = {number for number, _ in self._keys}
        found = torch.zeros(len(self._parameters), dtype=torch.float64)
        own = (number for number in order if number in with_gradient and self.owners[number] == self._place.rank)
        for number, value in zip(own, values, strict=True):
            found[number] = value
        dist.all_reduce(found)  # each is the sum of one value and zeros
        return [found[number].item() for number in order if number in with_gradient]

    def _isend(self, tensor: Tensor, rank: int, tag: int) -> None:
        work = dist.isend(tensor, rank, tag=tag)
        assert work
        self._sent.append((work, tensor))

    def _irecv(self, counts: Sequence[int], message: int, rank: int) -> tuple[dist.Work, Tensor]:
        flat = torch.empty(sum(self._sizes(counts)), dtype=_dtype())
        work = dist.irecv(flat, rank, tag=VALUES + message)
        assert work
        return work, flat

    def _own_keys(self) -> list[tuple[int, str]]:
        return [key for key in self._keys if self.owners[key[0]] == self._place.rank]

    def _sizes(self, counts: Sequence[int]) -> list[int]:
        keys = self._own_keys()
        return [n * self._parameters[number].numel() for n, (number, _) in zip(counts, keys, strict=True)]


def _dtype() -> torch.dtype:
    return torch.float64 if is_exact() else torch.float32
