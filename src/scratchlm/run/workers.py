"""The other processes of a stage: each runs the stage's own command up to the shared work, and writes no results.

They run on this machine or, with RAY_ADDRESS set, on the nodes of a Ray cluster. A process of its own then starts and
watches them (LAUNCHER), so Ray is imported by no stage.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

from scratchlm.run.environment import LONGEST_SECONDS, requested
from scratchlm.run.errors import UserError
from scratchlm.run.files import temporary_folder
from scratchlm.run.watchdog import die_with_parent

COUNT_VARIABLE = "SCRATCHLM_WORKERS"  # how many processes there are changes no result, so it is no parameter
PLACE_VARIABLE = "SCRATCHLM_WORKER_PLACE"  # set for a worker: its parent's process id, and its Place
TIMEOUT_VARIABLE = "SCRATCHLM_WORKER_SECONDS"
CLUSTER_VARIABLE = "RAY_ADDRESS"  # Ray's own
LAUNCHER = "scratchlm.cluster.launch"
MOST_WORKERS = 64
LOOPBACK = "127.0.0.1"  # no other machine can reach it
TIMEOUT_SECONDS = 1800.0  # for what one worker waits for another, such as an evaluation or a node that starts
ENDING_SECONDS = 5.0  # for a killed process to be reported as ended
POLL_SECONDS = 0.02
READY = b"ready\n"
SAID_WHY = 3  # the exit status of a launcher whose last line is a sentence for the user


class Place(NamedTuple):
    """The place of a process among the `n_workers` of a stage. The stage's own process has rank 0.

    threads: of its exact arithmetic. folder: which all processes see. store: the file by which they find each other, or
    in a cluster the host:port at which rank 0 accepts connections. address: of this machine, for the other processes.
    listener: the descriptor of the socket at host:port, for rank 0.
    """

    rank: int
    n_workers: int
    threads: int
    folder: str
    store: str
    address: str
    listener: int = -1


def requested_workers(default: int = 1) -> int:
    """Return the number of workers that the user wants, `default` if it is not set. Raises UserError unless 1 to 64."""
    return requested(COUNT_VARIABLE, MOST_WORKERS, default)


def limited_workers(n_most: int, reason: str, say: Callable[[str], None]) -> int:
    """The number of workers that the user wants, but at most n_most. Says the reason if they are fewer."""
    wanted = requested_workers()
    if n_most < wanted:
        say(f"{COUNT_VARIABLE} is {wanted}, but {reason}")
    return min(wanted, n_most)


def timeout_seconds() -> float:
    """The seconds that a worker waits for another. Raises UserError unless they are 1 to LONGEST_SECONDS."""
    return requested(TIMEOUT_VARIABLE, LONGEST_SECONDS, TIMEOUT_SECONDS)


def worker_place() -> Place | None:
    """The place of this process if it is a worker, None if it is a stage's own."""
    given = os.environ.get(PLACE_VARIABLE)
    return Place(*json.loads(given)[1:]) if given else None


def end_with_stage() -> None:
    """Exit this worker when the process that started it ends, also if that has happened already."""
    die_with_parent()
    if os.getppid() != json.loads(os.environ[PLACE_VARIABLE])[0]:
        os._exit(1)


def ready() -> None:
    """Let the process that started this worker know that it can be connected to."""
    os.write(sys.stdout.fileno(), READY)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def ended(worker: str, code: int, errors: str) -> UserError:
    """The error for a worker that has ended with this exit status and these lines of errors."""
    reason = f"killed by {signal.Signals(-code).name}" if code < 0 else _last_line(errors)
    return UserError(f"{worker} has ended ({reason}); run this again to resume, or lower {COUNT_VARIABLE}")


