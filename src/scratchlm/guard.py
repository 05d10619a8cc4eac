"""Nothing is left running or broken when DVC or a stage is killed.

DVC rewrites dvc.lock in place after each stage: killed while it does so, it leaves a file that the next
`dvc repro` cannot read. So the first stage of a `dvc repro` starts this module as a process of its own,
which waits for the end of that DVC and puts back the copy made at the last stage's start if it is needed.
"""

import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

LOCK_FILE = Path("dvc.lock")
LOCK_COPY = Path(".scratchlm/dvc.lock")
GUARD_NOTE = Path(".scratchlm/guard")  # locked by the guard at work
SHELLS = {"sh", "bash", "dash", "zsh", "fish", "ksh", "busybox"}
PATIENCE_SECONDS = 10.0  # for a killed stage's process to be gone
WRITING_SECONDS = 0.3  # longer than DVC takes to write dvc.lock
PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """End this process when the one that started it ends: killed, it cannot take its children along."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def alone(lock: Path, stage: str) -> Iterator[None]:
    """Within the block this is the only process that runs the stage in this workspace.

    Raises ValueError if another one holds the lock for longer than a killed one takes to be gone.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not _locked(file.fileno()):
            if time.monotonic() > deadline:
                raise ValueError(f"another process runs {stage} in this workspace; only one may, wait for it or end it")
            time.sleep(0.1)
        yield


def dvc_above() -> psutil.Process:
    """The DVC that started this stage; some shells stay between the two.

    Raises ValueError if it has ended already: then whoever adopts orphans is above, and no signal will come.
    """
    for process in psutil.Process().parents():
        try:
            name = Path(process.exe()).name
        except psutil.Error:  # another user's, or just gone
            break
        if name.startswith(("python", "dvc")):
            return process
        if name not in SHELLS:
            break
    raise ValueError("the DVC that started this stage has ended, and nothing goes on without it; run `dvc repro` again")


def guard_lock_file(dvc: psutil.Process) -> None:
    """Copy dvc.lock, which is whole while a stage runs, and see that a guard waits for the end of this DVC."""
    from scratchlm.artifacts import whole_file  # not above: the guard waits for hours and should stay small

    if not LOCK_FILE.exists():
        return
    with whole_file(LOCK_COPY) as temporary:
        shutil.copyfile(LOCK_FILE, temporary)
    with GUARD_NOTE.open("a") as note:
        if not _locked(note.fileno()):
            return  # it is at work already
    subprocess.Popen(
        [sys.executable, "-m", __name__, str(dvc.pid)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,  # a signal to DVC's process group must not end it
    )  # fmt: skip


def restore_lock_file() -> None:
    """Put the copy back if DVC cannot read dvc.lock, or if it lacks stages that the copy has."""
    from scratchlm.artifacts import whole_file

    if _stages(LOCK_COPY) <= _stages(LOCK_FILE):
        return
    before = _changed_at(LOCK_FILE)
    time.sleep(WRITING_SECONDS)
    if _changed_at(LOCK_FILE) == before:  # else another DVC is at work on it
        with whole_file(LOCK_FILE) as temporary:
            shutil.copyfile(LOCK_COPY, temporary)


def main(pid: str) -> None:
    """Wait until the process `pid` is gone, then see to dvc.lock."""
    with GUARD_NOTE.open("a") as note:
        if _locked(note.fileno()):
            with suppress(psutil.NoSuchProcess):
                psutil.Process(int(pid)).wait()
            restore_lock_file()


def _stages(lock: Path) -> set[str]:
    """The stages that DVC finds in a lock file; none if it would refuse the file."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    from scratchlm.params import load_yaml

    try:
        return set(COMPILED_LOCKFILE_SCHEMA(load_yaml(lock))["stages"])
    except (ValueError, Invalid):  # missing, not YAML, or not what DVC writes
        return set()


def _changed_at(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1])
