"""Captured work without a GPU: it is run instead, on the static tensors that inputs are copied to."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from scratchlm.arithmetic.mode import use_cuda_graphs
from scratchlm.fast import cuda_graphs
from scratchlm.fast.cuda_graphs import CapturedFunction, CapturedGradients
from scratchlm.model.lora import LoRALinear, LoRAParams, apply_lora, merge_lora
from scratchlm.run.context import Run
from scratchlm.tasks.language_model import LossMeter

CPU = torch.device("cpu")


def test_each_shape_has_static_tensors_and_no_tensor_of_the_caller_changes() -> None:
    addresses: list[int] = []

    def double(x: torch.Tensor) -> torch.Tensor:
        addresses.append(x.data_ptr())
        return 2 * x

    captured = CapturedFunction(double, CPU)
    long, short = torch.arange(6.0), torch.arange(2.0)
    given = [*long.split(3), short, long[:3]]
    assert [captured(x).tolist() for x in given] == [[0, 2, 4], [6, 8, 10], [0, 2], [0, 2, 4]]
    assert long.tolist() == [0, 1, 2, 3, 4, 5]
    assert addresses[0] == addresses[1] == addresses[3] != addresses[2]
    assert not {x.data_ptr() for x in given} & set(addresses)


class Line(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope, self.unused = torch.nn.Parameter(torch.tensor(3.0)), torch.nn.Parameter(torch.tensor(1.0))
        self.frozen = torch.nn.Parameter(torch.tensor(2.0), requires_grad=False)


def squares(line: Any, x: torch.Tensor) -> torch.Tensor:
    return (line.frozen * line.slope * x).square().sum()


@pytest.mark.parametrize("sizes", [[4], [3, 1], [2, 2]])
def test_the_gradient_of_a_step_is_the_sum_over_its_micro_batches(sizes: list[int]) -> None:
    line, x = Line(), torch.tensor([1.0, 2.0, 3.0, 4.0])
    gradients = CapturedGradients(line, squares, Run(), capture=True)
    for factor in (1, 2):  # captured, and then repeated
        for part in (factor * x).split(sizes):
            gradients.add((part,), 4, is_only=len(sizes) == 1)
        assert (
            line.slope.grad is not None and float(line.slope.grad) == 2 * 3 * 4 * float((factor * x).square().sum()) / 4
        )
        assert line.unused.grad is None and line.frozen.grad is None
        line.zero_grad(set_to_none=True)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work is traced instead of captured: like a graph, it then reads the tensors of when it was traced."""

    def trace(work: Callable[[], Any], device: torch.device, pool: Any) -> Callable[[], Any]:
        return make_fx(work)()

    monkeypatch.setattr(cuda_graphs, "captured", trace)
    use_cuda_graphs(True)
    yield
    use_cuda_graphs(False)


@pytest.mark.long
def test_evaluations_are_captured_again_for_the_layers_of_lora(traced: None, tiny_gpt: Any) -> None:
    model, meter = tiny_gpt(), LossMeter()
    source = torch.Generator().manual_seed(1)
    inputs, targets = torch.randint(11, (2, 3, 8), generator=source).numpy()

    def loss(meter: LossMeter) -> float:
        return meter.measure(model, lambda indices: (inputs[indices], targets[indices]), np.arange(3), 3).mean

    losses = [loss(meter)]
    apply_lora(model, LoRAParams(rank=2, alpha=2.0, layers="all"), seed=1)
    losses.append(loss(meter))
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, LoRALinear):
                layer.B += 0.5
    losses.append(loss(meter))
    assert losses[0] == pytest.approx(losses[1]) and losses[2] != pytest.approx(losses[1])
    merge_lora(model)
    assert loss(meter) == pytest.approx(losses[2]) == loss(LossMeter())


def test_what_reads_the_random_state_is_not_captured(traced: None) -> None:
    line = Line()
    gradients = CapturedGradients(line, lambda line, x: (torch.rand(()) * line.slope * x).sum(), Run(), capture=False)
    found = set()
    for _ in range(3):
        gradients.add((torch.ones(1),), 1, is_only=True)
        assert line.slope.grad is not None
        found.add(float(line.slope.grad))
        line.zero_grad(set_to_none=True)
    assert len(found) == 3
