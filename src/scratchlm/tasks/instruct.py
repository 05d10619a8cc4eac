"""Finetuning a GPT to follow instructions. The book's chapter 7."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from scratchlm.data.instructions import collate
from scratchlm.data.tokenizer import IGNORE_INDEX
from scratchlm.model.gpt import GPTModel
from scratchlm.model.lora import LoRAParams, apply_lora
from scratchlm.run.device import stream
from scratchlm.training.loop import Batch, Task
from scratchlm.training.losses import summed_next_token_loss
from scratchlm.training.optimizer import TrainingParams


class FinetuneInstructParams(TrainingParams):
    """base: a folder of data/models. mask_instruction: score the response only.

    With `lora`, its matrices train instead of the weights.
    """

    base: Annotated[str, Field(min_length=1)]
    mask_instruction: bool
    dropout: Annotated[float, Field(ge=0, lt=1)]
    lora: LoRAParams | None


def prepare_assistant(model: GPTModel, params: FinetuneInstructParams, seed: int) -> None:
    """Leave only what `params` names to train."""
    if params.lora is not None:
        apply_lora(model, params.lora, stream(seed, "lora"))


def instruct_task(
    rows: Sequence[dict[str, Any]],
    end_token_id: int,
    context_length: int,
    params: FinetuneInstructParams,
    evaluate: Callable[[], Mapping[str, float]],
    samples: list[dict[str, Any]],
) -> Task:
    """The loop's task for rows with prompt_token_ids and response_token_ids."""

    def batch(indices: np.ndarray) -> Batch:
        inputs, targets = collate(
            [rows[i] for i in indices], end_token_id, context_length, mask_instruction=params.mask_instruction
        )
        return Batch((torch.from_numpy(inputs), torch.from_numpy(targets)), int((targets != IGNORE_INDEX).sum()))

    return Task("finetune_instruct", len(rows), batch, summed_next_token_loss, evaluate, samples)
