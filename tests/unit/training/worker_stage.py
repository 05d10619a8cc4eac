"""A stage as small as can be, for test_workers.py: train a tiny model as a JSON file says, and write its weights."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor, nn

from scratchlm.data.byte_pairs import END_OF_TEXT
from scratchlm.data.tokenizer import UNKNOWN, WordTokenizer
from scratchlm.data.windows import TokenWindows
from scratchlm.fast.kernels import set_up
from scratchlm.model.config import GPTConfig
from scratchlm.model.critic import actor_of
from scratchlm.model.generate import Generation, SamplingParams
from scratchlm.model.gpt import build_model
from scratchlm.run.context import Run
from scratchlm.run.device import RuntimeParams
from scratchlm.run.files import read_json, write_json
from scratchlm.run.resume import Checkpoint
from scratchlm.run.stage import start
from scratchlm.run.workers import worker_place
from scratchlm.tasks import preference
from scratchlm.tasks.generation import Rows
from scratchlm.tasks.language_model import LossMeter
from scratchlm.tasks.policy_evaluation import PolicyEvaluation, Prompts
from scratchlm.tasks.pretraining import pretraining_task
from scratchlm.tasks.reinforce import ReinforceParams, policy_of, reinforce_task
from scratchlm.tasks.settings import EvaluationParams
from scratchlm.training.loop import Task, no_sample, train
from scratchlm.training.optimizer import TrainingParams

MODEL = {
    "vocab_size": 31, "context_length": 8, "n_layers": 2, "n_heads": 2, "emb_dim": 16, "dropout": 0.1,
    "qkv_bias": True, "tied_head": True, "initialisation": "gpt2", "attention": "sdpa",
}  # fmt: skip
RUNTIME = {"device": "cpu", "threads": 1, "compile": False, "seed": 7}
POLICY = {  # three micro batches of a step
    "algorithm": "ppo", "responses_per_prompt": 2, "temperature": 1.0, "max_new_tokens": 3, "unfinished_reward": 0.0,
    "kl_coefficient": 0.05, "clip": 0.01, "updates_per_step": 2, "discount": 1.0, "gae_decay": 0.95,
    "value_coefficient": 0.5, "lora": None, "max_micro_batch_size": 4,
}  # fmt: skip

Called = Callable[[str], None]  # before a batch is computed, with the part of the training that it belongs to


def window_task(params: TrainingParams, called: Called) -> Task:
    """36 windows to learn from; an evaluation has four batches."""
    windows, meter = TokenWindows(np.arange(150) * 7 % 31, 8, 4), LossMeter()

    def measured(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        called("evaluation")
        return windows.batch(indices)

    def evaluate(model: Any) -> dict[str, float]:
        return {"val_loss": meter.measure(model, measured, np.arange(7), 2).mean}

    return counted(pretraining_task(windows, params, evaluate), called)


def pair_task(params: TrainingParams, run: Run, model: Any, called: Called) -> Task:
    """Of pairs, of which each is two sequences of a micro batch; an evaluation has two batches of each split."""
    row = {"prompt_token_ids": [1, 2], "chosen_token_ids": [3, 4, 5], "rejected_token_ids": [6]}
    rows = [{name: [(n * (i + 3)) % 31 for n in ids] for name, ids in row.items()} for i in range(18)]
    pairs = preference.Preferences({"train": rows, "val": rows[:4]}, 0, 8)
    settings = SimpleNamespace(loss="dpo", beta=0.2, label_smoothing=0.0)
    evaluation = preference.PairEvaluation(pairs, settings, SimpleNamespace(batch_size=4, max_rows=4))  # type: ignore
    evaluation.measure_reference(model, run)
    return counted(preference.preference_task(pairs, params, evaluation), called)  # type: ignore[arg-type]


def counted(task: Task, called: Called) -> Task:
    """The task, with each micro batch of a step counted."""

    def loss(*tensors: Any) -> Tensor:
        called("step")
        return task.loss(*tensors)

    return task._replace(loss=loss)


def policy_task(params: ReinforceParams, policy: nn.Module, called: Called) -> Task:
    """36 prompts, two responses to each of six in a step; an evaluation has four batches."""
    row = {"instruction": "", "input": "", "chosen": ""}
    rows = [row | {"id": f"{i}", "prompt_token_ids": [2 + i % 7, 3][: 1 + i % 2]} for i in range(36)]
    words = WordTokenizer([END_OF_TEXT, UNKNOWN, *(f"w{i}" for i in range(2, 31))])

    class CountedPrompts(Prompts):
        def respond(self, decoder: Any, rows: Rows, sampling: SamplingParams, seeds: Sequence[int]) -> list[Generation]:
            called("step" if seeds else "evaluation")
            return super().respond(decoder, rows, sampling, seeds)

    def reward(rows: Rows, answers: Sequence[Generation]) -> list[float]:
        return [sum(answer.token_ids) % 10 / 10 for answer in answers]

    prompts = CountedPrompts({"train": rows, "val": rows[:7]}, words, 8, params.max_new_tokens)
    evaluation = PolicyEvaluation(prompts, reward, EvaluationParams(context_length=8, batch_size=2, max_rows=7))
    task = reinforce_task(prompts, params, reward, evaluation, deepcopy(actor_of(policy)))
    return task._replace(sample=no_sample)


def main(run: Run, *, settings: Path, result: Path, checkpoints: Path) -> None:
    given = read_json(settings)
    set_up(run, RuntimeParams(**RUNTIME, precision=given["precision"]))
    run.checkpoint = Checkpoint(checkpoints, "f" * 64, "tiny", None)
    place, calls = worker_place(), Counter[str]()

    def called(part: str) -> None:
        calls[part] += 1
        if given["killed"] == [part, place.rank if place else 0, calls[part]]:
            os.kill(os.getpid(), given["signal"])

    gpt, values = build_model(GPTConfig(**MODEL), seed=5), given["training"]
    model: nn.Module = gpt
    if given["kind"] == "policy":
        params = ReinforceParams(**values | POLICY)
        model = policy_of(gpt, params)
        task = policy_task(params, model, called)
    elif given["kind"] == "pairs":
        task = pair_task(TrainingParams(**values), run, gpt, called)
    else:
        task = window_task(TrainingParams(**values), called)
    training = train(model, task, run)
    weights = {name: weight.detach().numpy().tobytes().hex() for name, weight in model.named_parameters()}
    write_json(result, {"weights": weights, "curve": training.curve, "steps": training.steps, "calls": calls})


if __name__ == "__main__":
    start(main)
