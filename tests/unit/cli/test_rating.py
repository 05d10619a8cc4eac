"""A person rates responses in the terminal."""

import contextlib
import fcntl
import json
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from scratchlm.judge.rating import read_ratings
from scratchlm.judge.scoring import JUDGEMENT_SCHEMA
from scratchlm.run.files import write_table, write_text
from scratchlm.tasks.generation import RESPONSE_SCHEMA
from tests.clones import REPOSITORY
from tests.commands import scratchlm

VARIANTS = {"base": "gpt2-nano", "instruct": "finetune_instruct"}
N = 6
PROMPT = "a score from 0 to 100, s to skip, q to quit: "


def answer(model: str, i: int) -> str:
    return "the same words" if i == 0 else f"{model[::-1]} number {i}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with the responses and scores of two variants, which share one response."""
    write_text(tmp_path / "params.yaml", json.dumps({"seed": 3, "variants": VARIANTS}))
    judged: list[dict[str, Any]] = []
    for model in VARIANTS:
        rows = [
            {"id": f"task-{i}", "model": model, "response": answer(model, i), "finished": True,
             "instruction": f"Please say {i}. " + "word " * 30, "input": "a\nb" * (i == 1), "output": f"It is {i}"}
            for i in range(N)
        ]  # fmt: skip
        write_table(tmp_path / "data/responses/generate" / f"{model}.parquet", rows, RESPONSE_SCHEMA)
        judged += [
            {
                "id": row["id"],
                "model": model,
                "response": row["response"],
                "score": 50.0 + i,
                "reason": "",
                "raw_reply": "",
            }
            for i, row in enumerate(rows)
        ]
    write_table(tmp_path / "data/responses/judge.parquet", judged, JUDGEMENT_SCHEMA)
    return tmp_path


def rate(folder: Path, given: str, *words: str) -> str:
    done = scratchlm(folder, "rate", *words, given=given)
    assert (done.returncode, done.stderr) == (0, "")
    shown = done.stdout.replace(PROMPT, f"{PROMPT}\n")  # as after the line that a person ends
    assert max(map(len, shown.splitlines())) <= 80
    return shown


def test_each_answer_is_kept_and_the_next_call_resumes(folder: Path) -> None:
    path = folder / "ratings.csv"
    first = rate(folder, "80\n s \n12.5\nq\n", "--count", "5")
    assert list(read_ratings(path).values()) == [80.0, None, 12.5]
    assert [f" {i} of 5 " in first for i in range(1, 6)] == [True] * 4 + [False]
    assert "2 scored, 1 skipped" in first
    kept = path.read_text()
    second = rate(folder, "1\n2\n3\n", "--count", "5")
    assert path.read_text().startswith(kept)
    assert " 3 of 5 " not in second and " 4 of 5 " in second and " 5 of 5 " in second
    assert list(read_ratings(path).values()) == [80.0, None, 12.5, 1.0, 2.0]
    assert " of 5 " not in rate(folder, "", "--count", "5")
    assert " of 11 " in rate(folder, "", "--count", "99")  # two variants, six tasks, one response in common


def test_the_variant_is_hidden_and_the_reference_shown_on_request(folder: Path) -> None:
    blind = rate(folder, "s\n" * 11, "--count", "99").partition("scored")[0]
    assert "base" not in blind and "instruct" not in blind.replace("Instruction", "") and "It is" not in blind
    assert blind.count("Input:\n  a\n  b\n") == 2
    shown = rate(folder, "", "--reference", "--file", "other.csv")
    assert "Reference:\n  It is" in shown
    assert not (folder / "other.csv").exists()


def test_a_wrong_answer_is_said_and_asked_again(folder: Path) -> None:
    out = rate(folder, "101\nten\n\x1b[2J\n50\n")
    assert out.count("is not a score from 0 to 100, s to skip, q to quit") == 3
    assert "'101' is not" in out and "\x1b" not in out
    assert list(read_ratings(folder / "ratings.csv").values()) == [50.0]


