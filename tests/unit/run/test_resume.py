import errno
import hashlib
import os
from pathlib import Path

import pyarrow as pa
import pytest

from scratchlm.run.errors import UserError
from scratchlm.run.files import read_table
from scratchlm.run.resume import CHECKPOINTS, Checkpoint, delete_finished

SCHEMA = pa.schema([("id", pa.string()), ("score", pa.float64()), ("label", pa.int8())])


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save whenever a checkpoint could be saved."""
    monkeypatch.setenv("SCRATCHLM_RESUME_SECONDS", "0")
    monkeypatch.setattr("scratchlm.run.resume.PAUSE_PER_COST", 0)


def checkpoint(folder: Path, cache_key: str = "a" * 64) -> Checkpoint:
    return Checkpoint(folder / "states", cache_key, "train", folder / "log.jsonl")


def save(state: Checkpoint, text: str, position: str = "step 3 of 9") -> None:
    with state.saving(lambda path: path.write_text(text) and None, lambda: position) as save_if_due:
        save_if_due()


def saved(folder: Path) -> list[Path]:
    return sorted((folder / "states").glob("*"))


def test_a_checkpoint_is_found_by_the_next_process_of_the_same_run(tmp_path: Path) -> None:
    save(checkpoint(tmp_path), "state")
    found = checkpoint(tmp_path).load()
    assert found is not None and found.read_text() == "state"


def test_only_the_newest_checkpoint_stays(tmp_path: Path) -> None:
    state = checkpoint(tmp_path)
    save(state, "old")
    save(state, "new")
    (path,) = saved(tmp_path)
    assert path.read_text() == "new"
    assert state.position == "step 3 of 9"


def test_saving_the_same_state_twice_keeps_it(tmp_path: Path) -> None:
    state = checkpoint(tmp_path)
    save(state, "same")
    save(state, "same")
    assert [path.read_text() for path in saved(tmp_path)] == ["same"]


def test_the_checkpoint_of_another_run_is_ignored_with_a_sentence_and_stays_for_that_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(checkpoint(tmp_path), "state")
    assert checkpoint(tmp_path, "b" * 64).load() is None
    assert capsys.readouterr().err == (
        "train: ignoring the checkpoint of an unfinished run: its inputs, parameters or code were different\n"
    )
    found = checkpoint(tmp_path).load()
    assert found and found.read_text() == "state"


def test_a_condition_that_dvc_does_not_compare_tells_runs_apart(tmp_path: Path) -> None:
    for condition, expected in (("llama 1", None), ("llama 2", None), ("llama 2", "state")):
        state = checkpoint(tmp_path)
        state.require(condition)
        found = state.load()
        assert (found and found.read_text()) == expected
        save(state, "state")


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty"])
def test_a_damaged_checkpoint_is_noticed_with_a_sentence_and_not_used(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(checkpoint(tmp_path), "a whole state")
    (path,) = saved(tmp_path)
    content = path.read_bytes()
    path.write_bytes(
        {"truncated": content[:-1], "one bit": bytes([content[0] ^ 1]) + content[1:], "empty": b""}[damage]
    )
    assert checkpoint(tmp_path).load() is None
    assert saved(tmp_path) == []
    assert capsys.readouterr().err == f"train: ignoring the checkpoint {path}: it is damaged\n"


def test_an_older_sound_checkpoint_replaces_a_damaged_newer_one(tmp_path: Path) -> None:
    save(checkpoint(tmp_path), "older")
    (older,) = saved(tmp_path)
    newer = older.with_name(f"{'a' * 64}-{'0' * 64}")
    newer.write_text("half")
    os.utime(newer, ns=(2**62, 2**62))
    assert checkpoint(tmp_path).load() == older
    assert saved(tmp_path) == [older]


def test_of_two_sound_checkpoints_the_newer_one_is_loaded_whatever_their_names(tmp_path: Path) -> None:
    """As when a kill came before the older one was deleted."""
    for newer in ("one", "other"):
        for text in ("one", "other"):
            path = tmp_path / "states" / f"{'a' * 64}-{hashlib.sha256(text.encode()).hexdigest()}"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            os.utime(path, (1_000, 2_000 if text == newer else 1_000))
        found = checkpoint(tmp_path).load()
        assert found and found.read_text() == newer
        assert saved(tmp_path) == [found]


def test_what_a_kill_left_of_a_save_is_ignored_silently(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(checkpoint(tmp_path), "state")
    (tmp_path / "states" / "unfinished").write_text("sta")
    found = checkpoint(tmp_path).load()
    assert found and found.read_text() == "state"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError])
def test_an_interrupt_and_an_error_for_the_user_save_a_checkpoint(tmp_path: Path, error: type[BaseException]) -> None:
    state = checkpoint(tmp_path)
    with pytest.raises(error), state.saving(lambda path: path.write_text("state") and None, lambda: "step 5 of 9"):
        raise error
    assert [path.read_text() for path in saved(tmp_path)] == ["state"]
    assert state.position == "step 5 of 9"


def test_an_inconsistent_state_is_not_saved(tmp_path: Path) -> None:
    save(checkpoint(tmp_path), "whole")
    state = checkpoint(tmp_path)
    with (
        pytest.raises(KeyboardInterrupt),
        state.saving(lambda path: path.write_text("torn") and None, lambda: None) as save_if_due,
    ):
        save_if_due()
        raise KeyboardInterrupt
    assert [path.read_text() for path in saved(tmp_path)] == ["whole"]


def test_a_save_that_fails_leaves_the_one_before_and_hides_no_other_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(checkpoint(tmp_path), "before")

    def fail(path: Path) -> None:
        path.write_text("half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"), checkpoint(tmp_path).saving(fail, lambda: "step 6") as save_if_due:
        save_if_due()
    with pytest.raises(UserError, match="diverged"), checkpoint(tmp_path).saving(fail, lambda: "step 6"):
        raise UserError("the training diverged; lower learning_rate")
    sentence = f"{tmp_path}/states/unfinished: no space left on device; free some space, then run this again"
    assert capsys.readouterr().err == f"train: no checkpoint was saved: {sentence}\n"
    found = checkpoint(tmp_path).load()
    assert found and found.read_text() == "before"


def test_saving_takes_no_more_than_two_percent_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that the test turns: each state costs 1 s, a step 0.5 s, at most 2 % may go into states."""
    now = [0.0]
    monkeypatch.setattr("scratchlm.run.resume.time.perf_counter", lambda: now[0])
    monkeypatch.setattr("scratchlm.run.resume.PAUSE_PER_COST", 50)
    written = []

    def write(path: Path) -> None:
        now[0] += 1.0
        written.append(now[0])
        path.write_text(str(now[0]))

    state = checkpoint(tmp_path)
    with state.saving(write, lambda: "here", size_bytes=300_000_000) as save_if_due:  # one second, by assumption
        for _ in range(1000):
            now[0] += 0.5
            save_if_due()
    assert len(written) == 10
    assert written[0] == 51.0
    assert len(written) <= 0.02 * now[0]


