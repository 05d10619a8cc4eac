"""The other processes of a stage: each runs the stage's own command up to the shared work, and writes nothing."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from scratchlm.run.environment import requested
from scratchlm.run.errors import UserError
from scratchlm.run.files import temporary_folder
from scratchlm.run.watchdog import die_with_parent

COUNT_VARIABLE = "SCRATCHLM_WORKERS"  # how many processes there are changes no result, so it is no parameter
PLACE_VARIABLE = "SCRATCHLM_WORKER_PLACE"  # set for a worker: rank, number of processes, the stage's process id, folder
MOST_WORKERS = 64
PATIENCE_SECONDS = 5.0  # for a killed process to be reported as ended
POLL_SECONDS = 0.02


class Place(NamedTuple):
    """The place of a process among the `n_workers` of a stage. The stage's own process has rank 0."""

    rank: int
    n_workers: int
    folder: Path


def requested_workers(otherwise: int = 1) -> int:
    """The number of workers that the user wants, or else another. Raises UserError if it is no integer from 1 to 64."""
    return requested(COUNT_VARIABLE, MOST_WORKERS, otherwise)


def worker_place() -> Place | None:
    """The place of this process if it is a worker, None if it is a stage's own."""
    if not (given := os.environ.get(PLACE_VARIABLE)):
        return None
    rank, n_workers, _, folder = given.split(":", 3)
    return Place(int(rank), int(n_workers), Path(folder))


def end_with_stage() -> None:
    """Exit this worker when the stage's own process ends, also if that has happened already."""
    die_with_parent()
    if os.getppid() != int(os.environ[PLACE_VARIABLE].split(":", 3)[2]):
        os._exit(1)


class WorkerProcesses:
    """The workers of ranks 1 to n_workers - 1. Each shows its errors in the file `<rank>.err` of `folder`."""

    def __init__(self, n_workers: int, folder: Path) -> None:
        self.folder, self.n_workers = folder, n_workers
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start them all. They ignore Ctrl-C, which is for the stage's own process; that one ends them."""
        for rank in range(1, self.n_workers):
            place = f"{rank}:{self.n_workers}:{os.getpid()}:{self.folder}"
            with (self.folder / f"{rank}.err").open("wb") as errors:
                self._processes[rank] = subprocess.Popen(
                    [sys.executable, *sys.orig_argv[1:]], env=os.environ | {PLACE_VARIABLE: place},
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True,
                )  # fmt: skip

    def wait_until_ready(self) -> None:
        """Wait until each has called `ready`. Raises UserError if one ends before."""
        while not all((self.folder / f"{rank}.ready").exists() for rank in self._processes):
            self.check()
            time.sleep(POLL_SECONDS)

    def check(self) -> None:
        """Raises UserError if one has ended."""
        if any(process.poll() is not None for process in self._processes.values()):
            raise self.lost("")

    def lost(self, fault: str) -> UserError:
        """The error for a worker that has ended, or if none has, for the fault of the connection to them."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (ended := {rank: code for rank, p in self._processes.items() if (code := p.poll())}):
            if time.monotonic() > deadline:
                return UserError(
                    f"a worker does not answer ({fault or 'it has ended'}); run this again to resume, or set "
                    f"{COUNT_VARIABLE} to 1"
                )
            time.sleep(POLL_SECONDS)
        rank, code = next(iter(ended.items()))
        lines = (self.folder / f"{rank}.err").read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no reason given")
        reason = f"killed by {signal.Signals(-code).name}" if code < 0 else last
        return UserError(
            f"worker {rank} of {self.n_workers} has ended ({reason}); run this again to resume, or lower "
            f"{COUNT_VARIABLE}"
        )

    def end(self) -> None:
        """Kill them: they hold nothing that is needed."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()


def ready(place: Place) -> None:
    """Let the stage's own process know that this worker can be connected to."""
    (place.folder / f"{place.rank}.ready").touch()


@contextmanager
def worker_processes(n_workers: int, beside: Path) -> Iterator[WorkerProcesses]:
    """Within the block, n_workers - 1 other processes run this one's command; their folder is `beside` a path."""
    with temporary_folder(beside) as folder:
        workers = WorkerProcesses(n_workers, folder.resolve())
        try:
            workers.start()
            yield workers
        finally:
            workers.end()
