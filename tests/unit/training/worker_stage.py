"""A stage as small as can be, for test_workers.py: pretrain a tiny model as a JSON file says, and write its weights."""

import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor

from scratchlm.data.windows import TokenWindows
from scratchlm.fast.kernels import set_up
from scratchlm.model.config import GPTConfig
from scratchlm.model.gpt import build_model
from scratchlm.run.context import Run
from scratchlm.run.device import RuntimeParams
from scratchlm.run.files import read_json, write_json
from scratchlm.run.resume import Checkpoint
from scratchlm.run.stage import start
from scratchlm.run.workers import worker_place
from scratchlm.tasks import preference
from scratchlm.tasks.language_model import LossMeter
from scratchlm.tasks.pretraining import pretraining_task
from scratchlm.training.loop import Task, train
from scratchlm.training.optimizer import TrainingParams

MODEL = {
    "vocab_size": 31, "context_length": 8, "n_layers": 2, "n_heads": 2, "emb_dim": 16, "dropout": 0.1,
    "qkv_bias": True, "tied_head": True, "initialisation": "gpt2", "attention": "sdpa",
}  # fmt: skip
RUNTIME = {"device": "cpu", "threads": 1, "compile": False, "seed": 7}


def pair_task(params: TrainingParams, run: Run, model: Any) -> Task:
    """Of pairs, of which each is two sequences of a micro batch."""
    row = {"prompt_token_ids": [1, 2], "chosen_token_ids": [3, 4, 5], "rejected_token_ids": [6]}
    rows = [{name: [(n * (i + 3)) % 31 for n in ids] for name, ids in row.items()} for i in range(18)]
    pairs = preference.Preferences({"train": rows, "val": rows[:4]}, 0, 8)
    settings = SimpleNamespace(loss="dpo", beta=0.2, label_smoothing=0.0)
    evaluation = preference.PairEvaluation(pairs, settings, SimpleNamespace(batch_size=4, max_rows=4))  # type: ignore
    evaluation.measure_reference(model, run)
    return preference.preference_task(pairs, params, evaluation)  # type: ignore[arg-type]


def main(run: Run, *, settings: Path, result: Path, checkpoints: Path) -> None:
    given = read_json(settings)
    set_up(run, RuntimeParams(**RUNTIME, precision=given["precision"]))
    run.checkpoint = Checkpoint(checkpoints, "f" * 64, "tiny", None)
    params, model = TrainingParams(**given["training"]), build_model(GPTConfig(**MODEL), seed=5)
    windows, meter = TokenWindows(np.arange(150) * 7 % 31, 8, 4), LossMeter()
    place, calls = worker_place(), Counter[str]()

    def called(part: str) -> None:
        calls[part] += 1
        if given["killed"] == [part, place.rank if place else 0, calls[part]]:
            os.kill(os.getpid(), given["signal"])

    def evaluated_windows(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        called("evaluation")
        return windows.batch(indices)

    def evaluate(model: Any) -> dict[str, float]:
        return {"val_loss": meter.measure(model, evaluated_windows, np.arange(7), 2).mean}

    task = pair_task(params, run, model) if given["pairs"] else pretraining_task(windows, params, evaluate)
    loss_of = task.loss

    def loss(*tensors: Any) -> Tensor:
        called("step")
        return loss_of(*tensors)

    training = train(model, task._replace(loss=loss), run)
    weights = {name: weight.detach().numpy().tobytes().hex() for name, weight in model.named_parameters()}
    write_json(result, {"weights": weights, "curve": training.curve, "steps": training.steps, "calls": calls})


if __name__ == "__main__":
    start(main)
