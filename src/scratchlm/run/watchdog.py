"""Nothing is left running or broken when DVC or a stage is killed.

DVC rewrites dvc.lock (and .dvc/tmp/rwlock) in place: killed while it does so, it leaves a file that the next
`dvc repro` cannot read. So the first stage of a `dvc repro` starts this module as a process of its own, which
waits for the end of that DVC and mends what is broken. It imports little: it waits for hours.
Before a first stage has run nobody guards: `make repro` mends before it calls DVC, `scratchlm mend` does by hand.
"""

import ctypes
import fcntl
import json
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

from scratchlm.run.errors import UserError

LOCK_FILE = Path("dvc.lock")
RUNNING_FILE = Path(".dvc/tmp/rwlock")  # where DVC notes which of its processes works on which path
LOCK_COPY, LOCK_DAMAGED = Path(".scratchlm/dvc.lock"), Path(".scratchlm/dvc.lock.damaged")
CONFLICT = b"<<<<<<< "  # begins a line where git could not merge
GUARD_NOTE = Path(".scratchlm/guard")  # locked by the guard at work
PATIENCE_SECONDS = 10.0  # for a killed stage's process to be gone, for a file to be whole
POLL_SECONDS = 0.05
WRITING_SECONDS = 0.2  # about as long as DVC takes to write dvc.lock
PR_SET_PDEATHSIG = 1


def stay_below_dvc() -> psutil.Process:
    """End this process when the DVC that started it ends, which cannot take its stages along; return that DVC.

    Raises UserError if it has ended already: then no process above is one that DVC notes as running.
    """
    die_with_parent()
    running, parents = _running_dvcs(), psutil.Process().parents()
    dvc = next((process for process in parents if process.pid in running), None)
    if dvc is None:
        raise UserError("the DVC that started this stage has ended, and nothing goes on without it; run dvc repro")
    if dvc.pid != os.getppid():  # a shell stays between the two
        threading.Thread(target=_end_with, args=[dvc], daemon=True).start()
    return dvc


def die_with_parent() -> None:
    """End this process when the one that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        return
    threading.Thread(target=_end_with, args=[psutil.Process(os.getppid())], daemon=True).start()


@contextmanager
def alone(lock: Path, stage: str) -> Iterator[None]:
    """Within the block this is the only process that runs the stage in this workspace.

    Raises UserError if another one holds the lock for longer than a killed one takes to be gone.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not _locked(file.fileno()):
            if time.monotonic() > deadline:
                raise UserError(f"another process runs {stage} in this workspace; only one may, wait for it or end it")
            time.sleep(POLL_SECONDS)
        yield


def guard_lock_file(dvc: psutil.Process) -> None:
    """Copy dvc.lock, which is whole while a stage runs, and see that a guard waits for the end of `dvc`."""
    if not LOCK_FILE.exists():
        return
    _copy(LOCK_FILE, LOCK_COPY)
    with GUARD_NOTE.open("a") as note:
        if not _locked(note.fileno()):
            return  # it is at work already
    subprocess.Popen(
        [sys.executable, "-m", __name__, str(dvc.pid)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,  # a signal to DVC's process group must not end it
    )  # fmt: skip


def mend() -> list[str]:
    """Make what a killed DVC left readable again: its note of what runs, and dvc.lock. Return what was done.

    dvc.lock becomes the copy again if DVC would refuse it; the refused file is moved to LOCK_DAMAGED. If it only lacks
    stages, it stays: it may be another branch's, and DVC takes the results of stages that it lacks from its cache.
    Raises UserError if dvc.lock holds a merge conflict: only a person can say which side is right.
    """
    lock, running = _content(LOCK_FILE), _content(RUNNING_FILE)
    refused = LOCK_FILE.exists() and not _dvc_can_read(lock)
    done: list[str] = []
    time.sleep(WRITING_SECONDS)  # a file that changes meanwhile is being written by another DVC
    if _is_broken(running) and _content(RUNNING_FILE) == running:
        if running:
            done.append(f"{RUNNING_FILE} could not be read and is removed; DVC writes a new one")
        RUNNING_FILE.unlink(missing_ok=True)
    if not refused or _content(LOCK_FILE) != lock:
        return done
    if any(line.startswith(CONFLICT) for line in lock.splitlines()):
        raise UserError(
            f"{LOCK_FILE} holds a merge conflict; keep one side with `git checkout --ours {LOCK_FILE}` or --theirs, "
            "then run `dvc repro` and commit the result"
        )
    if LOCK_COPY.exists():
        _copy(LOCK_FILE, LOCK_DAMAGED)
        _copy(LOCK_COPY, LOCK_FILE)
        done.append(f"{LOCK_FILE} could not be read: it is restored, and what it held is in {LOCK_DAMAGED}")
    return done


def main(pid: str) -> None:
    """Wait until the process `pid` is gone, then mend what it left."""
    with GUARD_NOTE.open("a") as note:
        if _locked(note.fileno()):
            if psutil.pid_exists(int(pid)):
                _wait_for_end(psutil.Process(int(pid)))
            with suppress(UserError):  # nobody reads a guard's output
                mend()


def _end_with(process: psutil.Process) -> None:
    _wait_for_end(process)
    os._exit(1)


def _wait_for_end(process: psutil.Process) -> None:
    """Not psutil's own wait: it waits for a zombie until somebody buries it."""
    try:
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(POLL_SECONDS)
    except psutil.NoSuchProcess:
        return


def _running_dvcs() -> set[int]:
    """The process numbers that DVC notes beside the paths that it is writing."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while _is_broken(content := _content(RUNNING_FILE)) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)  # another DVC is writing the file
    return set() if _is_broken(content) else {entry["pid"] for entry in json.loads(content)["write"].values()}


def _is_broken(content: bytes) -> bool:
    try:
        return not isinstance(json.loads(content or b"?"), dict)
    except ValueError:
        return True


def _dvc_can_read(lock: bytes) -> bool:
    import yaml
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(lock))
    except (yaml.YAMLError, Invalid):
        return False
    return True


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _copy(source: Path, target: Path) -> None:
    temporary = LOCK_COPY.with_name(f"{LOCK_COPY.name}.{os.getpid()}.tmp")  # stages of two DVCs may start at once
    temporary.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, temporary)
    temporary.replace(target)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1])
