"""Rewards of greedy responses: the prompts, the measurement while a policy learns and after, and its metrics."""

from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import fmean
from typing import Any

import pyarrow as pa
from torch import nn

from scratchlm.data.tokenizer import Tokenizer
from scratchlm.fast.decoding import for_inference
from scratchlm.model.critic import actor_of
from scratchlm.model.generate import GREEDY, Generation, SamplingParams, Stopping, generate
from scratchlm.model.gpt import GPTModel
from scratchlm.run.errors import UserError
from scratchlm.tasks.generation import N_SAMPLES, Rows, response_records
from scratchlm.tasks.intervals import mean_interval
from scratchlm.tasks.language_model import example_ids
from scratchlm.tasks.rollouts import Reward
from scratchlm.tasks.settings import EvaluationParams, evenly_spaced
from scratchlm.training.evaluation import each_batch

GAIN_SCHEMA = pa.schema(  # the greedy response to a prompt, with its reward and that of the assistant's response
    [("id", pa.string()), ("response", pa.string()), ("finished", pa.bool_()), ("reward_before", pa.float64()),
     ("reward", pa.float64())]
)  # fmt: skip


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

    def respond(
        self, decoder: GPTModel, rows: Rows, sampling: SamplingParams, seeds: Sequence[int]
    ) -> list[Generation]:
        """A response to each row. decoder: of for_inference."""
        stopping = Stopping(self.max_new_tokens, self.tokenizer.end_token_id)
        return generate(decoder, [row["prompt_token_ids"] for row in rows], stopping, sampling, seeds)

    def ids(self, split: str) -> list[str]:
        """The id of every prompt, with a hash of its content."""
        return example_ids(self.splits[split], ("instruction", "input", "output"))


class PolicyEvaluation:
    """Measures a policy by the rewards of its greedy responses."""

    def __init__(self, prompts: Prompts, reward: Reward, evaluation: EvaluationParams) -> None:
        self._prompts, self._reward, self._evaluation = prompts, reward, evaluation

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """val_reward and val_tokens: the means of at most max_rows prompts, the same at each call."""
        rows = self._prompts.splits["val"]
        chosen = [rows[i] for i in evenly_spaced(len(rows), self._evaluation.max_rows)]
        answers, rewards = self.greedy(model, chosen)
        return {"val_reward": fmean(rewards), "val_tokens": fmean([len(answer.token_ids) for answer in answers])}

    def sample(self, model: nn.Module) -> dict[str, Any]:
        """responses: to the first N_SAMPLES prompts of val."""
        rows = self._prompts.splits["val"][:N_SAMPLES]
        return {"responses": response_records(rows, self.greedy(model, rows)[0], self._prompts.tokenizer)}

    def greedy(self, model: nn.Module, rows: Rows) -> tuple[list[Generation], list[float]]:
        """The greedy response to each row, and its reward."""
        decoder = for_inference(actor_of(model))

        def respond(some: Rows) -> list[Generation]:
            return self._prompts.respond(decoder, some, GREEDY, ())

        answers = [*chain.from_iterable(each_batch(model, respond, rows, self._evaluation.batch_size))]
        return answers, self._reward(rows, answers)

    def records(self, assistant: GPTModel, policy: GPTModel, split: str) -> list[dict[str, Any]]:
        """One record of GAIN_SCHEMA per prompt of a split."""
        rows, tokenizer = self._prompts.splits[split], self._prompts.tokenizer
        before, (answers, after) = self.greedy(assistant, rows)[1], self.greedy(policy, rows)
        columns = zip(self._prompts.ids(split), answers, before, after, strict=True)
        return [
            {"id": name, "response": tokenizer.decode(answer.token_ids).strip(), "finished": answer.finished,
             "reward_before": old, "reward": new}
            for name, answer, old, new in columns
        ]  # fmt: skip


def reward_metrics(records: Sequence[Mapping[str, Any]], seed: int) -> dict[str, float]:
    """The mean rewards before and after, the gain with its 95 % interval paired by prompt, and the finished share.

    records: of GAIN_SCHEMA.
    """
    before, after = ([record[name] for record in records] for name in ("reward_before", "reward"))
    gains = [new - old for old, new in zip(before, after, strict=True)]
    low, high = mean_interval(gains, seed)
    shares = {"finished_share": fmean([float(record["finished"]) for record in records])}
    means = {"reward_before": fmean(before), "reward": fmean(after), "gain": fmean(gains)}
    return means | {"gain_low": low, "gain_high": high} | shares
