"""Policy optimisation: advantages, and the losses of GRPO and PPO as weights on log-probabilities."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from scratchlm.arithmetic.elementary import exp

EPSILON = 1e-6  # standard deviations below it are rounding errors of equal values


def standardised(values: Sequence[float]) -> list[float]:
    """The values less their mean, in standard deviations; 0 where all are equal.

    Of the rewards of the responses to one prompt, these are the advantages of GRPO. Source: Shao et al. 2024, section
    4.1.2.
    """
    mean = fmean(values)
    deviations = [value - mean for value in values]
    spread = math.sqrt(fmean(d * d for d in deviations))
    return [d / spread if spread > EPSILON else 0.0 for d in deviations]


def token_advantages(
    rewards: Sequence[float], values: Sequence[float], discount: float, decay: float
) -> tuple[list[float], list[float]]:
    """The advantage and the return of each token of one response, from the reward of each token and its value.

    values: what the critic expects before each token. δ_t = r_t + γ V_{t+1} - V_t, and A_t = δ_t + γ λ A_{t+1}, where
    γ is the discount, λ the decay, and V is 0 after the last token. A return is A_t + V_t.
    Source: Schulman et al. 2016 (generalised advantage estimation), equation 16.
    """
    advantages, following, next_value = [0.0] * len(rewards), 0.0, 0.0
    for t in range(len(rewards) - 1, -1, -1):
        following = rewards[t] + discount * next_value - values[t] + discount * decay * following
        advantages[t], next_value = following, values[t]
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


class TokenWeights(NamedTuple):
    """A policy loss of K tokens, as the backward pass needs it.

    weights: ∂loss/∂(-ln π) of each token, (K,) float64. losses: the value of the loss, (K,) float64. n_clipped: tokens
    whose ratio is out of range in the direction of their advantage, and which therefore have no weight of their own.
    """

    weights: Tensor
    losses: Tensor
    n_clipped: int


def policy_weights(log_probabilities: Tensor, old: Tensor, advantages: Tensor, clip: float) -> TokenWeights:
    """The clipped objective -min(ρ A, clip(ρ, 1 - ε, 1 + ε) A) of each token, ρ = π / π_old: (K,) float64 each.

    Its derivative by -ln π is ρ A where the first term is the smaller one, and 0 elsewhere.
    Source: Schulman et al. 2017 (PPO), equation 7.
    """
    ratios = exp(log_probabilities - old)
    clipped = ratios.clamp(1 - clip, 1 + clip)
    is_clipped = ratios * advantages > clipped * advantages
    weights = torch.where(is_clipped, 0.0, ratios * advantages)
    losses = -torch.where(is_clipped, clipped, ratios) * advantages
    return TokenWeights(weights, losses, int(is_clipped.sum()))


def divergence_weights(log_probabilities: Tensor, reference: Tensor) -> TokenWeights:
    """An estimate of KL(π ‖ π_ref) of each sampled token, ρ - ln ρ - 1 with ρ = π_ref / π: (K,) float64 each.

    It is never negative, and right on average. Its derivative by -ln π is ρ - 1.
    Source: Schulman 2020 ("Approximating KL Divergence", k3); Shao et al. 2024, equation 4.
    """
    ratios = exp(reference - log_probabilities)
    return TokenWeights(ratios - 1, ratios - (reference - log_probabilities) - 1, 0)
