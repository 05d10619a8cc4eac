"""Preference losses against numbers by hand and the papers' formulas, log-probabilities against torch's."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from scratchlm.arithmetic.functions import kl_divergence
from scratchlm.arithmetic.mode import exact_arithmetic
from scratchlm.training import losses as training_losses
from scratchlm.training.losses import row_sums
from scratchlm.training.preference import preference_losses, response_log_probabilities, response_scores

INPUTS = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0], [7, 8, 9, 10]])
TARGETS = torch.tensor([[-100, 3, 4, 0], [6, 0, -100, -100], [-100, -100, -100, 2]])


def losses(ratios: list[float], kind: Any = "dpo", beta: float = 0.1, smoothing: float = 0.0) -> list[float]:
    return preference_losses(torch.tensor(ratios, dtype=torch.float64), kind, beta, smoothing).tolist()


def test_the_dpo_loss_by_hand() -> None:
    # β h = ln 3 has σ = 3/4; h = 0 is an even guess
    ratio = 10 * math.log(3)
    assert losses([ratio, 0.0, -ratio]) == pytest.approx([math.log(4 / 3), math.log(2), math.log(4)], rel=1e-6)
    assert losses([ratio], smoothing=0.25) == pytest.approx([0.75 * math.log(4 / 3) + 0.25 * math.log(4)], rel=1e-6)


def test_the_ipo_loss_by_hand() -> None:
    # the target of h is 1/(2 · 0.1) = 5
    assert losses([5.0, 0.0, 7.0], "ipo") == pytest.approx([0.0, 25.0, 4.0])


def test_losses_stay_finite_far_from_zero() -> None:
    assert losses([1e6, -1e6], beta=1.0) == pytest.approx([0.0, 1e6])


@given(st.floats(-200, 200), st.floats(0.01, 1), st.sampled_from([0.0, 0.1, 0.4]), st.booleans())
def test_values_and_gradients_are_those_of_the_papers_formulas(
    ratio: float, beta: float, smoothing: float, exact: bool
) -> None:
    """As trl's DPOTrainer has them: sigmoid with label_smoothing, and ipo."""
    for kind in ("dpo", "ipo"):
        ours, theirs = (torch.tensor([ratio], dtype=torch.float64, requires_grad=True) for _ in range(2))
        if kind == "dpo":
            z = beta * theirs
            expected = -F.logsigmoid(z) * (1 - smoothing) - F.logsigmoid(-z) * smoothing
        else:
            expected = (theirs - 1 / (2 * beta)) ** 2
        expected.backward()
        if exact:
            with exact_arithmetic():
                found = preference_losses(ours, kind, beta, smoothing)  # type: ignore[arg-type]
                found.backward()
        else:
            found = preference_losses(ours, kind, beta, smoothing)  # type: ignore[arg-type]
            found.backward()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


def by_torch(logits: Tensor) -> Tensor:
    found = F.cross_entropy(logits.double().transpose(1, 2), TARGETS, reduction="none", ignore_index=-100)
    return -found.sum(dim=1)


@pytest.mark.parametrize("rows_at_once", [1 << 26, 24])  # of 11 logits each: two rows in a block
def test_log_probabilities_and_their_gradients_are_torchs(
    tiny_gpt: Any, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_losses, "LOGITS_AT_ONCE", rows_at_once)
    model, weights, gradients, values = tiny_gpt(), torch.tensor([1.0, -2.0, 0.5]).double(), [], []
    for ours in (True, False):
        model.zero_grad()
        found = response_log_probabilities(model, INPUTS, TARGETS) if ours else by_torch(model(INPUTS))
        (weights * found).sum().backward()
        values.append(found.detach())
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(values[0], values[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("exact", [False, True])
def test_scores_are_log_probabilities_and_the_divergence_of_whole_distributions(tiny_gpt: Any, exact: bool) -> None:
    model, other = tiny_gpt(), tiny_gpt()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(3)) * 0.1)
        logs, other_logs = (m(INPUTS).double().log_softmax(-1) for m in (model, other))
        expected = ((logs.exp() * (logs - other_logs)).sum(-1) * (TARGETS != -100)).sum(1)
        if exact:
            with exact_arithmetic():
                found, divergences = response_scores(model, other, INPUTS, TARGETS)
                _, none = response_scores(model, model, INPUTS, TARGETS)
        else:
            found, divergences = response_scores(model, other, INPUTS, TARGETS)
            _, none = response_scores(model, model, INPUTS, TARGETS)
        torch.testing.assert_close(found, by_torch(model(INPUTS)), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(divergences, expected, rtol=1e-4, atol=1e-5)
        assert none.tolist() == [0.0, 0.0, 0.0]
        assert float(divergences.min()) > 0.001


@pytest.mark.parametrize("exact", [False, True])
def test_the_divergence_by_hand(exact: bool) -> None:
    # p = (1/4, 3/4), q = (1/2, 1/2); impossible classes count as nothing
    logits, other = torch.tensor([[0.0, math.log(3)], [0.0, -1e5]]), torch.zeros(2, 2)
    expected = [0.25 * math.log(0.5) + 0.75 * math.log(1.5), math.log(2)]
    if exact:
        with exact_arithmetic():
            assert kl_divergence(logits, other).tolist() == pytest.approx(expected)
    else:
        assert kl_divergence(logits, other).tolist() == pytest.approx(expected)


def test_row_sums_by_hand() -> None:
    found = row_sums(torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0]), TARGETS)
    assert found.tolist() == [7.0, 24.0, 32.0]
    assert found.dtype == torch.float64
