"""Language-model loss: exact over tokens, and one value per window or response."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from scratchlm.arithmetic.mode import uses_cuda_graphs
from scratchlm.arithmetic.portable import exp, log
from scratchlm.data.tokenizer import IGNORE_INDEX
from scratchlm.fast.cuda_graphs import CapturedModel
from scratchlm.model.gpt import GPTModel
from scratchlm.run.errors import UserError
from scratchlm.training.evaluation import in_batches
from scratchlm.training.losses import padded_rows, row_losses, static_token_losses

LOSS_SCHEMA = pa.schema([("id", pa.string()), ("loss_nats", pa.float64()), ("scored_tokens", pa.int64())])
Arrays = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Losses(NamedTuple):
    """Summed loss in nats and scored tokens of each row (a window or a response), (N,) each."""

    sums: np.ndarray
    counts: np.ndarray

    @property
    def mean(self) -> float:
        """Nats per scored token over all rows. Raises UserError if none is scored, as when prompts fill the context."""
        n_scored = int(self.counts.sum())
        if not n_scored:
            raise UserError("no token is scored, so there is no mean loss; use a model with a longer context")
        return math.fsum(self.sums) / n_scored  # numpy promises no order of summation


class LossMeter:
    """Measures the losses of a model's rows, again and again while it trains."""

    def __init__(self) -> None:
        self._token_losses = CapturedModel(static_token_losses)

    def measure(self, model: GPTModel, rows: Arrays, chosen: np.ndarray, batch_size: int) -> Losses:
        """The loss of each of the `chosen` rows. rows: indices -> inputs, targets, (B, T) int64 each."""

        def losses(indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
            inputs, targets = (torch.from_numpy(part) for part in rows(indices))
            return self._row_losses(model, inputs, targets)

        return Losses(*(column.numpy() for column in in_batches(model, losses, chosen, batch_size)))

    def _row_losses(
        self, model: GPTModel, inputs: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        device = model.token_embedding.weight.device
        if not uses_cuda_graphs():
            return row_losses(model, inputs.to(device), targets.to(device))
        inputs, targets = padded_rows(inputs, targets, model.config.context_length)
        losses = self._token_losses(model, inputs, targets)
        return losses.cpu().double().sum(dim=1), (targets != IGNORE_INDEX).sum(dim=1)


def loss_rows(ids: Sequence[str], losses: Losses) -> list[dict[str, object]]:
    """One record per row, of LOSS_SCHEMA: what a paired comparison of two models needs."""
    return [
        {"id": name, "loss_nats": float(total), "scored_tokens": int(count)}
        for name, total, count in zip(ids, losses.sums, losses.counts, strict=True)
    ]


def example_id(name: str, content: bytes) -> str:
    """`name` and eight digits of the content's hash: two runs measured the same example only if both agree."""
    return f"{name}-{hashlib.sha256(content).hexdigest()[:8]}"


def example_ids(rows: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> list[str]:
    """The example_id of each row, by the values of some of its fields."""
    return [example_id(row["id"], json.dumps([row[field] for field in fields]).encode()) for row in rows]


def perplexity(nats_per_token: float) -> float:
    """e to the loss: the effective number of next tokens. Jelinek et al. 1977. Raises UserError where it overflows."""
    found = exp(nats_per_token)
    if found == math.inf:
        raise UserError(
            f"a loss of {nats_per_token:.4g} nats per token has no perplexity: training diverged; lower learning_rate, "
            "raise warmup_steps, or set max_grad_norm"
        )
    return found


def bits_per_byte(nats_per_token: float, n_tokens: float, n_bytes: float) -> float:
    """The loss per byte of text, which models with different tokenizers share, as long as these lose nothing.

    A word tokenizer drops white space and unknown words, so its value is too low.
    """
    return nats_per_token * n_tokens / n_bytes / log(2)
