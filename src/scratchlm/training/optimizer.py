"""The settings of a training, and AdamW with its weight decay."""

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from scratchlm.arithmetic.autograd import operations_for
from scratchlm.arithmetic.mode import is_exact
from scratchlm.fast.torch_startup import AdamW
from scratchlm.run.params import Section

Positive = Annotated[int, Field(ge=1)]
Decay = Annotated[float, Field(ge=0, le=0.99999)]  # of a moving average over up to 100,000 steps


class TrainingParams(Section):
    """The settings that every training stage has.

    epochs: passes over the training examples; a fraction stops within one. batch_size: sequences per optimizer
    step. max_micro_batch_size: sequences per forward pass; a larger batch is accumulated from several.
    checkpoint_activations: compute each block's activations a second time in the backward pass instead of keeping them.
    weight_decay_on: `matrices` spares biases, norms and other vectors; `all` is torch's and the book's default.
    max_grad_norm: null does not clip. evaluate_every_steps: besides evaluations at step 0 and at the end.
    """

    epochs: Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)]
    batch_size: Positive
    max_micro_batch_size: Positive
    checkpoint_activations: bool
    learning_rate: Annotated[float, Field(ge=1e-12, le=1000, allow_inf_nan=False)]
    min_learning_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    schedule: Literal["constant", "cosine"]
    warmup_steps: Annotated[int, Field(ge=0)]
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    weight_decay_on: Literal["matrices", "all"]
    beta1: Decay
    beta2: Decay
    max_grad_norm: Annotated[float, Field(ge=1e-6, allow_inf_nan=False)] | None
    evaluate_every_steps: Positive

    @property
    def n_micro_batches(self) -> int:
        """How many micro batches a step has."""
        return math.ceil(self.batch_size / self.max_micro_batch_size)

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
    rate, betas = params.learning_rate, (params.beta1, params.beta2)
    return ExactAdamW(groups, rate, betas) if is_exact() else AdamW(groups, rate, betas, fused=True)


class ExactAdamW(AdamW):
    """torch's AdamW with a step of correctly rounded operations. Source: Loshchilov and Hutter 2019."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, group)

    def _update(self, p: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state |= {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        state["step"] += 1
        n_steps, rate, (beta1, beta2) = int(state["step"]), group["lr"], group["betas"]
        scales = (rate / (1.0 - power(beta1, n_steps)), 1.0 / math.sqrt(1.0 - power(beta2, n_steps)), group["eps"])
        moments = (p, state["exp_avg"], state["exp_avg_sq"])
        operations_for(p).adamw(moments, p.grad, 1.0 - rate * group["weight_decay"], (beta1, beta2), scales)


def power(base: float, exponent: int) -> float:
    """base to a natural power by squaring; the C library's pow differs in the last bit between systems."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base, exponent = base * base, exponent >> 1
    return result
