"""The stage generate with a checkpoint but without DVC, for test_batches.py; a process can end itself at a batch."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from scratchlm.run.context import Run
from scratchlm.run.files import read_json, write_json
from scratchlm.run.resume import Checkpoint
from scratchlm.run.stage import start
from scratchlm.run.workers import worker_place
from scratchlm.tasks import generation
from stages import generate


def main(
    run: Run, *, params: Path, tokenizer: Path, instructions: Path, model: Path, responses: Path, metrics: Path,
    checkpoints: Path, settings: Path, counts: Path,
) -> None:  # fmt: skip
    """settings: a JSON file. taken: batches that processes have taken before the stage's own computes one.

    signal: what a process sends itself. at: its rank, and which of its batches is next.
    """
    run.checkpoint = Checkpoint(checkpoints, "f" * 64, "answers", None)
    given, place, answered, n_own = read_json(settings), worker_place(), generation.generate, [0]

    def answer(*args: Any, **more: Any) -> Any:
        n_own[0] += 1
        if not place and n_own[0] == 1:
            while len([*settings.parent.glob(".log.json.*.tmp/*.taken")]) < given["taken"]:
                time.sleep(0.05)
        if [place.rank if place else 0, n_own[0]] == given["at"]:
            os.kill(os.getpid(), getattr(signal, given["signal"]))
            time.sleep(60)
        return answered(*args, **more)

    generation.generate = answer
    paths = {"params": params, "tokenizer": tokenizer, "instructions": instructions, "model": model}
    generate.main(run, **paths, responses=responses, metrics=metrics)
    write_json(counts, {"own": n_own[0]})


if __name__ == "__main__":
    start(main)
