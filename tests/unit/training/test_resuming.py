"""A training that was stopped anywhere and resumed ends with the same bits as one that never stopped."""

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scratchlm.arithmetic import mode
from scratchlm.data.windows import TokenWindows
from scratchlm.model.gpt import GPTModel
from scratchlm.model.lora import LoRAParams, apply_lora
from scratchlm.run.context import Run
from scratchlm.run.errors import explained
from scratchlm.run.resume import Checkpoint
from scratchlm.training.loop import Batch, Task, train
from scratchlm.training.losses import static_next_token_loss, summed_next_token_loss
from scratchlm.training.optimizer import AdamW, TrainingParams

WINDOWS = TokenWindows(np.arange(90) * 7 % 11, 6, 4)
CACHE_KEY = "f" * 64


@pytest.fixture(autouse=True)
def at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCHLM_RESUME_SECONDS", "0")
    monkeypatch.setattr("scratchlm.run.resume.PAUSE_PER_COST", 0)


class Killed(BaseException):
    """What a SIGKILL is to the test: nothing in the library reacts to it."""


class Attempt:
    """One process' attempt at the training; `stop` says where it ends before its time."""

    def __init__(self, build: Callable[[], GPTModel], stop: tuple[str, int, type[BaseException]] | None = None) -> None:
        self.model = build()
        self._stop, self._calls = stop, {"batch": 0, "loss": 0, "evaluate": 0, "sample": 0}

    def _call(self, name: str) -> None:
        self._calls[name] += 1
        if self._stop and self._stop[:2] == (name, self._calls[name]):
            raise self._stop[2]

    def task(self, params: TrainingParams) -> Task:
        def batch(indices: np.ndarray) -> Batch:
            self._call("batch")
            inputs, targets = (torch.from_numpy(part) for part in WINDOWS.batch(indices))
            return Batch((inputs, targets), targets.numel())

        def loss(model: GPTModel, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            summed = summed_next_token_loss(model, inputs, targets)
            self._call("loss")
            return summed

        def evaluate(model: GPTModel) -> dict[str, float]:
            self._call("evaluate")
            return {"loss": float(model(torch.arange(6)[None]).square().mean())}

        def sample(model: GPTModel) -> dict[str, float]:
            self._call("sample")
            return {"value": float(model(torch.arange(3)[None]).mean())}

        return Task("test", params, len(WINDOWS), batch, loss, evaluate, sample, static_next_token_loss)


@pytest.fixture
def learn(training_values: dict[str, Any], tmp_path: Path) -> Any:
    params = TrainingParams(**training_values | {"epochs": 2.0, "max_micro_batch_size": 3, "evaluate_every_steps": 4})

    def go(attempt: Attempt, folder: str | None = None) -> dict[str, Any]:
        log = tmp_path / "log"
        checkpoint = Checkpoint(tmp_path / folder, CACHE_KEY, "test", log) if folder else Checkpoint()
        run = Run(stage="test", log=log, checkpoint=checkpoint, seed=7)
        training = train(attempt.model, attempt.task(params), run)
        return {
            "curve": training.curve,
            "samples": training.samples,
            "steps": training.steps,
            "weights": {name: tensor.numpy().tobytes() for name, tensor in attempt.model.state_dict().items()},
            "stream": torch.get_rng_state().tolist(),
        }

    return go


def dense(tiny_gpt: Any) -> Callable[[], GPTModel]:
    return lambda: tiny_gpt(dropout=0.2)


def with_lora(tiny_gpt: Any) -> Callable[[], GPTModel]:
    def build() -> GPTModel:
        model = tiny_gpt(dropout=0.2)
        apply_lora(model, LoRAParams(rank=2, alpha=2.0, layers="blocks"), seed=3)
        return model

    return build


STOPS = [
    ("batch", 1),
    ("batch", 2),
    ("batch", 11),
    ("loss", 2),
    ("loss", 9),
    ("evaluate", 1),
    ("evaluate", 2),
    ("evaluate", 4),
    ("sample", 2),
]


@pytest.mark.long
@pytest.mark.parametrize("kind", [dense, with_lora])
@pytest.mark.parametrize("how", [Killed, KeyboardInterrupt])
@pytest.mark.parametrize("where", STOPS, ids=[f"{name} {n}" for name, n in STOPS])
def test_a_run_that_was_stopped_once_ends_with_the_same_bits(
    learn: Any, tiny_gpt: Any, kind: Any, how: type[BaseException], where: tuple[str, int]
) -> None:
    build = kind(tiny_gpt)
    whole = learn(Attempt(build))
    with pytest.raises(how):
        learn(Attempt(build, (*where, how)), "states")
    torch.manual_seed(99)  # another process knows nothing of the stream
    assert learn(Attempt(build), "states") == whole


@pytest.mark.long
def test_a_compiled_run_that_was_stopped_ends_with_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, learn: Any, tiny_gpt: Any
) -> None:
    monkeypatch.setattr(mode, "_compiler", "a version")

    def build() -> GPTModel:
        return tiny_gpt(dropout=0.2, n_layers=1)

    whole = learn(Attempt(build))
    with pytest.raises(Killed):
        learn(Attempt(build, ("batch", 5, Killed)), "states")
    torch.manual_seed(99)
    assert learn(Attempt(build), "states") == whole