def test_saves_are_no_closer_than_the_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("scratchlm.run.resume.time.perf_counter", lambda: now[0])
    monkeypatch.setenv("SCRATCHLM_RESUME_SECONDS", "30")
    written: list[float] = []
    state = checkpoint(tmp_path)
    with state.saving(lambda path: written.append(now[0]) or path.write_text("x") and None, lambda: "x") as save_if_due:
        for _ in range(100):
            now[0] += 1
            save_if_due()
    assert written == [30.0, 60.0, 90.0]


def test_rows_come_back_exactly_and_the_run_says_where_it_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": "a", "score": 0.1 + 0.2, "label": 1}, {"id": "b", "score": None, "label": 0}]
    with checkpoint(tmp_path).saving_rows(rows, SCHEMA) as save_if_due:
        save_if_due()
    assert checkpoint(tmp_path).load_rows(5) == rows
    assert capsys.readouterr().err == "train: resuming from row 2 of 5\n"
    assert (tmp_path / "log.jsonl").read_text() == '{"resumed_from": "row 2 of 5"}\n'
    (path,) = saved(tmp_path)
    assert read_table(path, SCHEMA) == rows


def test_nothing_saved_is_nothing_to_resume(tmp_path: Path) -> None:
    assert checkpoint(tmp_path).load_rows(5) == []
    assert not (tmp_path / "log.jsonl").exists()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the states of three stages; `train` is done."""
    monkeypatch.chdir(tmp_path)
    for name in ("train", "vary-a", "vary-b"):
        state = Checkpoint(CHECKPOINTS / name, "a" * 64, name)
        save(state, name)
        if name == "train":
            state.finish()
    return tmp_path


def states(folder: Path) -> set[str]:
    return {path.name for path in (folder / CHECKPOINTS).iterdir()}


def test_the_checkpoint_of_a_finished_stage_is_deleted_when_the_next_stage_starts(project: Path) -> None:
    delete_finished("vary@a", ["train", "vary@a", "vary@b"])
    assert states(project) == {"vary-a", "vary-b"}


def test_a_stage_that_finished_and_must_run_again_resumes(project: Path) -> None:
    """As when DVC was killed before it recorded the result; killed again, the stage still has it."""
    delete_finished("train", ["train", "vary@a", "vary@b"])
    found = Checkpoint(CHECKPOINTS / "train", "a" * 64, "train").load()
    assert found and found.read_text() == "train"
    delete_finished("vary@a", ["train", "vary@a", "vary@b"])
    assert states(project) == {"train", "vary-a", "vary-b"}


def test_the_checkpoint_of_a_removed_stage_is_deleted(project: Path) -> None:
    delete_finished("train", ["train", "vary@b"])
    assert states(project) == {"train", "vary-b"}


def test_only_what_a_checkpoint_wrote_is_deleted(project: Path, tmp_path: Path) -> None:
    mine = CHECKPOINTS / "train" / "notes-of-mine.txt"
    mine.write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (CHECKPOINTS / "linked").symlink_to(tmp_path / "elsewhere")
    (CHECKPOINTS / "file").write_text("mine")
    delete_finished("vary@a", ["vary@a", "vary@b"])
    assert [path.name for path in mine.parent.iterdir()] == [mine.name]
    assert states(project) == {"train", "vary-a", "vary-b", "linked", "file"}
    assert (tmp_path / "elsewhere").exists()


def test_without_a_folder_nothing_is_written_or_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = Checkpoint()
    state.require("anything")
    save(state, "state")
    with pytest.raises(KeyboardInterrupt), state.saving(lambda path: None, lambda: "step 1"):
        raise KeyboardInterrupt
    state.finish()
    assert state.load() is None
    assert state.position is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["soon", "-1", "nan", "inf", "1e7", ""])
def test_an_interval_that_is_no_number_of_seconds_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("SCRATCHLM_RESUME_SECONDS", value)
    with pytest.raises(UserError, match=f"SCRATCHLM_RESUME_SECONDS is '{value}', but must be a number from 0"):
        checkpoint(tmp_path)