def test_the_agreement_is_shown_for_each_variant(folder: Path) -> None:
    """The person gives 10 points less than the judge to every response but the shared one."""
    scores = {answer(model, i): 40.0 + i for model in VARIANTS for i in range(N)}
    out = ""
    for _ in range(11):
        shown = rate(folder, "", "--count", "99")
        response = next(text for text in scores if f"Response:\n  {text}\n" in shown)
        out = rate(folder, f"{scores[response]}\nq\n", "--count", "99")
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith(("base ", "instruct "))}
    for line in lines.values():
        assert line.split()[1:4] == ["6", "42.5", "52.5"]
        assert "+10.0 ± 0.0" in line and " 1.00 " in line
        assert line.rstrip().endswith("42.5 ± 2.0")  # t(5) = 2.57 times the deviation 1.87 / √6
    assert rate(folder, "", "--show") == rate(folder, "", "--show", "--count", "3") == out[out.index("11 scored") :]


def test_without_scores_of_the_judge_the_ratings_are_counted(folder: Path) -> None:
    (folder / "data/responses/judge.parquet").unlink()
    assert "1 scored, 0 skipped\n\n`dvc repro` makes the judge's scores" in rate(folder, "5\n")
    assert "0 scored, 0 skipped" in rate(folder, "", "--show", "--file", "new.csv")


def test_ratings_of_other_responses_are_not_compared(folder: Path) -> None:
    write_text(folder / "ratings.csv", "id,response_sha256,score\ntask-1,abc,5\n")
    assert "no current response has both your score and the judge's" in rate(folder, "", "--show")


@pytest.mark.parametrize("words", [(), ("--show",)])
def test_a_broken_file_is_one_sentence_before_any_question(folder: Path, words: tuple[str, ...]) -> None:
    write_text(folder / "ratings.csv", "id,response_sha256,score\nx,y,lots\n")
    done = scratchlm(folder, "rate", *words, given="5\n")
    sentence = "ratings.csv, line 2: 'lots' is no score from 0 to 100; correct or delete the line"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"scratchlm: {sentence}\n")


def test_a_file_that_cannot_be_made_is_one_sentence_before_any_question(folder: Path) -> None:
    done = scratchlm(folder, "rate", "--file", "params.yaml/ratings.csv", given="5\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert "params.yaml/ratings.csv does not exist and cannot be made in params.yaml: " in done.stderr


@pytest.mark.parametrize("file", ["/dev/null", "metrics"])
def test_what_is_no_file_is_not_read_as_one(folder: Path, file: str) -> None:
    (folder / "metrics").mkdir(exist_ok=True)
    sentence = f"{file} is a folder, device or pipe, and no file of ratings; name another file with --file"
    assert scratchlm(folder, "rate", "--file", file).stderr == f"scratchlm: {sentence}\n"


def test_missing_responses_are_one_sentence(folder: Path) -> None:
    (folder / "data/responses/generate/base.parquet").unlink()
    done = scratchlm(folder, "rate")
    assert done.returncode == 1 and "data/responses/generate/base.parquet: no such file" in done.stderr


@pytest.mark.long
def test_in_a_terminal_an_interruption_loses_nothing(folder: Path) -> None:
    """A person types a score, then Ctrl-C."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "scratchlm.cli.main", "rate"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    running = subprocess.Popen(
        command, cwd=folder, stdin=follower, stdout=follower, stderr=follower, env=environment, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(follower)
    _read_until(leader, PROMPT)
    os.write(leader, b"70\n")
    _read_until(leader, PROMPT)
    while running.poll() is None:  # Python misses a Ctrl-C between the prompt and its read
        os.write(leader, b"\x03")
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(10)  # a second one must not meet the end of the first
    _read_until(leader, "scratchlm: interrupted; run this again\r\n")
    assert running.returncode == 1
    os.close(leader)
    assert list(read_ratings(folder / "ratings.csv").values()) == [70.0]


def _read_until(terminal: int, end: str) -> None:
    shown = b""
    while not shown.endswith(end.encode()):
        shown += os.read(terminal, 1024)
