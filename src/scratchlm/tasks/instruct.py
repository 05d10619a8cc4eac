"""Finetuning a GPT to follow instructions. The book's chapter 7."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from scratchlm.arithmetic.mode import has_static_shapes
from scratchlm.data.instructions import collate
from scratchlm.data.tokenizer import IGNORE_INDEX, Tokenizer
from scratchlm.fast.decoding import for_inference
from scratchlm.model.config import Probability
from scratchlm.model.generate import Stopping, generate
from scratchlm.model.gpt import GPTModel
from scratchlm.model.lora import LoRAParams
from scratchlm.run.errors import UserError
from scratchlm.tasks.generation import N_SAMPLES, Rows, response_records
from scratchlm.tasks.language_model import Losses, LossMeter, example_id
from scratchlm.tasks.settings import EvaluationParams, evenly_spaced
from scratchlm.training.loop import Batch, Task
from scratchlm.training.losses import padded_rows, static_next_token_loss, summed_next_token_loss
from scratchlm.training.optimizer import TrainingParams

SAMPLE_TOKENS = 64


class FinetuneInstructParams(TrainingParams):
    """base: a folder of data/models. mask_instruction: score the response only. lora: train its matrices instead."""

    base: Annotated[str, Field(min_length=1)]
    mask_instruction: bool
    dropout: Probability
    lora: LoRAParams | None


class Instructions:
    """Tokenized tasks of the three splits, for a model with a context of `context_length` tokens."""

    def __init__(self, splits: Mapping[str, Rows], tokenizer: Tokenizer, context_length: int) -> None:
        """Raises UserError naming the tasks whose prompts leave no room for a response: it would never be scored."""
        self.splits, self.tokenizer, self.context_length = splits, tokenizer, context_length
        refuse_long_prompts(splits, context_length)

    def n_cut(self, split: str) -> int:
        """How many responses of a split are longer than the rest of the context and are cut."""
        ends = (len(row["prompt_token_ids"]) + len(row["response_token_ids"]) for row in self.splits[split])
        return sum(end > self.context_length for end in ends)

    def batch(self, rows: Rows, *, mask_instruction: bool) -> tuple[np.ndarray, np.ndarray]:
        """inputs, targets: (B, T) int64 each; what is not scored is IGNORE_INDEX."""
        end = self.tokenizer.end_token_id
        return collate(rows, end, self.context_length, mask_instruction=mask_instruction)


def refuse_long_prompts(splits: Mapping[str, Rows], context_length: int) -> None:
    """Raises UserError naming the rows whose prompts leave no room for a response."""
    full = [row["id"] for rows in splits.values() for row in rows if len(row["prompt_token_ids"]) > context_length]
    if full:
        names = ", ".join(full[:5]) + (", …" if len(full) > 5 else "")
        raise UserError(
            f"{len(full)} instructions have prompts longer than the model's context of {context_length} tokens, "
            f"so no response to them can be scored ({names}); shorten or remove them, or use a longer context"
        )


def instruct_task(instructions: Instructions, params: FinetuneInstructParams, evaluation: "ResponseEvaluation") -> Task:
    """The loop's task for the train split."""
    rows = instructions.splits["train"]

    def batch(indices: np.ndarray) -> Batch:
        found = instructions.batch([rows[i] for i in indices], mask_instruction=params.mask_instruction)
        inputs, targets = (torch.from_numpy(part) for part in found)
        n_scored = int((targets != IGNORE_INDEX).sum())
        if has_static_shapes():
            inputs, targets = padded_rows(inputs, targets, instructions.context_length)
        return Batch((inputs, targets), n_scored)

    return Task(
        "finetune_instruct", params, len(rows), batch, summed_next_token_loss, evaluation.evaluate, evaluation.sample,
        static_next_token_loss,
    )  # fmt: skip


class ResponseEvaluation:
    """Loss per response token on the three splits, whatever mask_instruction is, and a few sample responses."""

    def __init__(self, instructions: Instructions, params: EvaluationParams) -> None:
        self._instructions, self._params, self._meter = instructions, params, LossMeter()

    def evaluate(self, model: GPTModel) -> dict[str, float]:
        """train_loss and val_loss on at most max_rows responses of each: the same ones at each call."""
        at_most = self._params.max_rows
        return {f"{split}_loss": self._measure(model, split, at_most).mean for split in ("train", "val")}

    def sample(self, model: GPTModel) -> dict[str, Any]:
        """responses: to the first N_SAMPLES instructions of val, greedily."""
        rows, tokenizer = self._instructions.splits["val"][:N_SAMPLES], self._instructions.tokenizer
        prompts = [row["prompt_token_ids"] for row in rows]
        answers = generate(for_inference(model), prompts, Stopping(SAMPLE_TOKENS, tokenizer.end_token_id))
        return {"responses": response_records(rows, answers, tokenizer)}

    def full(self, model: GPTModel) -> dict[str, Losses]:
        """The losses of every response of every split."""
        return {split: self._measure(model, split, len(rows)) for split, rows in self._instructions.splits.items()}

    def test_ids(self) -> list[str]:
        """The id of every test response: its task's, and a hash of the tokens that answer it."""
        ids = []
        for row in self._instructions.splits["test"]:
            _, targets = self._instructions.batch([row], mask_instruction=True)
            content = json.dumps([row["instruction"], row["input"], targets[targets != IGNORE_INDEX].tolist()])
            ids.append(example_id(row["id"], content.encode()))
        return ids

    def _measure(self, model: GPTModel, split: str, at_most: int) -> Losses:
        rows = self._instructions.splits[split]

        def batch(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return self._instructions.batch([rows[i] for i in indices], mask_instruction=True)

        return self._meter.measure(model, batch, evenly_spaced(len(rows), at_most), self._params.batch_size)


def mean_losses(losses: Mapping[str, Losses]) -> dict[str, float]:
    """The loss per response token of each split, as the metrics name it."""
    return {f"{split}_loss": measured.mean for split, measured in losses.items()}
