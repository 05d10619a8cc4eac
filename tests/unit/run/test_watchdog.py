import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from scratchlm.run import watchdog
from scratchlm.run.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[3]
LOCK = "schema: '2.0'\nstages:\n  a:\n    cmd: x\n  b:\n    cmd: y\n    deps:\n    - path: z\n"


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.lock").write_text(LOCK)
    return tmp_path


DVC_STAND_IN = """
import json, os, pathlib, subprocess, sys
note = pathlib.Path(".dvc/tmp/rwlock")
note.parent.mkdir(parents=True)
note.write_text(json.dumps({"read": {}, "write": {"data/models": {"pid": os.getpid(), "cmd": "dvc repro"}}}))
child = subprocess.Popen(sys.argv[1:])
print(child.pid, flush=True)
child.wait()
"""
STAGE = """
import time
from scratchlm.run.watchdog import watch_lock_file, stay_below_dvc
watch_lock_file(stay_below_dvc())
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def dvc_with_stage(workspace: Path) -> tuple[psutil.Process, psutil.Process]:
    """A process that stands for DVC and one below it that stands for a stage, with a watchdog."""
    return start_dvc([sys.executable, "-c", STAGE])


def start_dvc(command: list[str]) -> tuple[psutil.Process, psutil.Process]:
    process = subprocess.Popen([sys.executable, "-c", DVC_STAND_IN, *command], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    stage = psutil.Process(int(process.stdout.readline()))
    assert process.stdout.readline() == "ready\n"
    wait_for(lambda: watchdogs(process.pid) != [])
    return psutil.Process(process.pid), stage


def watchdogs(pid: int) -> list[psutil.Process]:
    command = ["-m", "scratchlm.run.watchdog", str(pid)]
    return [p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [])[1:] == command]


BROKEN = {
    "empty": "",
    "cut within a line": LOCK[: LOCK.rindex("md: y")],
    "cut behind a key": LOCK[: LOCK.rindex("    - ")],
}
READABLE = {"cut between stages": LOCK[: LOCK.index("  b:")], "longer": LOCK + "  c:\n    cmd: z\n"}


@pytest.mark.long
@pytest.mark.parametrize("state", [*BROKEN, *READABLE])
def test_a_lock_file_that_dvc_would_refuse_is_put_back_after_its_end_and_only_such_a_one(
    dvc_with_stage: tuple[psutil.Process, psutil.Process], workspace: Path, state: str
) -> None:
    dvc, stage = dvc_with_stage
    (watcher,) = watchdogs(dvc.pid)
    (workspace / "dvc.lock").write_text((BROKEN | READABLE)[state])
    dvc.send_signal(signal.SIGKILL)
    dvc.wait()
    wait_for(lambda: gone(stage) and gone(watcher))
    assert (workspace / "dvc.lock").read_text() == READABLE.get(state, LOCK)


def test_one_watchdog_is_enough_for_one_dvc(
    dvc_with_stage: tuple[psutil.Process, psutil.Process], workspace: Path
) -> None:
    dvc, stage = dvc_with_stage
    wait_for(lambda: not free(workspace / watchdog.WATCHDOG_NOTE))
    watchdog.watch_lock_file(psutil.Process())
    assert len(watchdogs(dvc.pid)) == 1
    assert watchdogs(os.getpid()) == []
    dvc.kill()
    dvc.wait()
    wait_for(lambda: gone(stage))


def test_a_lock_file_that_is_being_written_is_left_alone(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = workspace / "dvc.lock"
    (workspace / watchdog.LOCK_COPY).parent.mkdir()
    (workspace / watchdog.LOCK_COPY).write_text("schema: '2.0'\n")
    lock.write_text("")
    monkeypatch.setattr(watchdog.time, "sleep", lambda seconds: lock.write_text(LOCK))
    watchdog.repair()
    assert lock.read_text() == LOCK


def test_a_note_of_what_runs_that_was_cut_goes(
    dvc_with_stage: tuple[psutil.Process, psutil.Process], workspace: Path
) -> None:
    dvc, stage = dvc_with_stage
    (watcher,) = watchdogs(dvc.pid)
    (workspace / watchdog.RUNNING_FILE).write_text('{"read": {}, "wri')
    dvc.send_signal(signal.SIGKILL)
    dvc.wait()
    wait_for(lambda: gone(stage) and gone(watcher))
    assert not (workspace / watchdog.RUNNING_FILE).exists()


def test_mending_by_hand_touches_nothing_that_is_whole(workspace: Path) -> None:
    running = workspace / watchdog.RUNNING_FILE
    running.parent.mkdir(parents=True)
    running.write_text("{}")
    watchdog.repair()
    assert (running.read_text(), (workspace / "dvc.lock").read_text()) == ("{}", LOCK)
    running.write_text("")
    watchdog.repair()
    assert not running.exists()


def test_a_merge_conflict_is_left_to_a_person(workspace: Path) -> None:
    lock = workspace / "dvc.lock"
    (workspace / watchdog.LOCK_COPY).parent.mkdir()
    (workspace / watchdog.LOCK_COPY).write_text("schema: '2.0'\n")
    conflict = "schema: '2.0'\n<<<<<<< HEAD\nstages: {}\n=======\nstages: null\n>>>>>>> a\n"
    lock.write_text(conflict)
    with pytest.raises(UserError, match=r"dvc.lock holds a merge conflict; keep one side with `git checkout --ours"):
        watchdog.repair()
    assert lock.read_text() == conflict


def test_what_is_replaced_is_kept_beside(workspace: Path) -> None:
    (workspace / watchdog.LOCK_COPY).parent.mkdir()
    (workspace / watchdog.LOCK_COPY).write_text(LOCK)
    (workspace / "dvc.lock").write_text(LOCK[:-3] + "{")
    (sentence,) = watchdog.repair()
    assert sentence.startswith("dvc.lock could not be read: it is restored")
    assert (workspace / "dvc.lock").read_text() == LOCK
    assert (workspace / watchdog.LOCK_DAMAGED).read_text() == LOCK[:-3] + "{"


def test_a_stage_dies_with_its_dvc_though_a_shell_stands_between(workspace: Path) -> None:
    dvc, shell = start_dvc(["sh", "-c", f"'{sys.executable}' -c '{STAGE}'; true"])
    (stage,) = shell.children()
    dvc.send_signal(signal.SIGKILL)
    dvc.wait()
    wait_for(lambda: gone(stage))


ORPHAN = """
import pathlib, sys, time
from scratchlm.run.errors import UserError
from scratchlm.run.watchdog import stay_below_dvc
while pathlib.Path(f"/proc/{sys.argv[1]}").exists():  # until the one that started it is gone
    time.sleep(0.02)
