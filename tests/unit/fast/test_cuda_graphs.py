"""Captured work without a GPU: it is run instead, on the static tensors that inputs are copied to."""

from typing import Any

import pytest
import torch

from scratchlm.fast.cuda_graphs import CapturedFunction, CapturedGradients
from scratchlm.run.context import Run

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
    gradients = CapturedGradients(line, squares, Run())
    for factor in (1, 2):  # captured, and then repeated
        for part in (factor * x).split(sizes):
            gradients.add((part,), 4, is_only=len(sizes) == 1)
        assert (
            line.slope.grad is not None and float(line.slope.grad) == 2 * 3 * 4 * float((factor * x).square().sum()) / 4
        )
        assert line.unused.grad is None and line.frozen.grad is None
        line.zero_grad(set_to_none=True)
