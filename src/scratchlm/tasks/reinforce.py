"""Reinforcement learning from rewards: the assistant samples responses and makes the better ones likelier."""

import math
from collections.abc import Sequence
from itertools import chain
from statistics import fmean
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import pad

from scratchlm.arithmetic.functions import cross_entropy, total
from scratchlm.arithmetic.random import stream
from scratchlm.arithmetic.sequences import rows_of
from scratchlm.data.tokenizer import IGNORE_INDEX
from scratchlm.fast.decoding import for_inference
from scratchlm.model.critic import ActorCritic, actor_of
from scratchlm.model.generate import Generation, SamplingParams, Temperature
from scratchlm.model.gpt import GPTModel
from scratchlm.model.lora import LoRAParams
from scratchlm.tasks.generation import Rows
from scratchlm.tasks.policy_evaluation import PolicyEvaluation, Prompts
from scratchlm.tasks.rollouts import (
    Responses,
    Reward,
    Rollout,
    collated,
    grpo_rollout,
    measure,
    policy_logits,
    ppo_rollout,
)
from scratchlm.training.evaluation import each_batch
from scratchlm.training.loop import Batch, Task, TrainingState, update
from scratchlm.training.losses import scored_states
from scratchlm.training.optimizer import Positive, TrainingParams
from scratchlm.training.order import batch_indices
from scratchlm.training.policy import divergence_weights, policy_weights

REFERENCE, REWARD_MODELS = "tokens/preferences", "models/reward_model/"  # folders of data that reward
Share = Annotated[float, Field(ge=0, le=1)]


class ReinforceParams(TrainingParams):
    """batch_size: prompts per step, with responses_per_prompt sampled responses each; micro batches count responses.

    On a CPU, max_micro_batch_size responses are also sampled at a time.
    algorithm: grpo compares the responses to a prompt with each other, ppo each with what a critic expects.
    unfinished_reward: of a response that max_new_tokens cuts. kl_coefficient: the cost of leaving the assistant.
    clip: how far a probability may move in a step. updates_per_step: gradient steps on the same responses. discount,
    gae_decay, value_coefficient: of ppo. lora: train its matrices instead.
    """

    algorithm: Literal["grpo", "ppo"]
    responses_per_prompt: Positive
    temperature: Temperature
    max_new_tokens: Positive
    unfinished_reward: Annotated[float, Field(ge=-1000, le=1000)]
    kl_coefficient: Annotated[float, Field(ge=0, le=1000)]
    clip: Annotated[float, Field(gt=0, lt=1)]
    updates_per_step: Positive
    discount: Share
    gae_decay: Share
    value_coefficient: Annotated[float, Field(ge=0, le=1000)]
    lora: LoRAParams | None

    @property
    def n_micro_batches(self) -> int:
        """How many micro batches an update has."""
        return math.ceil(self.batch_size * self.responses_per_prompt / self.max_micro_batch_size)

    def n_sampled_at_once(self, device: str) -> int:
        """How many responses are decoded together: on a CPU a batch for each worker, on a card all of a step.

        A card decodes all of them almost as fast as a few.
        """
        n_responses = self.batch_size * self.responses_per_prompt
        return min(n_responses, self.max_micro_batch_size) if device == "cpu" else n_responses

    @model_validator(mode="after")
    def _responses_differ(self) -> "ReinforceParams":
        if not self.temperature:
            raise ValueError("temperature is 0, so all responses to a prompt are the same; set it above 0, such as 1.0")
        if self.algorithm == "grpo" and self.responses_per_prompt == 1:
            raise ValueError("responses_per_prompt is 1, but grpo compares several; set it to 2 or more, or use ppo")
        return self