try:
    stay_below_dvc()
except UserError as error:
    pathlib.Path("said").write_text(str(error))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_stage_whose_dvc_ended_before_it_began_does_not_go_on(workspace: Path) -> None:
    running = workspace / watchdog.RUNNING_FILE
    running.parent.mkdir(parents=True)
    code = (
        "import json, os, pathlib, subprocess, sys;"
        "note = {'write': {'x': {'pid': os.getpid(), 'cmd': 'dvc'}}, 'read': {}};"
        f"pathlib.Path({str(running)!r}).write_text(json.dumps(note));"
        f"subprocess.Popen([sys.executable, '-c', {ORPHAN!r}, str(os.getpid())])"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    wait_for(lambda: (workspace / "said").exists() and (workspace / "said").read_text() != "")
    assert (workspace / "said").read_text().startswith("the parent `dvc` process has exited")


def free(lock: Path) -> bool:
    with lock.open("a") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_a_watchdog_imports_little() -> None:
    """It waits for hours beside the computation."""
    heavy = "(name for name in ('torch', 'pyarrow', 'yaml') if name in sys.modules)"
    code = f"import sys, scratchlm.run.watchdog; print(*{heavy})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_a_stage_runs_once_at_a_time_in_a_workspace(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "TIMEOUT_SECONDS", 0.2)
    lock = workspace / "logs" / "stage.jsonl"
    with (
        watchdog.only_process(lock, "pretrain"),
        pytest.raises(UserError, match="another process runs pretrain in this workspace; wait for it"),
        watchdog.only_process(lock, "pretrain"),
    ):
        raise AssertionError("two at once")
    with watchdog.only_process(lock, "pretrain"):
        pass


STAGE_THAT_HOLDS_ITS_LOCK = """
import pathlib, time
from scratchlm.run.watchdog import only_process
with only_process(pathlib.Path("log"), "s"):
    print("ready", flush=True)
    time.sleep(600)
"""


def test_a_killed_process_does_not_hold_its_stage(workspace: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", STAGE_THAT_HOLDS_ITS_LOCK], stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    with watchdog.only_process(workspace / "log", "s"):
        pass
    process.wait()


def test_a_lock_file_without_a_copy_is_left_and_said_so(workspace: Path) -> None:
    (workspace / "dvc.lock").write_text(BROKEN["cut within a line"])
    assert watchdog.repair() == ["dvc.lock cannot be read; `git checkout -- dvc.lock` restores the committed one"]
    assert (workspace / "dvc.lock").read_text() == BROKEN["cut within a line"]
