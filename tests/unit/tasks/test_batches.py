"""How many processes answer changes no bit. Each test starts real ones, which run answering_stage.py beside it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from scratchlm.data.byte_pairs import END_OF_TEXT
from scratchlm.data.instructions import INSTRUCTION_SCHEMA
from scratchlm.data.tokenizer import UNKNOWN
from scratchlm.formats.native import save_gpt
from scratchlm.model.gpt import GPTModel
from scratchlm.run.files import write_json, write_table
from scratchlm.run.workers import Place
from scratchlm.tasks import batches
from tests.processes import wait_for_processes

REPOSITORY = Path(__file__).resolve().parents[3]
SAMPLED = {"temperature": 1.2, "top_k": 8, "top_p": 0.95, "repetition_penalty": 1.1}
# 18 rows are five batches of 4
PARAMS = {"device": "cpu", "threads": 1, "compile": False, "seed": 7}
GENERATE = {"split": "test", "batch_size": 4, "max_new_tokens": 9, "stop": [], "sampling": SAMPLED}

Stage = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def stage(tmp_path: Path, tiny_gpt: Callable[..., GPTModel]) -> Stage:
    """Runs the stage with a number of workers. Keywords: see answering_stage.main."""
    save_gpt(tmp_path / "model", tiny_gpt(context_length=32, initialisation="torch"))
    write_json(tmp_path / "tokenizer" / "words.json", [*"abcdefghi", END_OF_TEXT, UNKNOWN])
    source, texts = np.random.default_rng(3), dict.fromkeys(("instruction", "input", "output", "prompt"), "é")
    for split, n in {"train": 0, "val": 0, "test": 18}.items():
        rows = [
            {"id": f"task-{i}", "prompt_token_ids": source.integers(9, size=i % 6 + 1), "response_token_ids": []}
            | texts
            for i in range(n)
        ]
        write_table(tmp_path / "instructions" / f"{split}.parquet", rows, INSTRUCTION_SCHEMA)

    def go(workers: int, precision: str = "float32", **settings: Any) -> subprocess.CompletedProcess[str]:
        params = PARAMS | {"precision": precision, "generate": GENERATE}
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
        write_json(tmp_path / "settings.json", {"taken": 0, "at": [], "signal": ""} | settings)
        paths = {name: name for name in ("tokenizer", "instructions", "model", "checkpoints")}
        paths |= {name: f"{name}.json" for name in ("metrics", "counts", "settings", "log")}
        paths |= {"params": "params.yaml", "responses": "responses.parquet"}
        words = [f"--{name}={tmp_path / path}" for name, path in paths.items()]
        variables = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}
        variables |= {"SCRATCHLM_WORKERS": str(workers), "SCRATCHLM_RESUME_SECONDS": "3600"}
        variables["PYTHONPATH"] = f"{REPOSITORY / 'src'}{os.pathsep}{REPOSITORY}"
        command = [sys.executable, "-m", "tests.unit.tasks.answering_stage", *words]
        return subprocess.run(command, env=variables, capture_output=True, text=True, cwd=tmp_path, timeout=60)

    return go


def result(folder: Path) -> tuple[bytes, int]:
    """What the stage wrote, once, and how many batches its own process has computed. No other file may be left."""
    (folder / "checkpoints" / "done").unlink(missing_ok=True)
    found = (folder / "responses.parquet").read_bytes(), json.loads((folder / "counts.json").read_text())["own"]
    for name in ("responses.parquet", "counts.json", "metrics.json"):
        (folder / name).unlink()
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    return found


@pytest.mark.long
def test_batches_come_in_their_order_whoever_computes_them_and_whether_or_not_a_worker_stops(
    stage: Stage, tmp_path: Path
) -> None:
    assert stage(1, "exact").returncode == 0
    alone = result(tmp_path)
    done = stage(3, "exact", taken=5)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert (alone[1], result(tmp_path)) == (5, (alone[0], 1))
    done = stage(2, "exact", taken=3, at=[1, 2], signal="SIGSTOP")
    assert done.returncode == 0, done.stderr
    assert result(tmp_path) == (alone[0], 4)  # all but the first batch of the worker


@pytest.mark.long
def test_a_killed_worker_ends_the_stage_with_one_sentence_and_another_number_of_them_resumes(
    stage: Stage, tmp_path: Path
) -> None:
    assert stage(1).returncode == 0
    alone = result(tmp_path)
    done = stage(2, taken=3, at=[1, 2], signal="SIGKILL")
    assert done.returncode == 1
    assert done.stderr == (
        "answering_stage: worker 1 of 2 has ended (killed by SIGKILL); run this again to resume, or lower "
        "SCRATCHLM_WORKERS\n"
    )
    done = stage(3, taken=3)
    assert "resuming from row 8 of 18\n" in done.stderr
    assert result(tmp_path) == (alone[0], 1)


@pytest.mark.long
def test_no_worker_outlives_a_killed_stage_and_none_is_started_in_vain(stage: Stage, tmp_path: Path) -> None:
    done = stage(9, taken=2, at=[0, 1], signal="SIGKILL")
    assert done.returncode == -9
    assert done.stderr == (
        "answering_stage: SCRATCHLM_WORKERS is 9, but generate.batch_size 4 leaves work for no more than 5; lower it "
        "to use more\n"
    )
    wait_for_processes(0, tmp_path)
    assert not (tmp_path / "responses.parquet").exists()


def test_a_worker_with_other_data_computes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "ready", lambda: None)  # which would close this process's output
    write_json(tmp_path / batches.BEGIN, {"first": 0, "digest": "of the stage's own process"})
    work = batches.Batches(range(3), lambda _: pytest.fail("computed"), lambda: "of the worker")
    with pytest.raises(batches.UserError, match="^it computes with other parameters, data or kernels than the stage's"):
        batches._serve(work, Place(1, 2, 1, str(tmp_path), "", ""))
    assert [path.name for path in tmp_path.iterdir()] == [batches.BEGIN]
