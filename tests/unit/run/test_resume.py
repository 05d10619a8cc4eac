import os
from pathlib import Path

import pyarrow as pa
import pytest

from scratchlm.run.errors import UserError
from scratchlm.run.files import read_table
from scratchlm.run.resume import STATES, Resume, forget_finished

SCHEMA = pa.schema([("id", pa.string()), ("score", pa.float64())])


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a state whenever one could be kept."""
    monkeypatch.setenv("SCRATCHLM_RESUME_SECONDS", "0")
    monkeypatch.setattr("scratchlm.run.resume.LARGEST_SHARE", float("inf"))


def resume(folder: Path, identity: str = "a" * 64) -> Resume:
    return Resume(folder / "states", identity, "train", folder / "log.jsonl")


def keep(state: Resume, text: str, position: str = "step 3 of 9") -> None:
    with state.keeping(lambda path: path.write_text(text) and None, lambda: position) as keep_if_due:
        keep_if_due()


def kept(folder: Path) -> list[Path]:
    return sorted((folder / "states").glob("*"))


def test_a_state_is_found_by_the_next_process_of_the_same_run(tmp_path: Path) -> None:
    keep(resume(tmp_path), "state")
    found = resume(tmp_path).load()
    assert found is not None and found.read_text() == "state"


def test_only_the_newest_state_stays(tmp_path: Path) -> None:
    state = resume(tmp_path)
    keep(state, "old")
    keep(state, "new")
    (path,) = kept(tmp_path)
    assert path.read_text() == "new"
    assert state.kept == "step 3 of 9"


def test_keeping_the_same_state_twice_keeps_it(tmp_path: Path) -> None:
    state = resume(tmp_path)
    keep(state, "same")
    keep(state, "same")
    assert [path.read_text() for path in kept(tmp_path)] == ["same"]


def test_a_state_of_another_run_is_said_to_be_of_no_use_and_stays_for_that_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(resume(tmp_path), "state")
    assert resume(tmp_path, "b" * 64).load() is None
    assert capsys.readouterr().err == (
        "train: what an unfinished run kept belongs to other inputs, parameters or code and is not used\n"
    )
    found = resume(tmp_path).load()
    assert found and found.read_text() == "state"


def test_a_condition_that_dvc_does_not_know_tells_runs_apart(tmp_path: Path) -> None:
    for condition, expected in (("llama 1", None), ("llama 2", None), ("llama 2", "state")):
        state = resume(tmp_path)
        state.only_under(condition)
        found = state.load()
        assert (found and found.read_text()) == expected
        keep(state, "state")


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty"])
def test_a_damaged_state_is_noticed_with_a_sentence_and_not_used(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(resume(tmp_path), "a whole state")
    (path,) = kept(tmp_path)
    content = path.read_bytes()
    path.write_bytes(
        {"truncated": content[:-1], "one bit": bytes([content[0] ^ 1]) + content[1:], "empty": b""}[damage]
    )
    assert resume(tmp_path).load() is None
    assert kept(tmp_path) == []
    assert capsys.readouterr().err == f"train: the state in {path} is damaged and is not used\n"


def test_an_older_sound_state_stands_in_for_a_damaged_newer_one(tmp_path: Path) -> None:
    keep(resume(tmp_path), "older")
    (older,) = kept(tmp_path)
    newer = older.with_name(f"{'a' * 64}-{'0' * 64}")
    newer.write_text("half")
    os.utime(newer, ns=(2**62, 2**62))
    assert resume(tmp_path).load() == older
    assert kept(tmp_path) == [older]


def test_what_a_kill_left_of_writing_a_state_goes_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(resume(tmp_path), "state")
    (tmp_path / "states" / "unfinished").write_text("sta")
    found = resume(tmp_path).load()
    assert found and found.read_text() == "state"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError])
def test_an_interrupt_and_an_error_for_the_user_keep_the_state(tmp_path: Path, error: type[BaseException]) -> None:
    state = resume(tmp_path)
    with pytest.raises(error), state.keeping(lambda path: path.write_text("state") and None, lambda: "step 5 of 9"):
        raise error
    assert [path.read_text() for path in kept(tmp_path)] == ["state"]
    assert state.kept == "step 5 of 9"


def test_a_state_that_is_not_whole_is_not_kept(tmp_path: Path) -> None:
    keep(resume(tmp_path), "whole")
    state = resume(tmp_path)
    with (
        pytest.raises(KeyboardInterrupt),
        state.keeping(lambda path: path.write_text("torn") and None, lambda: None) as keep_if_due,
    ):
        keep_if_due()
        raise KeyboardInterrupt
    assert [path.read_text() for path in kept(tmp_path)] == ["whole"]


def test_a_state_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    keep(resume(tmp_path), "before")

    def fail(path: Path) -> None:
        path.write_text("half of it")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"), resume(tmp_path).keeping(fail, lambda: "step 6") as keep_if_due:
        keep_if_due()
    found = resume(tmp_path).load()
    assert found and found.read_text() == "before"


def test_states_take_no_more_than_their_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that the test turns: each state costs 1 s, a step 0.5 s, at most 2 % may go into states."""
    now = [0.0]
    monkeypatch.setattr("scratchlm.run.resume.time.perf_counter", lambda: now[0])
    monkeypatch.setattr("scratchlm.run.resume.LARGEST_SHARE", 0.02)
    written = []

    def write(path: Path) -> None:
        now[0] += 1.0
        written.append(now[0])
        path.write_text(str(now[0]))

    state = resume(tmp_path)
    with state.keeping(write, lambda: "here", size_bytes=300_000_000) as keep_if_due:  # one second, by assumption
        for _ in range(1000):
            now[0] += 0.5
            keep_if_due()
    assert len(written) == 10
    assert written[0] == 51.0
    assert len(written) <= 0.02 * now[0]


