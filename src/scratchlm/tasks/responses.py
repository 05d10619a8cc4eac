"""How well a model knows the reference answers: loss per response token, and a few responses to read."""

import json
from collections.abc import Mapping
from typing import Any

from scratchlm.data.instructions import collate
from scratchlm.data.tokenizer import IGNORE_INDEX, Tokenizer
from scratchlm.model.generate import generate
from scratchlm.model.gpt import GPTModel
from scratchlm.model.inference import for_inference
from scratchlm.tasks.generation import Rows, response_record
from scratchlm.tasks.language_model import Losses, example_id, measure_losses
from scratchlm.tasks.settings import EvaluationParams, evenly_spaced

N_SAMPLES = 3
SAMPLE_TOKENS = 64


class ResponseEvaluation:
    """Loss per response token on the three splits, whatever training scores; a few responses at each call of quick."""

    def __init__(
        self, splits: Mapping[str, Rows], tokenizer: Tokenizer, context_length: int, params: EvaluationParams
    ) -> None:
        self._splits, self._tokenizer = splits, tokenizer
        self._context_length, self._params = context_length, params
        self.samples: list[dict[str, Any]] = []

    def quick(self, model: GPTModel) -> dict[str, float]:
        """train_loss and val_loss on at most max_rows responses of each; responses to N_SAMPLES val instructions."""
        at_most = self._params.max_rows
        figures = {f"{split}_loss": self._measure(model, split, at_most).mean for split in ("train", "val")}
        rows, end = self._splits["val"][:N_SAMPLES], self._tokenizer.end_token_id
        prompts = [row["prompt_token_ids"] for row in rows]
        answers = generate(for_inference(model), prompts, max_new_tokens=SAMPLE_TOKENS, end_token_id=end)
        texts = [response_record(row, answer, self._tokenizer) for row, answer in zip(rows, answers, strict=True)]
        self.samples.append({"evaluation": len(self.samples), **figures, "responses": texts})
        return figures

    def full(self, model: GPTModel) -> dict[str, Losses]:
        """The losses of every split, whole."""
        return {split: self._measure(model, split, len(rows)) for split, rows in self._splits.items()}

    def test_ids(self) -> list[str]:
        """The id of every test response: its task's, and which tokens answer what."""
        end = self._tokenizer.end_token_id
        ids = []
        for row in self._splits["test"]:
            _, targets = collate([row], end, self._context_length, mask_instruction=True)
            content = json.dumps([row["instruction"], row["input"], targets[targets != IGNORE_INDEX].tolist()])
            ids.append(example_id(row["id"], content.encode()))
        return ids

    def _measure(self, model: GPTModel, split: str, at_most: int) -> Losses:
        rows = self._splits[split]
        chosen = [rows[i] for i in evenly_spaced(len(rows), at_most)]
        end = self._tokenizer.end_token_id

        def batch(indices: Any) -> Any:
            return collate([chosen[i] for i in indices], end, self._context_length, mask_instruction=True)

        return measure_losses(model, batch, len(chosen), self._params.batch_size)


def mean_losses(losses: Mapping[str, Losses]) -> dict[str, float]:
    """The loss per response token of each split, as the metrics name it."""
    return {f"{split}_loss": measured.mean for split, measured in losses.items()}