class ReinforceRun(BaseModel):
    """A run of `reinforce`: what rewards it, and the keys that differ.

    reward: a folder of data. REFERENCE has the answers that responses are compared with, a folder of REWARD_MODELS a
    model that scores them.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    reward: str


def policy_of(gpt: GPTModel, params: ReinforceParams) -> nn.Module:
    """What is trained: for ppo, the model with a critic."""
    return ActorCritic(gpt) if params.algorithm == "ppo" else gpt


def reinforce_task(
    prompts: Prompts, params: ReinforceParams, reward: Reward, evaluation: PolicyEvaluation, assistant: GPTModel
) -> Task:
    """The loop's task: each of its steps samples responses, and then updates the policy on them.

    assistant: the reference, unchanged by the training.
    """
    learner, train = _Learner(prompts, params, reward, assistant.eval()), prompts.splits["train"]

    def batch(indices: np.ndarray) -> Batch:
        return Batch(tuple(torch.tensor(train[i]["prompt_token_ids"]) for i in indices), len(indices))

    return Task(
        "reinforce", params, len(train), batch, _not_used, evaluation.evaluate, evaluation.sample,
        step=learner.step, scored="texts",
    )  # fmt: skip


def _not_used(*_: Any) -> Any:
    raise AssertionError("a step has its own loss")


class _Learner:
    """The steps of the training. It has no state of its own, so the loop's checkpoints resume them to the same bits."""

    def __init__(self, prompts: Prompts, params: ReinforceParams, reward: Reward, assistant: GPTModel) -> None:
        self._prompts, self._params, self._reward, self._assistant = prompts, params, reward, assistant

    def step(self, state: TrainingState) -> int:
        """Sample responses to the next prompts, score them, and update the policy on them; return their number."""
        p, train = self._params, self._prompts.splits["train"]
        chosen = batch_indices(state.step, len(train), p.batch_size, state.run.seed)
        rows = [train[i] for i in chosen for _ in range(p.responses_per_prompt)]
        with state.one_step():
            with state.run.autocast():
                responses, rewards = self._sample(state, rows)
                rollout, means = self._measured(state.model, responses, rewards)
            loss = PolicyLoss(p, rollout)
            numbers = torch.arange(len(rows))
            parts = (it.split(p.max_micro_batch_size) for it in (numbers, responses.inputs, responses.targets))
            batches = [Batch(tensors, len(tensors[0])) for tensors in zip(*parts, strict=True)]
            for number in range(p.updates_per_step):
                update(state, batches, number, loss)
            n_clipped = torch.tensor([loss.n_clipped], dtype=torch.float64)
            if state.workers:
                state.workers.all_reduce(n_clipped)
            n_tokens = p.updates_per_step * sum(responses.lengths)
            state.steps.append({"step": state.step + 1, **means, "clipped": n_clipped.item() / n_tokens})
        return len(rows)

    def _sample(self, state: TrainingState, rows: Rows) -> tuple[Responses, list[float]]:
        """A response to each row with its reward. A draw depends on the seed, the step, the prompt and its copy."""
        p = self._params
        sampling = SamplingParams(temperature=p.temperature, top_k=0, top_p=1.0, repetition_penalty=1.0)
        seeds = [
            stream(state.run.seed, f"rollout {state.step} {row['id']} {i % p.responses_per_prompt}")
            for i, row in enumerate(rows)
        ]
        decoder = for_inference(actor_of(state.model))

        def respond(some: range) -> list[Generation]:
            return self._prompts.respond(decoder, [rows[i] for i in some], sampling, [seeds[i] for i in some])

        n_at_once = p.n_sampled_at_once(state.device.type)
        generations = [*chain.from_iterable(each_batch(state.model, respond, range(len(rows)), n_at_once))]
        end = self._prompts.tokenizer.end_token_id
        return collated(rows, generations, end, self._prompts.context_length), self._reward(rows, generations)

    def _measured(
        self, model: nn.Module, responses: Responses, rewards: Sequence[float]
    ) -> tuple[Rollout, dict[str, float]]:
        """The responses with all that the loss needs, and their means for the table of steps."""
        p = self._params
        settings = responses, p.temperature, p.max_micro_batch_size
        measured = measure(model, *settings)
        old, entropies, _ = measured
        reference = measure(self._assistant, *settings, entropy=False).log_probabilities
        if p.algorithm == "grpo":
            rollout = grpo_rollout(responses, rewards, p.responses_per_prompt, old, reference)
        else:
            rollout = ppo_rollout(responses, rewards, measured, reference, p)
        divergences = divergence_weights(old, reference).losses
        means = {"kl": fmean(divergences.tolist()), "entropy": fmean(entropies.tolist())}
        return rollout, {"reward": fmean(rewards), "tokens": fmean(responses.lengths)} | means


class PolicyLoss:
    """The loss on a rollout, for all updates of a step.

    n_clipped: tokens that the updates so far clipped.
    """

    def __init__(self, params: ReinforceParams, rollout: Rollout) -> None:
        self._params, self._rollout, self.n_clipped = params, rollout, 0

    def __call__(self, model: nn.Module, rows: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """A sum over rows of the mean over their tokens. Its gradient is the objective's, its value is not.

        The objective's derivative by each log-probability is known (training/policy.py), so the backward pass only
        needs a cross-entropy with a weight per token. rows: (N,) the rows' numbers in the rollout, consecutive.
        inputs, targets: (N, T) as in Responses.
        """
        p, (responses, *columns) = self._params, self._rollout
        start, n_tokens = sum(responses.lengths[: int(rows[0])]), int((targets != IGNORE_INDEX).sum())
        old, reference, advantages, returns, scale = (column[start : start + n_tokens] for column in columns)
        actor = actor_of(model)
        hidden, scored = scored_states(actor, inputs, targets)
        with rows_of(pad((targets != IGNORE_INDEX).sum(1).cumsum(0), (1, 0))):
            losses = cross_entropy(policy_logits(actor, hidden, p.temperature), scored, "none").cpu().double()
            values = model.values(hidden) if isinstance(model, ActorCritic) else None
        found = policy_weights(-losses.detach(), old, advantages, p.clip)
        self.n_clipped += found.n_clipped
        weights = found.weights
        if p.algorithm == "grpo" and p.kl_coefficient:
            weights = weights + p.kl_coefficient * divergence_weights(-losses.detach(), reference).weights
        loss = total(losses * (weights * scale))
        if values is None:
            return loss
        gaps = values - returns
        return loss + p.value_coefficient * total(gaps * gaps * scale)
