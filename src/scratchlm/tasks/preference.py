"""Finetuning an assistant on preferences: DPO and IPO. The book's bonus code to chapter 7."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field, model_validator
from torch import Tensor

from scratchlm.arithmetic.functions import total
from scratchlm.data.instructions import collate
from scratchlm.data.tokenizer import IGNORE_INDEX
from scratchlm.model.config import Probability
from scratchlm.model.gpt import GPTModel
from scratchlm.model.lora import LoRAParams
from scratchlm.run.context import Run
from scratchlm.tasks.generation import Rows
from scratchlm.tasks.instruct import refuse_long_prompts
from scratchlm.tasks.intervals import share_interval
from scratchlm.tasks.language_model import example_ids
from scratchlm.tasks.settings import EvaluationParams, evenly_spaced
from scratchlm.training.evaluation import in_batches
from scratchlm.training.loop import Batch, Task
from scratchlm.training.optimizer import TrainingParams
from scratchlm.training.preference import (
    PreferenceLoss,
    preference_losses,
    response_log_probabilities,
    response_scores,
)

SIDES = ("chosen", "rejected")
NUMBERS = ("loss", "chosen_reward", "rejected_reward", "chosen_log_probability", "rejected_log_probability", "kl_nats")
PAIR_SCHEMA = pa.schema(
    [("id", pa.string()), *((name, pa.float64()) for name in NUMBERS), ("scored_tokens", pa.int64())]
)


class FinetunePreferenceParams(TrainingParams):
    """batch_size: pairs per step, of two sequences each.

    loss: dpo or ipo. beta: how much a change of log-probabilities counts in a reward; the larger, the closer the model
    stays to the assistant. label_smoothing: of dpo, the share of pairs taken to be the wrong way round. lora: train its
    matrices instead.
    """

    loss: PreferenceLoss
    beta: Annotated[float, Field(ge=1e-6, le=1e6)]
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)]
    dropout: Probability
    lora: LoRAParams | None

    @model_validator(mode="after")
    def _only_dpo_is_smoothed(self) -> "FinetunePreferenceParams":
        if self.loss == "ipo" and self.label_smoothing:
            raise ValueError(f"label_smoothing is {self.label_smoothing}, but loss ipo has none; set it to 0.0")
        return self


class Preferences:
    """Tokenized pairs of the three splits, rows of PREFERENCE_SCHEMA, for a context of `context_length` tokens."""

    def __init__(self, splits: Mapping[str, Rows], end_token_id: int, context_length: int) -> None:
        """Raises UserError naming the pairs whose prompts leave no room for a response."""
        refuse_long_prompts(splits, context_length)
        self.splits, self._end_token_id, self._context_length = splits, end_token_id, context_length

    def say_cuts(self, run: Run) -> None:
        """Say how many pairs of each split have a response that is longer than the rest of the context and is cut."""
        for split, rows in self.splits.items():
            longest = (max(len(row[f"{side}_token_ids"]) for side in SIDES) for row in rows)
            ends = (len(row["prompt_token_ids"]) + n for row, n in zip(rows, longest, strict=True))
            if n_cut := sum(end > self._context_length for end in ends):
                run.say(f"{n_cut} of {len(rows)} {split} pairs are cut at the context's {self._context_length} tokens")

    def sequences(self, split: str, indices: Sequence[int]) -> list[list[int]]:
        """Prompt and response of P pairs, without an end token, cut at the context: 2P lists, ordered as in `batch`."""
        rows = (self.splits[split][i] for i in indices)
        found = ([*row["prompt_token_ids"], *row[f"{side}_token_ids"]] for row in rows for side in SIDES)
        return [sequence[: self._context_length] for sequence in found]

    def batch(self, split: str, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """inputs, targets of P pairs, each the chosen response and then the rejected one: (2P, T) int64 each."""
        rows = [
            {"prompt_token_ids": row["prompt_token_ids"], "response_token_ids": row[f"{side}_token_ids"]}
            for row in (self.splits[split][i] for i in indices)
            for side in SIDES
        ]
        found = collate(rows, self._end_token_id, self._context_length, mask_instruction=True)
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])

    def sampled_metrics(
        self, evaluation: EvaluationParams, measure: Callable[[str, Sequence[int]], Mapping[str, float]]
    ) -> dict[str, float]:
        """Loss, accuracy and margin of at most max_rows pairs of train and val: the same pairs at each call.

        measure: returns the metrics of the pairs with some indices of a split.
        """
        found: dict[str, float] = {}
        for split in ("train", "val"):
            indices = evenly_spaced(len(self.splits[split]), evaluation.max_rows).tolist()
            metrics = measure(split, indices)
            found |= {f"{split}_{name}": metrics[name] for name in ("loss", "accuracy", "margin")}
        return found

    def test_ids(self) -> list[str]:
        """The id of every test pair, with a hash of its content."""
        return example_ids(self.splits["test"], ("instruction", "input", *SIDES))


def pair_metrics(rewards: np.ndarray, losses: np.ndarray) -> dict[str, float]:
    """The means over N pairs: rewards of chosen and rejected, (N, 2); losses (N,). Equal rewards are half right."""
    n, margins = len(rewards), rewards[:, 0] - rewards[:, 1]
    right = float((margins > 0).sum() + (margins == 0).sum() / 2)
    low, high = share_interval(right, n)
    chosen, rejected = (math.fsum(side) / n for side in rewards.T)
    means = {"loss": math.fsum(losses) / n, "margin": math.fsum(margins) / n}
    means |= {"accuracy": right / n, "accuracy_low": low, "accuracy_high": high}
    return means | {"chosen_reward": chosen, "rejected_reward": rejected}


class PairScores(NamedTuple):
    """What is measured of N pairs. log_probabilities, rewards: of chosen and rejected, (N, 2); the others (N,).

    kl_nats: KL(π ‖ π_ref), summed over the scored_tokens positions of both responses; empty if it was not measured.
    """

    log_probabilities: np.ndarray
    rewards: np.ndarray
    losses: np.ndarray
    kl_nats: np.ndarray
    scored_tokens: np.ndarray

    def metrics(self) -> dict[str, float]:
        """The means over pairs; see docs/metrics.md."""
        means = pair_metrics(self.rewards, self.losses)
        if not len(self.kl_nats):
            return means
        return means | {"kl_per_token": math.fsum(self.kl_nats) / int(self.scored_tokens.sum())}

    def rows(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """One record per pair, of PAIR_SCHEMA."""
        columns = (self.losses, *self.rewards.T, *self.log_probabilities.T, self.kl_nats)
        return [
            {"id": name, **dict(zip(NUMBERS, map(float, numbers), strict=True)), "scored_tokens": int(n_tokens)}
            for name, n_tokens, *numbers in zip(ids, self.scored_tokens, *columns, strict=True)
        ]


class PairEvaluation:
    """Loss and rewards of pairs, against the log-probabilities that the assistant had before the training."""

    def __init__(self, pairs: Preferences, params: FinetunePreferenceParams, evaluation: EvaluationParams) -> None:
        self._pairs, self._params, self._evaluation = pairs, params, evaluation
        self._reference: dict[str, Tensor] = {}
        self._pairs_at_once = max(1, evaluation.batch_size // 2)

    def measure_reference(self, assistant: GPTModel, run: Run) -> None:
        """Compute the reference's log-probabilities of every response once: (N, 2) float64 of each split."""
        splits, n_pairs = self._pairs.splits, self._pairs_at_once
        with run.autocast(), run.progress(sum(map(len, splits.values())), 0, "pair", "reference") as bar:
            for split, rows in splits.items():
                found = []
                for start in range(0, len(rows), n_pairs):
                    indices = range(start, min(start + n_pairs, len(rows)))
                    found.append(self._measure(assistant, None, split, indices)[0])
                    bar.update(len(indices))
                self._reference[split] = torch.cat(found)

    def pair_losses(self, split: str, indices: Tensor, log_probabilities: Tensor) -> Tensor:
        """(P,) int64, (P, 2) float64 -> (P,) float64."""
        changes = log_probabilities - self._reference[split][indices]
        p = self._params
        return preference_losses(changes[:, 0] - changes[:, 1], p.loss, p.beta, p.label_smoothing)

    def evaluate(self, model: GPTModel) -> dict[str, float]:
        """As Preferences.sampled_metrics."""
        return self._pairs.sampled_metrics(
            self._evaluation, lambda *chosen: self._scores(model, None, *chosen).metrics()
        )

    def full(self, model: GPTModel, assistant: GPTModel) -> dict[str, PairScores]:
        """The scores of every pair of every split."""
        splits = self._pairs.splits
        assistant.eval()
        return {split: self._scores(model, assistant, split, range(len(rows))) for split, rows in splits.items()}

    def _scores(self, model: GPTModel, assistant: GPTModel | None, split: str, indices: Sequence[int]) -> PairScores:
        log_probabilities, kl_nats, scored_tokens = self._measure(model, assistant, split, indices)
        chosen = torch.tensor(indices)
        losses = self.pair_losses(split, chosen, log_probabilities)
        rewards = self._params.beta * (log_probabilities - self._reference[split][chosen])
        return PairScores(*(x.numpy() for x in (log_probabilities, rewards, losses, kl_nats, scored_tokens)))

    def _measure(
        self, model: GPTModel, assistant: GPTModel | None, split: str, indices: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities (N, 2), KL and scored tokens (N,) each; no KL without the assistant."""
        device = model.token_embedding.weight.device

        def measured(some: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
            inputs, targets = (x.to(device) for x in self._pairs.batch(split, some))
            n_tokens = (targets != IGNORE_INDEX).sum(1).cpu().view(-1, 2).sum(1)
            if assistant is None:
                sums = response_log_probabilities(model, inputs, targets)
                return sums.view(-1, 2), sums[:0], n_tokens
            sums, divergences = response_scores(model, assistant, inputs, targets)
            pairs = divergences.view(-1, 2)
            return sums.view(-1, 2), pairs[:, 0] + pairs[:, 1], n_tokens

        log_probabilities, kl_nats, scored_tokens = in_batches(model, measured, indices, self._pairs_at_once)
        return log_probabilities, kl_nats, scored_tokens


def preference_task(pairs: Preferences, params: FinetunePreferenceParams, evaluation: PairEvaluation) -> Task:
    """The loop's task for the train split. Its loss waits for the CPU in each step, so it is not compiled."""

    def batch(indices: np.ndarray) -> Batch:
        inputs, targets = pairs.batch("train", indices.tolist())
        return Batch((torch.from_numpy(indices), inputs, targets), len(indices))

    def loss(model: GPTModel, indices: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        log_probabilities = response_log_probabilities(model, inputs, targets).view(-1, 2)
        return total(evaluation.pair_losses("train", indices.cpu(), log_probabilities))

    return Task(
        "finetune_preference", params, len(pairs.splits["train"]), batch, loss, evaluation.evaluate, scored="pairs"
    )
