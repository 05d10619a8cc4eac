import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from scratchlm.run.errors import UserError
from scratchlm.training.losses import next_token_loss, summed_head_loss, summed_next_token_loss


def test_the_loss_by_hand() -> None:
    # softmax of (0, ln 3) is (1/4, 3/4)
    logits = torch.tensor([[[0.0, math.log(3)], [0.0, math.log(3)], [5.0, -5.0]]])
    loss = next_token_loss(logits, torch.tensor([[1, 0, -100]]))
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)


def test_an_even_guess_costs_the_logarithm_of_the_vocabulary() -> None:
    assert next_token_loss(torch.zeros(2, 3, 7), torch.zeros(2, 3, dtype=torch.long)).item() == pytest.approx(
        math.log(7)
    )


def test_the_mean_is_over_tokens_and_not_over_rows() -> None:
    logits = torch.tensor([[[0.0, 9.0]] * 3, [[0.0, 0.0]] * 3])
    targets = torch.tensor([[1, 1, 1], [0, -100, -100]])
    expected = (3 * math.log(1 + math.exp(-9)) + math.log(2)) / 4
    assert next_token_loss(logits, targets).item() == pytest.approx(expected, rel=1e-5)


def test_nothing_scored_is_an_error_and_not_a_nan() -> None:
    with pytest.raises(UserError) as caught:
        next_token_loss(torch.zeros(1, 2, 3), torch.full((1, 2), -100))
    assert str(caught.value) == (
        "no target is scored, so there is no mean loss; shorten the prompts or widen the context"
    )


@settings(deadline=None, max_examples=20)
@given(st.lists(st.booleans(), min_size=6, max_size=6), st.integers(0, 1000))
def test_the_sum_over_scored_tokens_has_torchs_value_and_gradients(
    tiny_gpt: Any, scored: list[bool], seed: int
) -> None:
    source = torch.Generator().manual_seed(seed)
    inputs = torch.randint(11, (2, 3), generator=source)
    targets = torch.randint(11, (2, 3), generator=source).where(torch.tensor(scored).view(2, 3), -100)
    gradients, losses, model = [], [], tiny_gpt().double()
    for whole in (True, False):
        model.zero_grad()
        loss = (
            F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
            if whole
            else summed_next_token_loss(model, inputs, targets)
        )
        loss.backward()
        losses.append(loss.detach())
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-12)
    if any(scored):
        mean = next_token_loss(model(inputs), targets)
        torch.testing.assert_close(mean * sum(scored), losses[1], rtol=1e-12, atol=1e-12)


def test_logits_are_made_only_where_something_is_scored(tiny_gpt: Any) -> None:
    model, rows = tiny_gpt(), []
    model.head.register_forward_hook(lambda module, inputs, output: rows.append(inputs[0].numel() // 8))
    inputs = torch.ones(2, 3, dtype=torch.long)
    summed_next_token_loss(model, inputs, torch.tensor([[-100, 1, 2], [-100, -100, 3]]))
    summed_next_token_loss(model, inputs, inputs)
    assert rows == [3, 6]


@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_loss_by_blocks_has_the_value_and_gradients_of_the_whole(precision: str, bias: bool) -> None:
    source = torch.Generator().manual_seed(0)
    states = torch.randn(23, 16, generator=source, dtype=torch.float64)
    targets = torch.randint(31, (23,), generator=source)
    found = []
    for block in (23, 5, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            head = torch.nn.Linear(16, 31, bias=bias).to(torch.float64 if precision == "float64" else torch.float32)
        hidden = states.to(head.weight.dtype, copy=True).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = summed_head_loss(head, hidden, targets, block)
        (loss / 7).backward()
        found.append([loss.detach(), hidden.grad, *(p.grad for p in head.parameters())])
    tolerance = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 1e-2}[precision]
    for by_blocks in found[1:]:
        torch.testing.assert_close(by_blocks, found[0], rtol=tolerance, atol=tolerance)


def test_a_loss_by_blocks_never_holds_more_logits_than_a_block_and_trains_only_what_learns() -> None:
    head, rows = torch.nn.Linear(4, 9), []
    head.bias.requires_grad_(False)
    head.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    hidden = torch.ones(7, 4, requires_grad=True)
    summed_head_loss(head, hidden, torch.zeros(7, dtype=torch.int64), block=3).backward()
    assert rows == [3, 3, 1]
    assert head.bias.grad is None and head.weight.grad is not None and hidden.grad is not None