class WorkerProcesses:
    """The workers of ranks 1 to n_workers - 1 on this machine. Each shows its errors in `<rank>.err` of `folder`.

    threads: of this process, those of exact arithmetic if they are `shared`.
    """

    def __init__(self, n_workers: int, threads: int, shared: bool, folder: Path) -> None:
        self.n_workers, self.folder = n_workers, folder
        self._threads, self._shared = threads, shared
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start them all. They ignore Ctrl-C, which is for the stage's own process; that one ends them."""
        for rank in range(1, self.n_workers):
            self._start(rank, [*self.place(rank)], [], subprocess.PIPE)

    def wait_until_ready(self) -> Place:
        """Wait until each has called `ready`; return rank 0's place. Raises UserError if one ends before."""
        for process in self._processes.values():
            assert process.stdout
            if READY not in process.stdout:  # reads its lines until then
                raise self.lost("")
        return self.place(0)

    def check(self) -> None:
        """Raises UserError if one has ended."""
        if any(process.poll() is not None for process in self._processes.values()):
            raise self.lost("")

    def place(self, rank: int) -> Place:
        """The place of a worker on this machine."""
        threads = max(1, self._threads // self.n_workers) if self._shared else self._threads
        return Place(rank, self.n_workers, threads, str(self.folder), str(self.folder / "store"), LOOPBACK)

    def when_one_ends(self, act: Callable[[], None]) -> None:
        """Call `act` in another thread when one has ended."""

        def wait(process: subprocess.Popen[bytes]) -> None:
            process.wait()
            act()

        for process in self._processes.values():
            Thread(target=wait, args=[process], daemon=True).start()

    def lost(self, fault: str) -> UserError:
        """The error for a worker that has ended, or if none has, for the fault of the connection to them."""
        deadline = time.monotonic() + ENDING_SECONDS
        while not (codes := {rank: code for rank, p in self._processes.items() if (code := p.poll())}):
            if time.monotonic() > deadline:
                return UserError(
                    f"a worker does not answer ({fault or 'it has ended'}); run this again to resume, or set "
                    f"{COUNT_VARIABLE} to 1"
                )
            time.sleep(POLL_SECONDS)
        rank, code = next(iter(codes.items()))
        errors = (self.folder / f"{rank}.err").read_text(encoding="utf-8", errors="replace")
        return self._ended(rank, code, errors)

    def end(self) -> None:
        """Kill them: they hold nothing that is needed."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            with process:  # waits, and closes its output
                pass

    def _start(self, rank: int, place: list[Any], before: list[str], output: int, *kept: int) -> None:
        """Start this process's own command, as the arguments of a command `before` it if there is one."""
        variables = os.environ | {PLACE_VARIABLE: json.dumps([os.getpid(), *place])}
        with (self.folder / f"{rank}.err").open("wb") as errors:
            self._processes[rank] = subprocess.Popen(
                [*before, sys.executable, *sys.orig_argv[1:]], env=variables, stdin=subprocess.DEVNULL,
                stdout=output, stderr=errors, start_new_session=True, pass_fds=kept,
            )  # fmt: skip

    def _ended(self, rank: int, code: int, errors: str) -> UserError:
        return ended(f"worker {rank} of {self.n_workers}", code, errors)


class ClusterWorkers(WorkerProcesses):
    """The workers on the nodes of a Ray cluster. The process here is their launcher; when it ends, Ray ends them."""

    def start(self) -> None:
        """Start the launcher. What it says to the user goes to standard error."""
        self._channel, child_end = socket.socketpair()
        with child_end:
            words = [self.n_workers, 0 if self._shared else self._threads, self.folder, child_end.fileno()]
            before = [sys.executable, "-m", LAUNCHER, *map(str, words)]
            self._start(0, [], before, sys.stderr.fileno(), child_end.fileno())

    def place(self, rank: int) -> Place:
        """The place of this process until the launcher names another, with all its threads."""
        return super().place(rank)._replace(threads=self._threads)

    def wait_until_ready(self) -> Place:
        """As for workers on this machine; the launcher has opened the socket at which they connect."""
        message, listeners, _, _ = socket.recv_fds(self._channel, 1024, 1)
        if not listeners:
            raise self.lost("")
        return Place(*json.loads(message))._replace(listener=listeners[0])

    def end(self) -> None:
        """As for workers on this machine, and close the connection to the launcher."""
        super().end()
        self._channel.close()

    def _ended(self, rank: int, code: int, errors: str) -> UserError:
        if code == SAID_WHY:
            return UserError(_last_line(errors))
        if code < 0:
            return ended("the launcher of the workers", code, errors)
        reason = re.sub(r"^\[.*?\] \S+ ", "", _last_line(errors)).partition(". ")[0]  # Ray's has a time and a place
        return UserError(
            f"Ray has ended the workers ({reason}); run this again to resume, with a cluster whose head runs or with "
            f"{CLUSTER_VARIABLE} unset"
        )


@contextmanager
def worker_processes(n_workers: int, threads: int, shared: bool, beside: Path) -> Iterator[WorkerProcesses]:
    """Within the block, n_workers - 1 other processes run this one's command; their folder is `beside` a path.

    threads, shared: see WorkerProcesses. Raises UserError if the user's variables are wrong.
    """
    timeout_seconds()
    kind = ClusterWorkers if os.environ.get(CLUSTER_VARIABLE) else WorkerProcesses
    with temporary_folder(beside) as folder:
        workers = kind(n_workers, threads, shared, folder.resolve())
        try:
            workers.start()
            yield workers
        finally:
            workers.end()


def _last_line(errors: str) -> str:
    return next((line.strip() for line in reversed(errors.split("\n")) if line.strip()), "no reason given")
