"""Reinforcement learning from rewards: the assistant samples responses and makes the better ones likelier."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import pad

from scratchlm.arithmetic.functions import cross_entropy, total
from scratchlm.arithmetic.random import stream
from scratchlm.arithmetic.sequences import rows_of
from scratchlm.data.tokenizer import IGNORE_INDEX, Tokenizer
from scratchlm.fast.decoding import for_inference
from scratchlm.model.critic import ActorCritic, actor_of
from scratchlm.model.generate import GREEDY, Generation, SamplingParams, Stopping, Temperature, generate
from scratchlm.model.gpt import GPTModel
from scratchlm.model.lora import LoRAParams
from scratchlm.run.errors import UserError
from scratchlm.run.params import with_changes
from scratchlm.tasks.generation import Rows, response_record
from scratchlm.tasks.intervals import mean_interval
from scratchlm.tasks.language_model import example_id
from scratchlm.tasks.rollouts import Responses, Reward, Rollout, collated, grpo_rollout, measure, ppo_rollout
from scratchlm.tasks.settings import EvaluationParams, evenly_spaced
from scratchlm.training.loop import Batch, Task, TrainingState, batch_indices, update
from scratchlm.training.losses import scored_states
from scratchlm.training.optimizer import TrainingParams
from scratchlm.training.policy import divergence_weights, policy_weights

N_SAMPLES = 3
REFERENCE, REWARD_MODELS = "tokens/preferences", "models/reward_model/"
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
REWARD_SCHEMA = pa.schema(
    [("id", pa.string()), ("response", pa.string()), ("finished", pa.bool_()), ("reward_before", pa.float64()),
     ("reward", pa.float64())]
)  # fmt: skip


class ReinforceParams(TrainingParams):
    """batch_size: prompts per step, with responses_per_prompt sampled responses each; micro batches count responses.

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


ReinforceRuns = dict[str, ReinforceRun]


def reinforce_run(params: ReinforceParams, runs: ReinforceRuns, name: str) -> ReinforceParams:
    """The parameters of one run. Raises UserError naming the key if its changes are not valid."""
    return with_changes(params, runs[name].model_extra or {}, f"reinforce_runs.{name}")


class Prompts:
    """The instructions of the three splits to respond to, with what counts as the reference answer."""

    def __init__(self, splits: Mapping[str, Rows], tokenizer: Tokenizer, context_length: int, max_new_tokens: int):
        """splits: rows of PREFERENCE_SCHEMA. Raises UserError if a prompt and a response do not fit the context."""
        self.splits = {split: [row | {"output": row["chosen"]} for row in rows] for split, rows in splits.items()}
        self.tokenizer, self.context_length, self.max_new_tokens = tokenizer, context_length, max_new_tokens
        longest = max(len(row["prompt_token_ids"]) for rows in splits.values() for row in rows)
        if longest + max_new_tokens > context_length:
            raise UserError(
                f"a prompt has {longest} tokens, and with reinforce.max_new_tokens {max_new_tokens} more it is longer "
                f"than the model's context of {context_length}; lower max_new_tokens, or shorten the prompts"
            )

    def respond(self, model: nn.Module, rows: Rows, sampling: SamplingParams, seeds: Sequence[int]) -> list[Generation]:
        """A response of the model to each row."""
        stopping = Stopping(self.max_new_tokens, self.tokenizer.end_token_id)
        prompts = [row["prompt_token_ids"] for row in rows]
        return generate(for_inference(actor_of(model)), prompts, stopping, sampling, seeds)

    def ids(self, split: str) -> list[str]:
        """The id of every prompt, with a hash of its content."""
        rows = self.splits[split]
        parts = [[row[name] for name in ("instruction", "input", "output")] for row in rows]
        return [example_id(row["id"], json.dumps(part).encode()) for row, part in zip(rows, parts, strict=True)]