def test_a_run_that_is_stopped_at_every_step_gets_to_the_end_with_the_same_bits(learn: Any, tiny_gpt: Any) -> None:
    build = dense(tiny_gpt)
    whole = learn(Attempt(build))
    attempts = 0
    while attempts < 50:
        attempts += 1
        try:
            found = learn(Attempt(build, ("loss", 4, Killed)), "states")  # two micro batches a step: in its second step
        except Killed:
            continue
        break
    assert attempts == 10
    assert found == whole


def test_the_log_tells_where_a_run_resumed(learn: Any, tiny_gpt: Any, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        learn(Attempt(dense(tiny_gpt), ("batch", 8, Killed)), "states")
    learn(Attempt(dense(tiny_gpt)), "states")
    assert '{"resumed_from": "step 3 of 10"}' in (tmp_path / "log").read_text().splitlines()


def test_an_interrupt_within_the_optimizer_keeps_the_state_before_it(
    learn: Any, tiny_gpt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = dense(tiny_gpt)
    whole = learn(Attempt(build))
    steps = [0]
    real = AdamW.step

    def step(self: Any, *args: Any) -> Any:
        result = real(self, *args)
        steps[0] += 1
        if steps[0] == 5:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patched:
        patched.setattr(AdamW, "step", step)
        with pytest.raises(KeyboardInterrupt):
            learn(Attempt(build), "states")
    assert learn(Attempt(build), "states") == whole


def test_a_disk_that_is_full_is_named_and_no_defect(learn: Any, tiny_gpt: Any, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # less than the weights
    try:
        with pytest.raises(OSError, match="too large") as caught:
            learn(Attempt(dense(tiny_gpt)), "states")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert explained(caught.value) == (
        f"{tmp_path}/states/unfinished: file too large; free some space, then run this again"
    )


def test_frozen_weights_are_not_in_the_state(learn: Any, tiny_gpt: Any, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        learn(Attempt(with_lora(tiny_gpt), ("batch", 8, Killed)), "states")
    (path,) = (tmp_path / "states").iterdir()
    state = torch.load(path, weights_only=True)
    assert state["weights"]
    assert all(name.endswith((".A", ".B")) for name in state["weights"])


def test_a_state_of_a_processor_with_other_arithmetic_is_not_used(
    learn: Any, tiny_gpt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Killed):
        learn(Attempt(dense(tiny_gpt), ("batch", 8, Killed)), "states")
    monkeypatch.setattr("scratchlm.training.loop.arithmetic_fingerprint", lambda device: "other")
    learn(Attempt(dense(tiny_gpt)), "states")
    assert "resumed_from" not in (tmp_path / "log").read_text()
