"""The context of a stage's run: device, precision, seed, log, checkpoint and progress."""

import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from scratchlm.run.files import append_log
from scratchlm.run.progress import Progress
from scratchlm.run.resume import Checkpoint


@dataclass
class Run:
    """One run of a stage. Everything has a value from the start, so that a library call needs no stage around it.

    stage: its name. log: a JSON-lines file for values that are not results, such as tokens per second; None: no log.
    checkpoint: saved by an unfinished run, to resume from. events: the folder for a training's curves in TensorBoard;
    None: no curves. device: cpu, cuda or mps. precision: of matrix products; weights are always float32. seed: of every
    random stream.
    """

    stage: str = ""
    log: Path | None = None
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    events: Path | None = None
    device: str = "cpu"
    precision: str = "float32"
    seed: int = 0

    def autocast(self) -> AbstractContextManager[Any]:
        """Within the block matrix products are computed in `precision`."""
        if self.precision != "bfloat16":
            return nullcontext()
        import torch

        return torch.autocast(self.device, dtype=torch.bfloat16)

    def record(self, values: Mapping[str, Any]) -> None:
        """Add a line to the log."""
        if self.log:
            append_log(self.log, values)

    def say(self, sentence: str) -> None:
        """Print a sentence to the user on standard error; on a terminal above the bar of progress."""
        line = f"{self.stage}: {sentence}"
        if sys.stderr and sys.stderr.isatty():
            tqdm.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def progress(self, total: int, done: int, unit: str, part: str = "") -> Progress:
        """The progress of the stage, or of a part of it, on standard error. It begins at `done` of `total` units."""
        return Progress(f"{self.stage} {part}".strip() or unit, total, done, unit)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
