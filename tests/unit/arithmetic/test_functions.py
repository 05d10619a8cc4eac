"""The elementary operations, by hand. What the model makes of them is tested in tests/unit/model."""

import math

import pytest
import torch
from torch import nn

from scratchlm.arithmetic import functions
from scratchlm.arithmetic.layers import Dropout, Embedding, Linear
from scratchlm.arithmetic.random import drawing_from


def test_products_and_sums_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0]])
    assert functions.linear(x, torch.tensor([[3.0, 4.0], [5.0, 6.0]]), torch.tensor([1.0, 0.0])).tolist() == [[12, 17]]
    assert functions.matmul(x, torch.tensor([[3.0], [4.0]])).tolist() == [[11]]
    assert functions.embedding(torch.tensor([1, 0]), torch.tensor([[3.0], [4.0]])).tolist() == [[4], [3]]
    assert functions.total(x).item() == 3
    assert functions.total(x, dim=0).tolist() == [1, 2]
    assert functions.running_total(x).tolist() == [[1, 3]]


def test_softmax_and_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0], [1.0, 2.0]])
    torch.testing.assert_close(functions.softmax(logits)[0], torch.tensor([0.25, 0.75]))
    targets = torch.tensor([1, 0, -100])
    each = [math.log(4 / 3), math.log(2), 0.0]
    assert functions.cross_entropy(logits, targets, "none").tolist() == pytest.approx(each)
    assert functions.cross_entropy(logits, targets, "sum").item() == pytest.approx(sum(each))
    assert functions.cross_entropy(logits, targets, "mean").item() == pytest.approx(sum(each) / 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_loss_has_at_least_the_precision_of_float32(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1.0, 1 + 2**-7]], dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float64):
        loss = functions.cross_entropy(logits, torch.tensor([0]), "mean")
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(2**-7)), rel=1e-6)


def test_layers_draw_and_compute_as_torchs_own() -> None:
    pairs = ((Linear, nn.Linear, torch.ones(1, 3)), (Embedding, nn.Embedding, torch.tensor([2])))
    for ours, theirs, x in pairs:
        found = []
        for layer in (ours, theirs):
            with drawing_from(1):
                found.append(layer(3, 2)(x))
        assert torch.equal(*found)
    with drawing_from(1):
        dropped = Dropout(0.5)(torch.ones(100))
    assert dropped.unique().tolist() == [0, 2]
    assert Dropout(0.5).eval()(torch.ones(3)).tolist() == [1, 1, 1]
