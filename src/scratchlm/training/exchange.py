"""The messages between the workers of a training, by torch's gloo: weights to all, gradients to rank 0."""

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn

from scratchlm.arithmetic.mode import is_exact
from scratchlm.run.workers import Place, patience_seconds

_sockets: list[socket.socket] = []  # of gloo's connections

# The gradients of a micro batch: number of a parameter, use (see sequences.GradientSum; "" is `grad`) -> those to be
# added in this order, each in the parameter's shape
Gradients = dict[tuple[int, str], Sequence[Tensor]]


def connect(place: Place) -> None:
    """Connect this process with the others of the training, through the network interface that has its address."""
    interfaces = psutil.net_if_addrs()
    name = next(name for name, found in interfaces.items() if place.address in [known.address for known in found])
    os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    patience, is_first = timedelta(seconds=patience_seconds()), place.rank == 0
    if Path(place.store).is_absolute():
        store: dist.Store = dist.FileStore(place.store, place.n_workers)
    else:
        host, _, port = place.store.rpartition(":")
        listener = place.listener if is_first else None
        store = dist.TCPStore(host, int(port), place.n_workers, is_first, patience, master_listen_fd=listener)
    before = _descriptors()
    dist.init_process_group("gloo", None, patience, place.n_workers, place.rank, store)
    _sockets[:] = [socket.socket(fileno=os.dup(number)) for number in _descriptors() - before]


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


def all_equal(value: str, place: Place) -> bool:
    """Whether all workers, each of which calls this, have the same value."""
    values: list[Any] = [None] * place.n_workers
    dist.all_gather_object(values, value)
    return len({*values}) == 1


@torch.no_grad()
def share_weights(weights: Sequence[Tensor], step: int) -> int:
    """Overwrite the weights of all workers with those of rank 0; return the step of rank 0."""
    number, flat = torch.tensor([step]), torch.cat([weight.flatten() for weight in weights])
    dist.broadcast(number, 0)
    dist.broadcast(flat, 0)
    for weight, part in zip(weights, flat.split([weight.numel() for weight in weights]), strict=True):
        weight.copy_(part.view_as(weight))
    return int(number)


def send_gradients(gradients: Gradients) -> None:
    """Send rank 0 the gradients of one micro batch."""
    flat = [x.flatten().to(_dtype()) for found in gradients.values() for x in found]
    dist.send_object_list([{key: len(found) for key, found in gradients.items()}], 0)
    dist.send(torch.cat(flat), 0)


def receive_gradients(parameters: Sequence[nn.Parameter], rank: int) -> Gradients:
    """The gradients of one micro batch from the worker of this rank."""
    message: list[dict[tuple[int, str], int]] = [{}]
    dist.recv_object_list(message, rank)
    counts = message[0]
    sizes = [n * parameters[number].numel() for (number, _), n in counts.items()]
    flat = torch.empty(sum(sizes), dtype=_dtype())
    dist.recv(flat, rank)
    parts = zip(counts.items(), flat.split(sizes), strict=True)
    return {key: [*part.view(n, *parameters[key[0]].shape)] for (key, n), part in parts}


def take_gradients(parameters: Sequence[nn.Parameter]) -> Gradients:
    """Take the gradients of one micro batch away from the parameters, which then have none."""
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


def _dtype() -> torch.dtype:
    return torch.float64 if is_exact() else torch.float32
