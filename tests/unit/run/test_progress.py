"""The progress of a stage, on a real terminal (a pty) of 80 columns and in a file."""

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import termios
from collections.abc import Callable
from typing import TextIO

import pytest

from scratchlm.run import progress
from scratchlm.run.context import Run
from scratchlm.run.progress import SECONDS_BETWEEN_LINES, Progress, in_words

NOTE = "step 1234: val_loss 0.5083, val_accuracy 0.7656, val_margin -0.7784"


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def on_a_terminal(columns: int, show: Callable[[TextIO], None]) -> str:
    """Return everything that `show` writes to a terminal."""
    person, program = pty.openpty()
    fcntl.ioctl(program, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(program, "w") as stream:
        show(stream)
    shown = b""  # it comes in pieces
    with contextlib.suppress(OSError):  # how Linux reports that the other end is closed
        while piece := os.read(person, 1 << 16):
            shown += piece
    os.close(person)
    return shown.decode()


def advance(progress: Progress, clock: Clock, steps: int, seconds: float, figures: str = "") -> None:
    for _ in range(steps):
        clock.seconds += seconds
        progress.update(1, (lambda: figures) if figures else None)


def test_a_file_gets_a_line_every_ten_seconds_with_the_newest_figures_and_note():
    file, clock = io.StringIO(), Clock()
    with Progress("pretrain", 100, 20, "step", stream=file, clock=clock) as progress:
        progress.note("step 20: val_loss 4.1")
        progress.note("step 21: val_loss 4")
        advance(progress, clock, 50, 0.5, "loss 3.5, lr 1.0e-03")
    assert file.getvalue().splitlines() == [
        "pretrain: 40 of 100 steps, 00:30 left, loss 3.5, lr 1.0e-03; step 21: val_loss 4",
        "pretrain: 60 of 100 steps, 00:20 left, loss 3.5, lr 1.0e-03; step 21: val_loss 4",
    ]


def test_a_file_gets_nothing_from_what_is_shorter():
    file, clock = io.StringIO(), Clock()
    with Progress("judge", 449, 0, "response", stream=file, clock=clock) as progress:
        advance(progress, clock, 449, 0.99 * SECONDS_BETWEEN_LINES / 449)
    assert file.getvalue() == ""


def test_a_file_gets_amounts_in_bytes_with_a_total_and_without():
    file, clock = io.StringIO(), Clock()
    with Progress("tokenize train", None, 0, "B", stream=file, clock=clock) as progress:
        clock.seconds += 20
        progress.update(3_000_000)
    assert file.getvalue() == "tokenize train: 3.00MB, 150kB/s\n"
    with Progress("pin", 9_000_000, 0, "B", stream=file, clock=clock) as progress:
        clock.seconds += 20
        progress.update(3_000_000)
    assert file.getvalue().endswith("\npin: 3.00MB of 9.00MB, 00:40 left\n")


@pytest.mark.parametrize("total", [203, 9_999])
@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("finetune_preference", "step"),
        ("ablate_pretrain@rope", "rope"),
        ("ablate_pretrain@rope-and-swiglu", "rope-and-swig…"),
    ],
)
def test_on_80_columns_the_bar_and_all_figures_are_one_line(total, title, name):
    figures = "loss 12.345, lr 9.7e-04, 12.3k pairs/s"

    def show(stream: TextIO) -> None:
        clock = Clock()
        with Progress(title, total, 0, "step", stream=stream, clock=clock) as progress:
            advance(progress, clock, 5, 1.0, figures)
            progress.note(NOTE)

    pieces = on_a_terminal(80, show).replace("\n", "\r").split("\r")
    assert max(map(len, pieces)) <= 80, pieces
    assert any(piece.startswith(f"{name} 5/{total} |") and figures in piece for piece in pieces), pieces
    assert f"  {NOTE}" in pieces


def test_on_a_terminal_a_sentence_of_the_stage_has_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def show(stream: TextIO) -> None:
        monkeypatch.setattr("sys.stderr", stream)
        run = Run("generate@base")
        with run.progress(110, 0, "response") as progress:
            run.say("one process computes")
            progress.update(110)

    lines = re.split("[\r\n]+", on_a_terminal(80, show).replace("\x1b[A", ""))
    assert "generate@base: one process computes" in lines, lines


def test_runs_of_a_stage_that_train_at_once_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    parts = {"ablate_pretrain@rope": "", "ablate_pretrain@swiglu": "", "ablate_spam@first": "frozen blocks"}
    for stage, part in parts.items():
        Run(stage).progress(9, 0, "step", part).update()
    titles = [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()]
    assert titles == ["ablate_pretrain@rope", "ablate_pretrain@swiglu", "ablate_spam@first frozen blocks"]


def test_figures_are_computed_only_when_they_are_shown():
    calls = []
    with Progress("pretrain", 9, 0, "step", stream=io.StringIO(), clock=Clock()) as progress:
        progress.update(1, lambda: calls.append(1) or "")
    assert calls == []


def test_metrics_in_words_have_counts_in_full():
    assert (
        in_words({"val.loss": 3.45187, "corpus.train.tokens": 239094}) == "val.loss 3.452, corpus.train.tokens 239,094"
    )
