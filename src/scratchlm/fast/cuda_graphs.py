"""Work of a GPU captured as CUDA graphs: gradients of trainings, evaluations, prompts and decoding steps.

Surprising: beside an H100, the processor needs 20 µs to launch an operation and 150 to 330 µs for a matrix product,
whose library looks for a kernel at each call. A compiled step of 124M with 800 launches took 45 ms, of which the card
computed 36. A graph is launched at once, but has the addresses and shapes of when it was captured: so inputs are copied
to static tensors, each shape is captured, and no shape may depend on the numbers in a tensor.

On a device without graphs, the work is run instead of captured: tests/unit/fast/test_cuda_graphs.py.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from scratchlm.arithmetic.random import random_states, restore_random_states
from scratchlm.run.context import Run

T = TypeVar("T")

WARM_UP = 1  # runs before a graph is captured: libraries choose kernels and workspaces in the first one


def captured(work: Callable[[], T], device: torch.device, pool: Any = None) -> Callable[[], T]:
    """`work` as a CUDA graph: each call computes it anew from the tensors that it reads, into the same results.

    pool: of memory, for graphs that are never replayed at the same time. No random stream is touched.
    """
    if device.type != "cuda":
        return work
    states = random_states(device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(side)
    restore_random_states(states)
    graph = torch.cuda.CUDAGraph()
    # A surrounding autocast keeps weights that it has converted: the graph has to convert them itself, each time
    torch.clear_autocast_cache()
    with torch.cuda.graph(graph, pool=pool):
        result = work()
    torch.clear_autocast_cache()

    def replay() -> T:
        graph.replay()
        return result

    return replay


class CapturedFunction(Generic[T]):
    """work(*tensors) on a device, each shape of the tensors captured when it first comes.

    The next call with the same shapes overwrites the result.
    """

    def __init__(self, work: Callable[..., T], device: torch.device, capture: bool = True) -> None:
        self._work, self._device, self._capture = work, device, capture
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self._graphs: dict[tuple[Any, ...], tuple[list[Tensor], Callable[[], T]]] = {}

    def __call__(self, *tensors: Tensor) -> T:
        """tensors: on the CPU."""
        shape = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        if shape not in self._graphs:
            inputs = [tensor.to(self._device, copy=True) for tensor in tensors]
            work = partial(self._work, *inputs)
            self._graphs[shape] = inputs, captured(work, self._device, self._pool) if self._capture else work
        inputs, replay = self._graphs[shape]
        for static, tensor in zip(inputs, tensors, strict=True):
            static.copy_(pinned(tensor, self._device), non_blocking=True)
        return replay()


class CapturedModel(Generic[T]):
    """work(model, *tensors), captured again for another model, or for other layers of it, such as LoRA's."""

    def __init__(self, work: Callable[..., T]) -> None:
        self._work, self._layers = work, list[nn.Module]()
        self._captured: CapturedFunction[T]

    def __call__(self, model: nn.Module, *tensors: Tensor) -> T:
        if (layers := [*model.modules()]) != self._layers:
            self._layers = layers
            self._captured = CapturedFunction(partial(self._work, model), next(model.parameters()).device)
        return self._captured(*tensors)


class CapturedGradients:
    """The gradients of loss(model, *tensors) / total. capture: whether they can be captured."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor], run: Run, capture: bool) -> None:
        self._trained = [p for p in model.parameters() if p.requires_grad]

        def gradients(total: Tensor, *tensors: Tensor) -> tuple[Tensor, Sequence[Tensor | None]]:
            with run.autocast():
                found = loss(model, *tensors)
            return found.detach(), torch.autograd.grad(found / total, self._trained, allow_unused=True)

        self._gradients = CapturedFunction(gradients, next(model.parameters()).device, capture)

    def add(self, tensors: Sequence[Tensor], total: int, is_only: bool) -> Tensor:
        """Add the gradients to those that the parameters have; return the loss, which the next call overwrites.

        is_only: they have none, and get no others.
        """
        loss, gradients = self._gradients(torch.tensor(float(total)), *tensors)
        found = [(p, new) for p, new in zip(self._trained, gradients, strict=True) if new is not None]
        if all(p.grad is None for p, _ in found):
            for p, new in found:
                p.grad = new if is_only else new.clone()
        else:
            torch._foreach_add_([p.grad for p, _ in found], [new for _, new in found])  # type: ignore[misc]
        return loss


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor in memory that a GPU copies from while this process goes on."""
    return tensor.pin_memory() if device.type == "cuda" and not tensor.is_cuda else tensor