class RewardEvaluation:
    """The rewards of greedy responses."""

    def __init__(self, prompts: Prompts, reward: Reward, evaluation: EvaluationParams) -> None:
        self._prompts, self._reward, self._evaluation = prompts, reward, evaluation

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """val_reward and val_tokens: the means of at most max_rows prompts, the same at each call."""
        rows = self._prompts.splits["val"]
        chosen = [rows[i] for i in evenly_spaced(len(rows), self._evaluation.max_rows)]
        answers, rewards = self.greedy(model, chosen)
        return {"val_reward": mean(rewards), "val_tokens": mean([len(answer.token_ids) for answer in answers])}

    def sample(self, model: nn.Module) -> dict[str, Any]:
        """responses: to the first N_SAMPLES prompts of val."""
        rows = self._prompts.splits["val"][:N_SAMPLES]
        answers, tokenizer = self.greedy(model, rows)[0], self._prompts.tokenizer
        return {
            "responses": [response_record(row, answer, tokenizer) for row, answer in zip(rows, answers, strict=True)]
        }

    def greedy(self, model: nn.Module, rows: Rows) -> tuple[list[Generation], list[float]]:
        """The greedy response to each row, and its reward."""
        answers: list[Generation] = []
        for start in range(0, len(rows), self._evaluation.batch_size):
            answers += self._prompts.respond(model, rows[start : start + self._evaluation.batch_size], GREEDY, ())
        return answers, self._reward(rows, answers)

    def records(self, assistant: GPTModel, policy: GPTModel, split: str) -> list[dict[str, Any]]:
        """One record of REWARD_SCHEMA per prompt of a split: the policy's response, and both rewards."""
        rows, tokenizer = self._prompts.splits[split], self._prompts.tokenizer
        before, (answers, after) = self.greedy(assistant, rows)[1], self.greedy(policy, rows)
        columns = zip(self._prompts.ids(split), answers, before, after, strict=True)
        return [
            {"id": name, "response": tokenizer.decode(answer.token_ids).strip(), "finished": answer.finished,
             "reward_before": old, "reward": new}
            for name, answer, old, new in columns
        ]  # fmt: skip


def reward_metrics(records: Sequence[Mapping[str, Any]], seed: int) -> dict[str, float]:
    """The mean rewards of greedy responses before and after, and the gain with its 95 % interval, paired by prompt."""
    before, after = ([record[name] for record in records] for name in ("reward_before", "reward"))
    gains = [new - old for old, new in zip(before, after, strict=True)]
    low, high = mean_interval(gains, seed)
    shares = {"finished": mean([float(record["finished"]) for record in records])}
    means = {"reward_before": mean(before), "reward": mean(after), "gain": mean(gains)}
    return means | {"gain_low": low, "gain_high": high} | shares


def reinforce_task(
    prompts: Prompts, params: ReinforceParams, reward: Reward, evaluation: RewardEvaluation, assistant: GPTModel
) -> Task:
    """The loop's task: each of its steps samples responses, and then updates the policy on them.

    assistant: the reference, unchanged by the training.
    """
    learner = _Learner(prompts, params, reward, assistant.eval())
    n_examples = len(prompts.splits["train"])
    return Task(
        "reinforce", params, n_examples, learner.no_batch, learner.loss, evaluation.evaluate, evaluation.sample,
        step=learner.step,
    )  # fmt: skip


