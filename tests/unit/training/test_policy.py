import math

import pytest
import torch
from torch import Tensor

from scratchlm.training.policy import divergence_weights, policy_weights, standardised, token_advantages


def textbook_objective(log_probabilities: Tensor, old: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Schulman et al. 2017, equation 7, as it is written there."""
    ratios = (log_probabilities - old).exp()
    return -torch.minimum(ratios * advantages, ratios.clamp(1 - clip, 1 + clip) * advantages)


@pytest.fixture
def numbers() -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, older ones up to half a nat away, and advantages of both signs: (200,) float64 each."""
    source = torch.Generator().manual_seed(5)
    current, other, advantages = torch.rand(3, 200, generator=source, dtype=torch.float64)
    return -4 * current, -4 * current + other - 0.5, advantages - 0.5


def test_the_advantages_of_a_group_by_hand() -> None:
    assert standardised([1.0, 0.0, 0.0, 1.0]) == [1.0, -1.0, -1.0, 1.0]
    assert standardised([4.0, 0.0, 2.0]) == pytest.approx([math.sqrt(1.5), -math.sqrt(1.5), 0.0])
    assert standardised([0.3, 0.3, 0.3]) == [0.0, 0.0, 0.0]


def test_the_advantages_of_tokens_by_hand() -> None:
    # δ = (0 + 0.5 · 3 - 2, 0 + 0.5 · 4 - 3, 5 - 4) = (-0.5, -1, 1), and A_t = δ_t + 0.5 · 0.8 A_{t+1}
    advantages, returns = token_advantages([0.0, 0.0, 5.0], [2.0, 3.0, 4.0], discount=0.5, decay=0.8)
    assert advantages == pytest.approx([-0.74, -0.6, 1.0])
    assert returns == pytest.approx([1.26, 2.4, 5.0])
    # with λ = γ = 1 a return is all that is still to come
    assert token_advantages([1.0, 2.0, 3.0], [0.5, 0.5, 0.5], 1.0, 1.0)[1] == pytest.approx([6.0, 5.0, 3.0])


def test_the_weights_are_the_gradient_of_the_clipped_objective(numbers: tuple[Tensor, Tensor, Tensor]) -> None:
    current, old, advantages = numbers
    losses = (-current).requires_grad_()
    expected = textbook_objective(-losses, old, advantages, clip=0.2)
    (gradient,) = torch.autograd.grad(expected.sum(), losses)
    found = policy_weights(current, old, advantages, clip=0.2)
    torch.testing.assert_close(found.losses, expected.detach())
    torch.testing.assert_close(found.weights, gradient)
    assert 20 < found.n_clipped == int((gradient == 0).sum()) < 180


def test_on_the_policy_that_sampled_a_token_has_the_weight_of_its_advantage() -> None:
    log_probabilities = torch.tensor([-1.0, -2.0], dtype=torch.float64)
    found = policy_weights(log_probabilities, log_probabilities, torch.tensor([0.5, -3.0]).double(), clip=0.2)
    assert (found.weights.tolist(), found.n_clipped) == ([0.5, -3.0], 0)


def test_the_weights_are_the_gradient_of_the_divergence(numbers: tuple[Tensor, Tensor, Tensor]) -> None:
    current, reference, _ = numbers
    losses = (-current).requires_grad_()
    gaps = reference + losses
    expected = gaps.exp() - gaps - 1
    (gradient,) = torch.autograd.grad(expected.sum(), losses)
    found = divergence_weights(current, reference)
    torch.testing.assert_close(found.losses, expected.detach())
    torch.testing.assert_close(found.weights, gradient)
    assert (found.losses >= 0).all()


def test_the_divergence_is_right_on_average() -> None:
    p, q = (torch.tensor(x, dtype=torch.float64).log() for x in ([0.7, 0.2, 0.1], [0.3, 0.3, 0.4]))
    expected = float((p.exp() * (p - q)).sum())
    assert float((p.exp() * divergence_weights(p, q).losses).sum()) == pytest.approx(expected)
