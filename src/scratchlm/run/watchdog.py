"""Leave nothing running or broken when DVC or a stage is killed.

DVC rewrites dvc.lock and .dvc/tmp/rwlock in place: if it is killed meanwhile, the next `dvc repro` cannot read them. So
the first stage of a `dvc repro` starts this module as a process of its own, which waits until that DVC has exited and
repairs the two files. It imports little, because it waits for hours. Until a first stage has started there is no
watchdog: `make repro` therefore calls `scratchlm repair` first.
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
RUNNING_FILE = Path(".dvc/tmp/rwlock")  # DVC lists here which of its processes writes which path
LOCK_COPY, LOCK_DAMAGED = Path(".scratchlm/dvc.lock"), Path(".scratchlm/dvc.lock.damaged")
CONFLICT = (b"<<<<<<< ", b">>>>>>> ")  # begin lines where git could not merge
WATCHDOG_NOTE = Path(".scratchlm/watchdog")  # locked by the running watchdog
TIMEOUT_SECONDS = 10.0  # for a killed process to disappear, for a file to be complete
POLL_SECONDS = 0.05
WRITING_SECONDS = 0.2  # about as long as DVC takes to write dvc.lock
PR_SET_PDEATHSIG = 1


def stay_below_dvc() -> psutil.Process:
    """Exit this process when the DVC that started it exits; return that DVC's process.

    Raises UserError if it has exited already: then none of the parent processes is listed as running.
    """
    die_with_parent()
    running, parents = _running_dvcs(), psutil.Process().parents()
    dvc = next((process for process in parents if process.pid in running), None)
    if dvc is None:
        raise UserError("the parent `dvc` process has exited; run `dvc repro` again")
    if dvc.pid != os.getppid():  # a shell is between the two
        threading.Thread(target=_end_with, args=[dvc], daemon=True).start()
    return dvc


def die_with_parent() -> None:
    """Exit this process when its parent exits."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_end_with, args=[psutil.Process(os.getppid())], daemon=True).start()


@contextmanager
def only_process(lock: Path, stage: str) -> Iterator[None]:
    """Within the block no other process runs the stage in this workspace.

    Raises UserError if another one holds the lock for longer than a killed process needs to disappear.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not _locked(file.fileno()):
            if time.monotonic() > deadline:
                raise UserError(f"another process runs {stage} in this workspace; wait for it, or stop it")
            time.sleep(POLL_SECONDS)
        yield


def watch_lock_file(dvc: psutil.Process) -> None:
    """Copy dvc.lock, which is complete while a stage runs, and start a watchdog for `dvc` unless one is running."""
    if not LOCK_FILE.exists():
        return
    _copy(LOCK_FILE, LOCK_COPY)
    with WATCHDOG_NOTE.open("a") as note:
        if not _locked(note.fileno()):
            return  # one is running
    subprocess.Popen(
        [sys.executable, "-m", __name__, str(dvc.pid)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,  # a signal to DVC's process group must not end it
    )  # fmt: skip


def repair() -> list[str]:
    """Make the two files readable again if a killed DVC left them broken; return what was done, in sentences.

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
    else:
        done.append(f"{LOCK_FILE} cannot be read; `git checkout -- {LOCK_FILE}` restores the committed one")
    return done


def main(pid: str) -> None:
    """Wait until the process `pid` has exited, then repair what it left."""
    with WATCHDOG_NOTE.open("a") as note:
        if _locked(note.fileno()):
            with suppress(psutil.NoSuchProcess):
                _wait_for_end(psutil.Process(int(pid)))
            with suppress(UserError):  # a watchdog has no output
                repair()


def _end_with(process: psutil.Process) -> None:
    _wait_for_end(process)
    os._exit(1)


def _wait_for_end(process: psutil.Process) -> None:
    """`psutil.Process.wait()` blocks on a zombie until its parent collects it, so poll instead."""
    with suppress(psutil.NoSuchProcess):
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(POLL_SECONDS)


def _running_dvcs() -> set[int]:
    """The process ids that DVC lists beside the paths that it is writing."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
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
    except (yaml.YAMLError, Invalid, ValueError, RecursionError):
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