class _Learner:
    """Samples responses with the model that is trained, and gives the loss on them."""

    def __init__(self, prompts: Prompts, params: ReinforceParams, reward: Reward, assistant: GPTModel) -> None:
        self._prompts, self._params, self._reward, self._assistant = prompts, params, reward, assistant
        self._rollout: Rollout
        self._n_clipped = 0

    def no_batch(self, indices: np.ndarray) -> Batch:
        raise AssertionError("responses are sampled in `step`")

    def step(self, state: TrainingState) -> int:
        """Sample responses to the next prompts, score them, and update the policy on them; return their number."""
        p, train = self._params, self._prompts.splits["train"]
        chosen = batch_indices(state.step, len(train), p.batch_size, state.run.seed)
        rows = [train[i] for i in chosen for _ in range(p.responses_per_prompt)]
        with state.run.autocast():
            responses, rewards = self._sample(state, rows)
            self._rollout, values = self._measured(state.model, responses, rewards)
        parts = (responses.inputs, responses.targets)
        micro = zip(*(x.split(p.max_micro_batch_size) for x in (torch.arange(len(rows)), *parts)), strict=True)
        batches = [Batch(tensors, len(tensors[0])) for tensors in micro]
        self._n_clipped = 0
        with state.one_step():
            for number in range(p.updates_per_step):
                update(state, batches, number)
            n_tokens = p.updates_per_step * sum(responses.lengths)
            state.steps.append({"step": state.step + 1, **values, "clipped": self._n_clipped / n_tokens})
        return len(rows)

    def _sample(self, state: TrainingState, rows: Rows) -> tuple[Responses, list[float]]:
        """A response to each row with its reward. A draw depends on the seed, the step, the prompt and its copy."""
        p = self._params
        sampling = SamplingParams(temperature=p.temperature, top_k=0, top_p=1.0, repetition_penalty=1.0)
        seeds = [
            stream(state.run.seed, f"rollout {state.step} {row['id']} {i % p.responses_per_prompt}")
            for i, row in enumerate(rows)
        ]
        generations = self._prompts.respond(state.model, rows, sampling, seeds)
        end = self._prompts.tokenizer.end_token_id
        return collated(rows, generations, end, self._prompts.context_length), self._reward(rows, generations)

    def _measured(
        self, model: nn.Module, responses: Responses, rewards: list[float]
    ) -> tuple[Rollout, dict[str, float]]:
        """What the loss needs of the responses, and what a person wants to know of them."""
        p = self._params
        measured = measure(model, responses, p.max_micro_batch_size)
        old, entropies, _ = measured
        reference = measure(self._assistant, responses, p.max_micro_batch_size, entropy=False).log_probabilities
        if p.algorithm == "grpo":
            rollout = grpo_rollout(responses, rewards, p.responses_per_prompt, old, reference)
        else:
            rollout = ppo_rollout(responses, rewards, measured, reference, p)
        divergences = divergence_weights(old, reference).losses
        means = {"kl": mean(divergences.tolist()), "entropy": mean(entropies.tolist())}
        return rollout, {"reward": mean(rewards), "tokens": mean(responses.lengths)} | means

    def loss(self, model: nn.Module, rows: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """A sum over rows of the mean over their tokens. Its gradient is the objective's, its value is not.

        The objective's derivative by each log-probability is known (training/policy.py), so what is left for the
        backward pass is a cross-entropy with a weight per token. rows: numbers of neighbouring rows of the rollout.
        """
        p, (responses, *columns) = self._params, self._rollout
        start, n_tokens = sum(responses.lengths[: int(rows[0])]), int((targets != IGNORE_INDEX).sum())
        old, reference, advantages, returns, scale = (column[start : start + n_tokens] for column in columns)
        actor = actor_of(model)
        hidden, scored = scored_states(actor, inputs, targets)
        with rows_of(pad((targets != IGNORE_INDEX).sum(1).cumsum(0), (1, 0))):
            losses = cross_entropy(actor.head(hidden), scored, "none").cpu().double()
            values = model.values(hidden) if isinstance(model, ActorCritic) else None
        found = policy_weights(-losses.detach(), old, advantages, p.clip)
        self._n_clipped += found.n_clipped
        weights = found.weights
        if p.algorithm == "grpo" and p.kl_coefficient:
            weights = weights + p.kl_coefficient * divergence_weights(-losses.detach(), reference).weights
        loss = total(losses * (weights * scale))
        if values is None:
            return loss
        gaps = values - returns
        return loss + p.value_coefficient * total(gaps * gaps * scale)


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
