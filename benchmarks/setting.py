"""How scratchlm computes in a benchmark."""

from typing import Any, NamedTuple

import torch

from scratchlm.fast.kernels import set_up
from scratchlm.run.context import Run
from scratchlm.run.device import RuntimeParams


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
