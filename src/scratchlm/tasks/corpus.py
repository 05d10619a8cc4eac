"""A language model's loss on the corpus."""

from pathlib import Path

import numpy as np

from scratchlm.data.corpus import TokenWindows, read_tokens
from scratchlm.model.gpt import GPTModel
from scratchlm.tasks.language_model import Losses, bits_per_byte, example_id, measure_losses, perplexity
from scratchlm.tasks.settings import EvaluationParams, evenly_spaced


class CorpusEvaluation:
    """Loss on the corpus over windows that do not overlap; training windows are as many as there are for val.

    A split is read when it is first needed. Raises UserError then if it does not fill a window.
    """

    def __init__(self, folder: Path, params: EvaluationParams) -> None:
        """folder: the corpus, with train and val shards."""
        self._folder, self._params = folder, params
        self._tokens: dict[str, np.ndarray] = {}

    def tokens(self, split: str) -> np.ndarray:
        """All tokens of a split: (N,)."""
        if split not in self._tokens:
            self._tokens[split] = read_tokens(self._folder, split)
        return self._tokens[split]

    def quick(self, model: GPTModel) -> dict[str, float]:
        """train_loss and val_loss on at most max_rows windows of each: the same ones at each call."""
        return {f"{split}_loss": self._measure(model, split, self._params.max_rows).mean for split in ("train", "val")}

    def full(self, model: GPTModel, split: str) -> Losses:
        """Every val window, or as many of train."""
        return self._measure(model, split, len(self._windows("val")))

    def val_ids(self) -> list[str]:
        """The id of every val window: its number, and which tokens are predicted in it."""
        windows = self._windows("val")
        targets = (windows.batch(np.array([i]))[1] for i in range(len(windows)))
        return [example_id(f"val-{i:05d}", tokens.tobytes()) for i, tokens in enumerate(targets)]

    def _windows(self, split: str) -> TokenWindows:
        return TokenWindows(self.tokens(split), self._params.context_length, self._params.context_length)

    def _measure(self, model: GPTModel, split: str, at_most: int) -> Losses:
        windows = self._windows(split)
        chosen = evenly_spaced(len(windows), at_most)
        return measure_losses(model, lambda i: windows.batch(chosen[i]), len(chosen), self._params.batch_size)


def corpus_scores(losses: Losses, n_tokens: float, n_bytes: float) -> dict[str, float]:
    """loss (nats per token), perplexity and bits per byte; n_tokens and n_bytes are the whole split's."""
    return {
        "loss": losses.mean,
        "perplexity": perplexity(losses.mean),
        "bits_per_byte": bits_per_byte(losses.mean, n_tokens, n_bytes),
    }
