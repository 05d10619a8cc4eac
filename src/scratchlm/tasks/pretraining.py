"""Pretraining: next-token prediction on sliding windows. The book's chapter 5."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from scratchlm.data.corpus import TokenWindows
from scratchlm.training.loop import Batch, Task
from scratchlm.training.losses import summed_next_token_loss
from scratchlm.training.optimizer import TrainingParams


class PretrainParams(TrainingParams):
    """stride: tokens from one window's start to the next. sample_*: the text written at each evaluation."""

    stride: Annotated[int, Field(ge=1)]
    sample_prompt: Annotated[str, Field(min_length=1)]
    sample_tokens: Annotated[int, Field(ge=1)]


def pretraining_task(
    name: str, windows: TokenWindows, evaluate: Callable[[], Mapping[str, float]], samples: list[dict[str, Any]]
) -> Task:
    """The loop's task for windows of (B, T) inputs and targets."""

    def batch(indices: np.ndarray) -> Batch:
        inputs, targets = (torch.from_numpy(part) for part in windows.batch(indices))
        return Batch((inputs, targets), targets.numel())

    return Task(name, len(windows), batch, summed_next_token_loss, evaluate, samples)
