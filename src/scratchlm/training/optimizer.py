"""The settings of a training, and AdamW with its weight decay."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from torch import nn

from scratchlm.fast.torch_startup import AdamW
from scratchlm.run.params import Section

Positive = Annotated[int, Field(ge=1)]


class TrainingParams(Section):
    """The settings that every training stage has.

    epochs: passes over the training examples; a fraction stops within one. batch_size: sequences per optimizer
    step. max_micro_batch_size: sequences per forward pass; a larger batch is accumulated from several.
    weight_decay_on: `matrices` spares biases, norms and other vectors; `all` is torch's and the book's default.
    max_grad_norm: null does not clip. evaluate_every_steps: besides evaluations at step 0 and at the end.
    """

    epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    batch_size: Positive
    max_micro_batch_size: Positive
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    min_learning_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    schedule: Literal["constant", "cosine"]
    warmup_steps: Annotated[int, Field(ge=0)]
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    weight_decay_on: Literal["matrices", "all"]
    beta1: Annotated[float, Field(ge=0, lt=1)]
    beta2: Annotated[float, Field(ge=0, lt=1)]
    max_grad_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
    evaluate_every_steps: Positive

    @model_validator(mode="after")
    def _the_rate_falls(self) -> "TrainingParams":
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate} is above learning_rate {self.learning_rate}; lower it"
            )
        return self


def build_optimizer(model: nn.Module, params: TrainingParams) -> AdamW:
    """AdamW over what is trainable, in one fused kernel per step. Source: Loshchilov and Hutter 2019."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.dim() >= 2 or params.weight_decay_on == "all"]
    spared = [p for p in trainable if p.dim() < 2 and params.weight_decay_on == "matrices"]
    groups = [{"params": decayed, "weight_decay": params.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    return AdamW(groups, lr=params.learning_rate, betas=(params.beta1, params.beta2), fused=True)
