"""Responses that a policy samples to learn from: with their rewards, log-probabilities and advantages."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scratchlm.arithmetic.functions import cross_entropy, kl_divergence
from scratchlm.arithmetic.portable import log
from scratchlm.data.instructions import collate
from scratchlm.data.tokenizer import IGNORE_INDEX
from scratchlm.model.critic import ActorCritic, actor_of
from scratchlm.model.generate import Generation
from scratchlm.model.gpt import GPTModel
from scratchlm.tasks.generation import Rows
from scratchlm.training.evaluation import in_batches
from scratchlm.training.losses import scored_states
from scratchlm.training.policy import standardised, token_advantages

# The reward of a response to each row (id, instruction, input, output, prompt_token_ids)
Reward = Callable[[Rows, Sequence[Generation]], list[float]]


class Responses(NamedTuple):
    """N sampled responses as token ids, those of one prompt one after the other.

    inputs, targets: (N, T) int64 on the CPU; a target is scored where the policy chose the token, the end token
    included. lengths: scored tokens of each row, K in all.
    """

    inputs: Tensor
    targets: Tensor
    lengths: list[int]


def collated(rows: Rows, generations: Sequence[Generation], end_token_id: int, context_length: int) -> Responses:
    """rows: one per generation. A response that did not end has no end token to score."""
    answered = [
        {"prompt_token_ids": row["prompt_token_ids"], "response_token_ids": generation.token_ids}
        for row, generation in zip(rows, generations, strict=True)
    ]
    inputs, targets = (
        torch.from_numpy(x) for x in collate(answered, end_token_id, context_length, mask_instruction=True)
    )
    for i, (row, generation) in enumerate(zip(answered, generations, strict=True)):
        if not generation.finished:
            targets[i, len(row["prompt_token_ids"]) + len(row["response_token_ids"]) - 1] = IGNORE_INDEX
    return Responses(inputs, targets, (targets != IGNORE_INDEX).sum(1).tolist())


class Measured(NamedTuple):
    """Measurements of K tokens before an update: (K,) float64 each on the CPU; values are 0 without a critic."""

    log_probabilities: Tensor
    entropies: Tensor
    values: Tensor


def measure(
    model: nn.Module, responses: Responses, temperature: float, n_at_once: int, *, entropy: bool = True
) -> Measured:
    """The tokens of all responses under a model at a temperature, n_at_once rows per forward pass.

    The entropy of a distribution over V tokens is ln V less its divergence from the uniform one.
    """
    actor = actor_of(model)
    device, V = actor.token_embedding.weight.device, actor.config.vocab_size

    def measured(rows: range) -> tuple[Tensor, Tensor, Tensor]:
        some = slice(rows.start, rows.stop)
        hidden, scored = scored_states(actor, responses.inputs[some].to(device), responses.targets[some].to(device))
        logits = policy_logits(actor, hidden, temperature)
        chosen = -cross_entropy(logits, scored, "none").cpu().double()
        spread = log(V) - kl_divergence(logits, torch.zeros_like(logits)).cpu() if entropy else 0 * chosen
        values = model.values(hidden) if isinstance(model, ActorCritic) else 0 * chosen
        return chosen, spread, values

    return Measured(*in_batches(model, measured, range(len(responses.inputs)), n_at_once))


def policy_logits(actor: GPTModel, hidden: Tensor, temperature: float) -> Tensor:
    """The logits that tokens are drawn from: the policy is the model at its temperature. (K, C) -> (K, V)."""
    logits = actor.head(hidden)
    return logits if temperature == 1 else logits / temperature


class Rollout(NamedTuple):
    """A batch to learn from: N responses, K tokens. All but `responses` are (K,) float64 on the CPU.

    old, reference: log-probabilities of the policy that sampled, and of the assistant it started from. returns: the
    critic's targets. scale: 1 over the length of the token's response.
    """

    responses: Responses
    old: Tensor
    reference: Tensor
    advantages: Tensor
    returns: Tensor
    scale: Tensor


def grpo_rollout(
    responses: Responses, rewards: Sequence[float], n_per_prompt: int, old: Tensor, ref: Tensor
) -> Rollout:
    """Each token of a response has the advantage of the whole response among the n_per_prompt of its prompt."""
    groups = [rewards[i : i + n_per_prompt] for i in range(0, len(rewards), n_per_prompt)]
    advantages = [advantage for group in groups for advantage in standardised(group)]
    tokens = [a for a, n in zip(advantages, responses.lengths, strict=True) for _ in range(n)]
    return Rollout(responses, old, ref, _column(tokens), 0 * old, _scale(responses))


def ppo_rollout(
    responses: Responses, rewards: Sequence[float], measured: Measured, reference: Tensor, settings: Any
) -> Rollout:
    """Each token costs kl_coefficient (ln π - ln π_ref), the last one also earns the reward; advantages by GAE.

    settings: with kl_coefficient, discount and gae_decay. Source: Ouyang et al. 2022, section 3.5 and equation 2.
    """
    old, values = measured.log_probabilities, measured.values
    costs = (settings.kl_coefficient * (old - reference)).tolist()
    advantages: list[float] = []
    returns: list[float] = []
    start = 0
    for reward, n in zip(rewards, responses.lengths, strict=True):
        earned = [-cost for cost in costs[start : start + n]]
        earned[-1] += reward
        found = token_advantages(earned, values[start : start + n].tolist(), settings.discount, settings.gae_decay)
        advantages += found[0]
        returns += found[1]
        start += n
    tokens = _column(standardised(advantages))
    return Rollout(responses, old, reference, tokens, _column(returns), _scale(responses))


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _scale(responses: Responses) -> Tensor:
    return _column([1 / n for n in responses.lengths for _ in range(n)])
