"""How scratchlm computes in a benchmark."""

from typing import Any, NamedTuple

import torch

from scratchlm.fast.kernels import set_up
from scratchlm.run.context import Run
from scratchlm.run.device import RuntimeParams
from scratchlm.training.optimizer import TrainingParams


def training_params(batch_size: int, micro_batch_size: int, evaluate_every_steps: int) -> TrainingParams:
    """An epoch of AdamW with weight decay and clipping, at one learning rate."""
    return TrainingParams(
        epochs=1.0, batch_size=batch_size, max_micro_batch_size=micro_batch_size, learning_rate=1e-5,
        min_learning_rate=1e-5, schedule="constant", warmup_steps=0, weight_decay=0.1, weight_decay_on="matrices",
        beta1=0.9, beta2=0.95, max_grad_norm=1.0, evaluate_every_steps=evaluate_every_steps,
        checkpoint_activations=False,
    )  # fmt: skip


class Setting(NamedTuple):
    """compiled: with torch's compiler."""

    precision: str = "float32"
    device: str = "cpu"
    compiled: bool = False

    def values(self) -> dict[str, Any]:
        """The parameters of the device in params.yaml, with the threads of this process."""
        threads = torch.get_num_threads()
        return {"device": self.device, "threads": threads, "precision": self.precision, "compile": self.compiled}

    def start(self) -> Run:
        """Set this process up, as a stage does; return the context."""
        run = Run()
        set_up(run, RuntimeParams(**self.values(), seed=0))
        return run
