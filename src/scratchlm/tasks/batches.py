"""Work in batches, divided among several processes. Each batch is computed by one process.

The processes share only a folder, which may be on a network file system: the process that creates `<number>.taken`
computes that batch, and a worker writes its result to `<number>.json`. The stage's own process takes batches, too, and
yields all results in order. So no bit depends on the number of processes, in any precision.
"""

import json
import signal
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from scratchlm.arithmetic.mode import shared_threads
from scratchlm.run.context import Run
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_json, write_json, write_text
from scratchlm.run.workers import POLL_SECONDS, Place, WorkerProcesses, limited_workers, ready, worker_place
from scratchlm.training.workers import other_processes

BEGIN = "begin.json"  # what the stage's own process tells the workers


class Batches(NamedTuple):
    """numbers: of the batches to compute. compute: returns a batch's result, JSON values, for its number.

    digest: a hash of everything that the results depend on.
    """

    numbers: range
    compute: Callable[[int], Any]
    digest: Callable[[], str]


def results(batches: Batches, run: Run, cut_by: str) -> Generator[Any, None, None]:
    """Yield the result of each batch, in their order. Close this to end the other processes.

    cut_by: the parameter that cuts the work, with its value. In a worker, compute batches until the stage ends.
    Raises UserError if a worker has ended.
    """
    if place := worker_place():
        _serve(batches, place)
    if (n := _n_processes(run, len(batches.numbers), cut_by)) == 1:
        yield from map(batches.compute, batches.numbers)
        return
    with other_processes(n, run) as processes, shared_threads(processes.place(0).threads):
        yield from _divided(batches, processes)


def _n_processes(run: Run, n_batches: int, cut_by: str) -> int:
    """How many processes compute. Says why if they are fewer than the user wants."""
    n_most = max(1, n_batches)
    reason = f"{cut_by} leaves work for no more than {n_most}; lower it to use more"
    if run.device != "cpu":
        n_most, reason = 1, "only work on the device cpu is divided; one process computes"
    return limited_workers(n_most, reason, run.say)


def _divided(batches: Batches, processes: WorkerProcesses) -> Iterator[Any]:
    """Yield the results. If a worker takes longer for a batch than this process ever did, compute it here, too."""
    write_json(processes.folder / BEGIN, {"first": batches.numbers.start, "digest": batches.digest()})
    free = (number for number in batches.numbers if _take(processes.folder, number))  # takes one each time it is asked
    own: dict[int, Any] = {}
    longest, since = 0.0, time.monotonic()
    for number in batches.numbers:
        path = _result(processes.folder, number)
        while number not in own and not path.exists():
            processes.check()
            taken = next(free, None)
            if taken is None and time.monotonic() < since + longest:
                time.sleep(POLL_SECONDS)
                continue
            start, taken = time.monotonic(), number if taken is None else taken
            own[taken] = batches.compute(taken)
            since = time.monotonic()
            longest = max(longest, since - start)
        yield own.pop(number) if number in own else read_json(path, object)


def _serve(batches: Batches, place: Place) -> NoReturn:
    """Compute batches in a worker, which the stage's own process ends.

    Raises UserError if the two have read different parameters or data.
    """
    ready()
    folder, digest = Path(place.folder), batches.digest()
    begin = folder / BEGIN
    while not begin.exists():
        time.sleep(POLL_SECONDS)
    given = read_json(begin)
    if given["digest"] != digest:
        raise UserError("it computes with other parameters, data or kernels than the stage's own process")
    with shared_threads(place.threads):
        # From the file: a worker has not loaded the checkpoint, so it does not know which batches are done
        for number in range(given["first"], batches.numbers.stop):
            if _take(folder, number):
                write_text(_result(folder, number), json.dumps(batches.compute(number)))
    while True:
        signal.pause()


def _take(folder: Path, number: int) -> bool:
    """Whether this process is the first to ask for a batch."""
    try:
        (folder / f"{number}.taken").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _result(folder: Path, number: int) -> Path:
    return folder / f"{number}.json"
