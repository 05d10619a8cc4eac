"""Each load is made and worked on as a whole; how long it takes is not for a test to say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import load
from benchmarks.harness import Row

TEXTS = load.Texts("sample-stories", "gpt2-nano")


class InThisProcess:
    """In place of harness.workers."""

    def __init__(self, name: str, row: Row, threads: int) -> None:
        self.work = row.contenders["scratchlm"]

    def __enter__(self) -> dict[str, Callable[[Callable[..., Any]], Any]]:
        run = self.work.setup(**self.work.options)
        answers = {"run_once": lambda: (run(), 1.0), "peak_memory_bytes": lambda: 2**30}
        return {"scratchlm": lambda function: answers[function.__name__]()}

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("name", "units"),
    {"messages": 100, "instructions": 100, "read_instructions": 100, "corpus": 100_000, "shards": 2, "revisions": 2}
    .items(),
)  # fmt: skip
def test_a_load_is_of_the_amount_that_it_names(name: str, units: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load.harness, "workers", InThisProcess)
    found = load.load(name, 1e-5 if name == "corpus" else 0.001, TEXTS, threads=1)
    assert found == {"unit": load.LOADS[name].unit, "units": units, "seconds": 1.0, "peak_memory_bytes": 2**30}


def test_every_load_is_tested() -> None:
    (marks,) = (mark for mark in test_a_load_is_of_the_amount_that_it_names.pytestmark)
    assert {name for name, _ in marks.args[1]} == set(load.LOADS)


def test_the_command_prints_a_table_and_writes_what_it_measured_at_full_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"unit": "messages", "units": 1000, "seconds": 2.0, "peak_memory_bytes": 2**30}
    monkeypatch.setattr(load, "RESULTS", tmp_path)
    monkeypatch.setattr(load, "about", lambda module, threads: {"command": module})
    monkeypatch.setattr(load, "load", lambda name, scale, texts, threads: row | {"units": 1000 * scale})
    for words in (["--row", "messages", "--scale", "0.1"], ["--row", "messages"], ["--row", "corpus"]):
        monkeypatch.setattr("sys.argv", ["load.py", *words])
        load.main()
    written = load.read_json(tmp_path / "load.json")
    assert written == {"rows": {"messages": row, "corpus": row}, "command": "benchmarks.load"}
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["messages", "100", "messages", "2", "s", "1,024", "MiB"]