def test_states_are_no_closer_than_the_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("scratchlm.run.resume.time.perf_counter", lambda: now[0])
    monkeypatch.setenv("SCRATCHLM_RESUME_SECONDS", "30")
    written: list[float] = []
    state = resume(tmp_path)
    with state.keeping(lambda path: written.append(now[0]) or path.write_text("x") and None, lambda: "x") as keep:
        for _ in range(100):
            now[0] += 1
            keep()
    assert written == [30.0, 60.0, 90.0]


def test_rows_come_back_exactly_and_the_run_says_from_where_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": "a", "score": 0.1 + 0.2}, {"id": "b", "score": None}]
    with resume(tmp_path).keeping_records(rows, SCHEMA) as keep_if_due:
        keep_if_due()
    assert resume(tmp_path).records(5) == rows
    assert capsys.readouterr().err == "train: goes on from row 2 of 5, where an unfinished run was\n"
    assert (tmp_path / "log.jsonl").read_text() == '{"resumed_from": "row 2 of 5"}\n'
    (path,) = kept(tmp_path)
    assert read_table(path) == rows


def test_nothing_kept_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    assert resume(tmp_path).records(5) == []
    assert not (tmp_path / "log.jsonl").exists()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the states of three stages; `train` is done."""
    monkeypatch.chdir(tmp_path)
    for name in ("train", "vary-a", "vary-b"):
        state = Resume(STATES / name, "a" * 64, name)
        keep(state, name)
        if name == "train":
            state.done()
    return tmp_path


def states(folder: Path) -> set[str]:
    return {path.name for path in (folder / STATES).iterdir()}


def test_the_states_of_a_stage_that_is_done_go_when_the_next_stage_starts(project: Path) -> None:
    forget_finished("vary@a", ["train", "vary@a", "vary@b"])
    assert states(project) == {"vary-a", "vary-b"}


def test_a_stage_that_is_done_and_must_run_again_goes_on_from_its_state(project: Path) -> None:
    """As when DVC was killed before it recorded the result; killed again, the stage still has it."""
    forget_finished("train", ["train", "vary@a", "vary@b"])
    found = Resume(STATES / "train", "a" * 64, "train").load()
    assert found and found.read_text() == "train"
    forget_finished("vary@a", ["train", "vary@a", "vary@b"])
    assert states(project) == {"train", "vary-a", "vary-b"}


def test_the_states_of_a_stage_that_is_no_more_go(project: Path) -> None:
    forget_finished("train", ["train", "vary@b"])
    assert states(project) == {"train", "vary-b"}


def test_without_a_folder_nothing_is_written_or_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = Resume()
    state.only_under("anything")
    keep(state, "state")
    with pytest.raises(KeyboardInterrupt), state.keeping(lambda path: None, lambda: "step 1"):
        raise KeyboardInterrupt
    state.done()
    assert state.load() is None
    assert state.kept is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["soon", "-1", "nan", "inf", ""])
def test_an_interval_that_is_no_number_of_seconds_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("SCRATCHLM_RESUME_SECONDS", value)
    with pytest.raises(UserError, match=f"SCRATCHLM_RESUME_SECONDS is '{value}', but only a number of seconds"):
        resume(tmp_path)
