"""The cost of checkpoints: the same training with and without them, alternating, in one run.

Run as `python -m benchmarks.resume --size small --repeats 3`. Checkpoints are saved as often as they ever
may be (SCRATCHLM_RESUME_SECONDS is 0), in trainings long enough for some. Writes benchmarks/results/resume-<size>.json.
"""

import argparse
import math
import os
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.harness import RESULTS, about, summary
from benchmarks.setting import training_params
from scratchlm.data.windows import TokenWindows
from scratchlm.model.config import GPT2_CONTEXT_LENGTH, GPT2_VOCAB_SIZE, SIZES, gpt2_config
from scratchlm.model.gpt import GPTModel, parameter_count
from scratchlm.run.context import Run
from scratchlm.run.files import write_json
from scratchlm.run.resume import ASSUMED_BYTES_PER_SECOND, INTERVAL_VARIABLE, PAUSE_PER_COST, Checkpoint
from scratchlm.tasks.pretraining import pretraining_task
from scratchlm.training.loop import train

BATCH_SIZE, WINDOW = 2, 256
CHECKPOINTS = 3  # about how many a training is long enough for


def seconds_of(model: GPTModel, n_steps: int, checkpoint: Checkpoint) -> float:
    """One training of `n_steps` steps."""
    windows = TokenWindows(torch.randint(GPT2_VOCAB_SIZE, (n_steps * BATCH_SIZE + WINDOW,)).numpy(), WINDOW, 1)
    params = training_params(BATCH_SIZE, BATCH_SIZE, n_steps)
    task = pretraining_task(windows, params, lambda model: {"loss": 0.0})
    start = time.perf_counter()
    train(model, task, Run(checkpoint=checkpoint))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ[INTERVAL_VARIABLE] = "0"
    model = GPTModel(gpt2_config(options.size, GPT2_VOCAB_SIZE, GPT2_CONTEXT_LENGTH))
    step_seconds = seconds_of(model, 6, Checkpoint()) / 6
    save_seconds = 12 * parameter_count(model) / ASSUMED_BYTES_PER_SECOND
    n_steps = math.ceil(CHECKPOINTS * PAUSE_PER_COST * save_seconds / step_seconds)
    ratios = []
    with tempfile.TemporaryDirectory(prefix="scratchlm-benchmark-") as folder:
        for repeat in range(options.repeats):
            checkpoint = Checkpoint(Path(folder) / str(repeat), "benchmark")
            saving, without = seconds_of(model, n_steps, checkpoint), seconds_of(model, n_steps, Checkpoint())
            assert checkpoint.position, "no checkpoint was saved, so nothing was measured"
            ratios.append(saving / without)
            print(f"{n_steps} steps: {saving:.1f} s with checkpoints, {without:.1f} s without: {ratios[-1]:.4f}")
    found = summary(ratios)
    print(f"with checkpoints / without, {options.size}, {options.threads} threads: {found}")
    origin = about("benchmarks.resume", options.threads)
    write_json(RESULTS / f"resume-{options.size}.json", {"seconds_ratio": found, "steps": n_steps} | origin)


if __name__ == "__main__":
    main()
