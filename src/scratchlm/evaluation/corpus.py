"""A language model's loss on the corpus."""

from pathlib import Path

import numpy as np

from scratchlm.data.corpus import TokenWindows, read_tokens
from scratchlm.evaluation.language_model import Losses, bits_per_byte, example_id, measure_losses, perplexity
from scratchlm.evaluation.settings import EvaluationParams, evenly_spaced
from scratchlm.model.gpt import GPTModel


class CorpusEvaluation:
    """Loss on the corpus over windows that do not overlap; training windows are as many as there are for val."""

    def __init__(self, tokens: Path, params: EvaluationParams) -> None:
        """tokens: the corpus folder with train and val shards. Raises ValueError if one does not fill a window."""
        self._params = params
        self._windows = {
            split: TokenWindows(read_tokens(tokens, split), params.context_length, params.context_length)
            for split in ("train", "val")
        }

    def quick(self, model: GPTModel) -> dict[str, float]:
        """train_loss and val_loss on at most max_rows windows of each: the same ones at each call."""
        return {f"{split}_loss": self._measure(model, split, self._params.max_rows).mean for split in self._windows}

    def full(self, model: GPTModel, split: str) -> Losses:
        """Every val window, or as many of train."""
        return self._measure(model, split, len(self._windows["val"]))

    def val_ids(self) -> list[str]:
        """The id of every val window: its number, and which tokens are predicted in it."""
        windows = self._windows["val"]
        targets = (windows.batch(np.array([i]))[1] for i in range(len(windows)))
        return [example_id(f"val-{i:05d}", tokens.tobytes()) for i, tokens in enumerate(targets)]

    def _measure(self, model: GPTModel, split: str, at_most: int) -> Losses:
        windows = self._windows[split]
        chosen = evenly_spaced(len(windows), at_most)
        return measure_losses(model, lambda i: windows.batch(chosen[i]), len(chosen), self._params.batch_size)


def corpus_scores(losses: Losses, n_tokens: float, n_bytes: float) -> dict[str, float]:
    """loss (nats per token), perplexity and bits per byte; n_tokens and n_bytes are the whole split's."""
    return {
        "loss": losses.mean,
        "perplexity": perplexity(losses.mean),
        "bits_per_byte": bits_per_byte(losses.mean, n_tokens, n_bytes),
    }
