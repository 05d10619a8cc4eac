import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scratchlm.data.windows import TokenWindows
from scratchlm.run.context import Run
from scratchlm.run.errors import UserError
from scratchlm.run.resume import Checkpoint
from scratchlm.run.tensorboard import AXES, PROJECT_FOLDERS, TENSORBOARD_VARIABLE, requested_folder
from scratchlm.tasks.pretraining import pretraining_task
from scratchlm.training.loop import Training, train
from scratchlm.training.optimizer import TrainingParams
from tests.clones import REPOSITORY

TRACKED = ("metrics", "ours/pretrain")
READER = """
import json, sys
sys.modules["keras"] = None  # which takes long to import, and is not used
from tensorflow.compat.v1.train import summary_iterator
for path in sys.argv[1:]:
    events = [*summary_iterator(path)]
    n_starts = sum(event.session_log.status == event.session_log.START for event in events)
    points = [(event.step, value.tag, value.simple_value) for event in events for value in event.summary.value]
    print(json.dumps([n_starts, sorted(points)]))
"""  # in a process of its own: TensorFlow can hang beside torch


class Killed(BaseException):
    pass


def read(*paths: Path) -> list[list[Any]]:
    """What TensorFlow's own reader finds in event files: how many starts of a session, and the points of all curves."""
    done = subprocess.run([sys.executable, "-c", READER, *map(str, paths)], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def expected(steps: list[dict[str, float]], curve: list[dict[str, float]]) -> list[list[Any]]:
    """The points as float32 holds them."""
    rows = [("step", row) for row in steps] + [("evaluation", row) for row in curve]
    points = [(row["step"], f"{kind}/{key}", value) for kind, row in rows for key, value in row.items()]
    return sorted([step, tag, float(np.float32(value))] for step, tag, value in points if tag.split("/")[1] not in AXES)


@pytest.mark.long
def test_curves_grow_while_a_model_trains_and_a_resumed_training_has_them_whole(
    tiny_gpt: Any, training_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRATCHLM_RESUME_SECONDS", "0")
    monkeypatch.setattr("scratchlm.run.resume.PAUSE_PER_COST", 0)
    params = TrainingParams(**training_values | {"epochs": 2.0, "evaluate_every_steps": 4})
    windows = TokenWindows(np.arange(90) * 7 % 11, 6, 4)
    folder, copy = tmp_path / "runs" / "pretrain", tmp_path / "copy"

    def learn(n_evaluations: int, events: Path | None, resume: str) -> Training:
        done = 0

        def evaluate(model: Any) -> dict[str, float]:
            nonlocal done
            done += 1
            if done > n_evaluations:
                copy.write_bytes(next(folder.iterdir()).read_bytes())  # while it is open
                raise Killed
            return {"val_loss": float(model.token_embedding.weight.mean())}

        checkpoint = Checkpoint(tmp_path / resume, "f" * 64, "pretrain", tmp_path / "log")
        task = pretraining_task(windows, params, evaluate)  # type: ignore[arg-type]
        return train(tiny_gpt(), task, Run(checkpoint=checkpoint, events=events, seed=7))

    whole = learn(9, None, "resume_of_another")
    assert len(whole.steps) == 10 and [row["step"] for row in whole.curve] == [0, 4, 8, 10]
    assert not folder.exists()
    with pytest.raises(Killed):
        learn(2, folder, "resume")
    for path in folder.iterdir():  # a resumed training is another process, which gives its file another name
        path.rename(f"{path}.killed")
    assert learn(9, folder, "resume") == whole
    (resumed,) = (path for path in folder.iterdir() if path.suffix != ".killed")
    at_the_kill, in_the_end = read(copy, resumed)
    assert at_the_kill == [1, expected(whole.steps[:6], whole.curve[:2])]  # the last steps are not saved yet
    assert in_the_end == [1, expected(whole.steps, whole.curve)]


def test_a_stage_has_its_own_folder_and_each_of_its_items_one_in_that(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert requested_folder("pretrain", TRACKED) is None
    monkeypatch.setenv(TENSORBOARD_VARIABLE, "")
    assert requested_folder("pretrain", TRACKED) is None
    monkeypatch.setenv(TENSORBOARD_VARIABLE, "runs")
    assert requested_folder("pretrain", TRACKED) == tmp_path / "runs" / "pretrain"
    assert requested_folder("reinforce@grpo", TRACKED) == tmp_path / "runs" / "reinforce" / "grpo"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("notes", "{}/notes is a file"),
        ("notes/runs", "{}/notes is a file"),
        ("metrics/runs", "that path belongs to the project"),
        ("ours", "that path belongs to the project"),
        ("runs/../metrics", "that path belongs to the project"),
        ("link", "that path belongs to the project"),
        (".git", "that path belongs to the project"),
        ("src/runs", "that path belongs to the project"),
        ("s3://bucket/runs", "that is a URL"),
    ],
)
def test_a_folder_that_cannot_be_or_is_not_free_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str, fault: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes").write_text("mine")
    Path("link").symlink_to("data/models")
    monkeypatch.setenv(TENSORBOARD_VARIABLE, given)
    with pytest.raises(UserError) as caught:
        requested_folder("pretrain", TRACKED)
    assert str(caught.value) == (
        f"{TENSORBOARD_VARIABLE} is '{given}', but {fault.format(tmp_path)}; name a folder such as runs, or unset it"
    )


def test_the_folders_of_the_project_are_those_in_git_and_those_that_git_ignores() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    in_git = {path.split("/")[0] for path in tracked.splitlines() if "/" in path}
    assert in_git == PROJECT_FOLDERS - {".git", ".scratchlm", ".venv", "logs"}


def test_a_missing_package_is_named_before_the_first_step(
    tiny_gpt: Any, training_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
    task = pretraining_task(TokenWindows(np.arange(90), 6, 4), TrainingParams(**training_values), pytest.fail)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="the package tensorboardX is not installed; run `pip install --constraint"):
        train(tiny_gpt(), task, Run(events=tmp_path))
