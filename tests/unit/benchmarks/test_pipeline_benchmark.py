"""What the benchmark of the pipeline writes; how fast is not for a test to say."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import harness, pipeline
from benchmarks.pipeline import Measurement, main, stage_start
from scratchlm.run.device import available_cores
from scratchlm.run.files import read_json


def test_medians_and_spread_are_written_beside_the_target_and_whether_it_is_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds: Iterator[dict[str, float]] = iter([{"a": 1.0, "b": 4.0}, {"a": 3.0, "b": 2.0}, {"a": 2.0, "b": 9.0}])
    monkeypatch.setattr(pipeline, "MEASUREMENTS", {"example": Measurement(lambda: next(rounds), 2.0)})
    monkeypatch.setattr(pipeline, "RESULTS", tmp_path)
    monkeypatch.setattr(harness, "machine", lambda threads: {"threads": threads})
    monkeypatch.setattr("sys.argv", ["pipeline.py", "--repeats", "3"])
    main()
    found = read_json(tmp_path / "example.json")
    assert found["seconds"] == {
        "a": {"median": 2.0, "lowest": 1.0, "highest": 3.0, "met": True},
        "b": {"median": 4.0, "lowest": 2.0, "highest": 9.0, "met": False},
    }
    assert (found["row"], found["repeats"], found["target_seconds"]) == ("example", 3, 2.0)
    assert (found["command"], found["machine"]) == (
        "python -m benchmarks.pipeline --repeats 3",
        {"threads": available_cores()},
    )
    first, second = capsys.readouterr().out.splitlines()[-3:-1]
    assert first.split() == ["a", "2.00", "1.00", "3.00", "met"]
    assert second.split() == ["b", "4.00", "2.00", "9.00", "not", "met"]


def test_the_start_of_each_stage_of_dvc_yaml_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "load_yaml", lambda path: {"stages": {"judge": {}, "tokenize": {}}})  # quick ones
    found = stage_start()
    assert list(found) == ["judge", "tokenize"]
    assert all(seconds > 0 for seconds in found.values())
