"""What the benchmark of the pipeline writes; how fast is not for a test to say."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import harness, pipeline
from benchmarks.pipeline import Measurement, main, set_param, stage_start
from scratchlm.run.device import available_cores
from scratchlm.run.files import read_json


def test_medians_and_spread_are_written_beside_the_target_and_whether_it_is_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds: Iterator[dict[str, float]] = iter([{"a": 1.0, "b": 4.0}, {"a": 3.0, "b": 2.0}, {"a": 2.0, "b": 9.0}])
    monkeypatch.setattr(pipeline, "MEASUREMENTS", {"example": Measurement(lambda: next(rounds), 2.0, 0.3)})
    monkeypatch.setattr(pipeline, "RESULTS", tmp_path)
    monkeypatch.setattr(harness, "machine", lambda threads: {"threads": threads})
    monkeypatch.setattr("sys.argv", ["pipeline.py", "--repeats", "3"])
    main()
    found = read_json(tmp_path / "example.json")
    assert found["seconds"] == {
        "a": {"median": 2.0, "lowest": 1.0, "highest": 3.0, "met": True},
        "b": {"median": 4.0, "lowest": 2.0, "highest": 9.0, "met": False},
    }
    assert found["ratio"] == {"median": 0.25, "lowest": 0.222222, "highest": 1.5, "target": 0.3, "met": True}
    assert (found["row"], found["repeats"], found["target_seconds"]) == ("example", 3, 2.0)
    assert (found["command"], found["machine"]) == (
        "python -m benchmarks.pipeline --repeats 3",
        {"threads": available_cores()},
    )
    first, second, _, ratio, _ = capsys.readouterr().out.splitlines()[-5:]
    assert first.split() == ["a", "2.00", "1.00", "3.00", "met"]
    assert ratio == "a takes 0.25 times as long as b; the target is 0.3"
    assert second.split() == ["b", "4.00", "2.00", "9.00", "not", "met"]


def test_the_start_of_each_stage_of_dvc_yaml_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "load_yaml", lambda path: {"stages": {"judge": {}, "tokenize": {}}})  # quick ones
    found = stage_start()
    assert list(found) == ["judge", "tokenize"]
    assert all(seconds > 0 for seconds in found.values())


def test_a_parameter_of_the_top_level_is_set(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("threads: auto  # all\nprecision: exact\na:\n  threads: 1\n")
    set_param(path, "threads", "2")
    assert path.read_text() == "threads: 2  # all\nprecision: exact\na:\n  threads: 1\n"
