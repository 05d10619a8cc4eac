"""How many processes train changes no bit; each test starts real ones, which run worker_stage.py beside this file."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from scratchlm.arithmetic.mode import exact_arithmetic
from scratchlm.arithmetic.sequences import sequences_apart
from scratchlm.data.windows import TokenWindows
from scratchlm.run.context import Run
from scratchlm.run.errors import UserError
from scratchlm.run.workers import LOOPBACK, Place, requested_workers, timeout_seconds
from scratchlm.tasks.pretraining import pretraining_task
from scratchlm.training import exchange
from scratchlm.training.gradients import add_gradients, micro_batches
from scratchlm.training.history import StepHistory
from scratchlm.training.workers import Workers
from tests.processes import processes_of, wait_for_processes

REPOSITORY = Path(__file__).resolve().parents[3]
# Three micro batches of a step; clipping at a norm that every step exceeds
CHANGES = {"epochs": 1.0, "batch_size": 6, "max_micro_batch_size": 2, "max_grad_norm": 0.1, "evaluate_every_steps": 4}

Stage = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def stage(tmp_path: Path, training_values: dict[str, Any]) -> Stage:
    """Runs the stage with a number of workers. Keywords: see worker_stage.main. Its result is in result.json.

    killed: the batch in which a process gets the signal: of a step or of an evaluation, rank, and number in that
    process. save: after how many seconds a checkpoint is due.
    """

    def go(
        workers: str, killed: tuple[str, int, int] | None = None, save: int = 3600, **given: Any
    ) -> subprocess.CompletedProcess[str]:
        settings = {"precision": "float32", "kind": "windows", "training": training_values | CHANGES} | given
        settings.setdefault("signal", signal.SIGKILL)
        (tmp_path / "settings.json").write_text(json.dumps(settings | {"killed": [*(killed or [])]}))
        words = [f"--{name}={tmp_path / f'{name}.json'}" for name in ("settings", "result", "log")]
        words.append(f"--checkpoints={tmp_path / 'checkpoints'}")
        path = f"{REPOSITORY / 'src'}{os.pathsep}{REPOSITORY}"
        variables = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}
        variables |= {"SCRATCHLM_WORKERS": workers, "PYTHONPATH": path, "SCRATCHLM_RESUME_SECONDS": str(save)}
        command = [sys.executable, "-m", "tests.unit.training.worker_stage", *words]
        return subprocess.run(command, env=variables, capture_output=True, text=True, cwd=tmp_path, timeout=120)

    return go


def result(folder: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """What the stage wrote, once, and how many batches of steps and evaluations its own process has computed."""
    found = json.loads((folder / "result.json").read_text())
    (folder / "result.json").unlink()
    (folder / "checkpoints" / "done").unlink(missing_ok=True)
    return found, found.pop("calls")


@pytest.mark.long
@pytest.mark.parametrize(
    ("precision", "workers", "kind", "own"),
    [("bfloat16", 3, "windows", {"step": 18 // 3, "evaluation": 4 + 8 // 2}), ("exact", 2, "pairs", {"step": 6})],
)
def test_workers_change_no_bit(
    stage: Stage, tmp_path: Path, precision: str, workers: int, kind: str, own: dict[str, int]
) -> None:
    """own: the counted batches of worker 0, which evaluates alone at step 0."""
    found = {}
    for n in (1, workers):
        done = stage(str(n), precision=precision, kind=kind)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        found[n] = result(tmp_path)
    assert found[1][0] == found[workers][0]
    assert found[1][1] == ({"step": 9} if kind == "pairs" else {"step": 18, "evaluation": 12})
    assert found[workers][1] == own
    assert {path.name for path in tmp_path.iterdir()} == {"settings.json", "log.json"}
    n_lines = 2 * (2 if kind == "pairs" else 3)  # the workers write none
    assert len((tmp_path / "log.json").read_text().splitlines()) == n_lines


@pytest.mark.long
def test_after_killed_workers_and_ctrl_c_any_number_of_workers_resumes_to_the_same_bytes(
    stage: Stage, tmp_path: Path
) -> None:
    """Of a policy, whose workers also divide the responses that a step samples."""
    stage = partial(stage, kind="policy")
    assert stage("1").returncode == 0
    whole = result(tmp_path)[0]
    done = stage("2", killed=("evaluation", 0, 5), signal=signal.SIGINT)  # the first that both divide
    assert done.returncode == 1
    assert re.findall(r"step (\d) of 6", done.stderr) == ["4"]
    done = stage("3", killed=("step", 1, 2), save=0)
    assert (done.returncode, done.stderr) == (
        1,
        "tiny: resuming from step 4 of 6\n"
        "worker_stage: worker 1 of 3 has ended (killed by SIGKILL); run this again to resume, or lower "
        "SCRATCHLM_WORKERS\n",
    )
    done = stage("2", killed=("step", 0, 1), signal=signal.SIGINT)  # the step ends before the stage does
    first, second = re.findall(r"step (\d) of 6", done.stderr)
    assert first in "45"
    assert int(second) == int(first) + 1
    assert done.returncode == 1
    done = stage("3")
    assert f"resuming from step {second} of 6" in done.stderr
    assert result(tmp_path)[0] == whole


@pytest.mark.long
def test_a_worker_that_hangs_in_an_evaluation_ends_the_stage_with_one_sentence(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRATCHLM_WORKER_SECONDS", "5")
    done = stage("2", killed=("evaluation", 1, 1), signal=signal.SIGSTOP)
    (sentence,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert sentence.startswith("worker_stage: a worker does not answer (")
    assert "; run this again to resume" in sentence
    assert not processes_of(tmp_path)
    monkeypatch.setenv("SCRATCHLM_WORKER_SECONDS", "soon")
    with pytest.raises(UserError, match="^SCRATCHLM_WORKER_SECONDS is 'soon', but must be a number from 1 to"):
        timeout_seconds()


@pytest.mark.long
def test_no_worker_outlives_a_killed_stage_and_none_is_started_in_vain(stage: Stage, tmp_path: Path) -> None:
    done = stage("9", killed=("step", 0, 3))
    assert done.returncode == -9
    assert done.stderr == (
        "worker_stage: SCRATCHLM_WORKERS is 9, but at max_micro_batch_size 2 a step has micro batches for no more than "
        "3; lower it to use more\n"
    )
    wait_for_processes(0, tmp_path)
    assert not (tmp_path / "result.json").exists()


def test_exact_sums_of_sequences_are_added_in_their_order_before_they_are_rounded(tiny_gpt: Any) -> None:
    """In float64: rounded to float32, sums in another order seldom differ."""
    model, windows = tiny_gpt(tied_head=True, dropout=0.1).train(), TokenWindows(np.arange(150) * 7 % 11, 8, 4)
    params = SimpleNamespace(batch_size=9, n_micro_batches=3)
    task = pretraining_task(windows, params, lambda _: {})  # type: ignore[arg-type]
    state: Any = SimpleNamespace(
        model=model,
        task=task,
        run=Run(seed=7),
        step=1,
        device=torch.device("cpu"),
        captured=None,
        history=StepHistory(params, 1),  # type: ignore[arg-type]
    )
    batches, parameters = micro_batches(task, 1, 7), [*model.parameters()]

    def sums(apart: Callable[[], AbstractContextManager[None]]) -> exchange.Gradients:
        """Those of three micro batches, the last two as if other workers had computed them."""
        found = []
        for i, context in enumerate((nullcontext, apart, apart)):
            with context():
                add_gradients(state, batches, [i])
            found.append(exchange.take_gradients(parameters))
        for gradients in found:
            exchange.add_gradients(parameters, gradients)
        return exchange.take_gradients(parameters)

    def equal(a: exchange.Gradients, b: exchange.Gradients) -> bool:
        return a.keys() == b.keys() and all(torch.equal(a[key][0], b[key][0]) for key in a)

    with exact_arithmetic():
        add_gradients(state, batches, range(3))
        alone = exchange.take_gradients(parameters)
        assert {use for _, use in alone} == {"linear", "embedding", "norm"}
        assert equal(sums(sequences_apart), alone)
        assert not equal(sums(nullcontext), alone)  # sums of micro batches are other sums


def test_ctrl_c_waits_until_a_checkpoint_has_been_collected(tmp_path: Path, tiny_gpt: Any) -> None:
    """In the middle, the other workers would go on with the first answer as the checkpoint of the interrupt asks."""
    parameters = [*tiny_gpt().parameters()]
    state: Any = SimpleNamespace(weights=lambda: parameters, optimizer=torch.optim.AdamW(parameters))
    workers, saved = Workers(state, Place(0, 2, 1, str(tmp_path), "", LOOPBACK), None), []
    with pytest.raises(KeyboardInterrupt), workers.whole_state():
        signal.raise_signal(signal.SIGINT)
        saved.append("whole")
    assert saved == ["whole"]


@pytest.mark.parametrize("given", ["0", "65", "two", "1.5", ""])
def test_a_number_of_workers_that_is_none_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCHLM_WORKERS", given)
    with pytest.raises(UserError, match=f"^SCRATCHLM_WORKERS is '{given}', but must be an integer from 1 to 64; "):
        requested_workers()
    monkeypatch.delenv("SCRATCHLM_WORKERS")
    assert requested_workers() == 1
