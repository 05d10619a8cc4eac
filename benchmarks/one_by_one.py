"""Measure contenders one after the other, each with a GPU to itself, within a time limit.

All processes prepare together; then each in turn warms up, is measured and ends, so that its memory is free for the
next. Where all fit the GPU together, they can warm up together too, which takes less time where there are many cores.
A contender that fails or takes too long is named, and the others are measured all the same.
"""

import itertools
import multiprocessing
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, NamedTuple

from tqdm import tqdm

from benchmarks.harness import Row, environment, peak_memory_bytes, results, run_once, set_up_contender

RESERVED_SECONDS = 15  # for each contender that has not had its turn yet
ENDED = "its process ended: out of time, or out of memory"


class Limits(NamedTuple):
    """seconds: for the whole row. repeats: rounds that count."""

    seconds: float
    repeats: int
    threads: int


class Preparation(NamedTuple):
    """Of each contender its process, and the futures of what it does before it is measured."""

    pools: Mapping[str, ProcessPoolExecutor]
    begun: Mapping[str, list[Future[Any]]]

    def wait(self) -> None:
        wait([future for futures in self.begun.values() for future in futures])


class Failed(Exception):
    """A contender's failure in words."""


def measure_prepared(name: str, preparation: Preparation, limits: Limits) -> dict[str, Any]:
    """Of each contender its rounds, as `combined` takes them, or in `failed` the reason why there are none."""
    preparation.wait()  # none prepares while another is measured
    deadline, rounds, failed = time.monotonic() + limits.seconds, {}, {}
    pools = preparation.pools
    with tqdm(total=len(pools), desc=name, unit="contender") as bar:
        for n_left, contender in zip(reversed(range(len(pools))), pools, strict=True):
            seconds = deadline - time.monotonic() - n_left * RESERVED_SECONDS
            try:
                for future in preparation.begun[contender]:
                    awaited(future)
                rounds[contender] = measured(pools[contender], seconds, limits.repeats)
            except Failed as error:
                failed[contender] = str(error)
                print(f"{name}: {contender} failed: {error}", file=sys.stderr, flush=True)
            pools[contender].shutdown()
            bar.update()
    return {"rounds": rounds, "failed": failed}


@contextmanager
def prepared(row: Row, limits: Limits, warm: bool) -> Iterator[Preparation]:
    """A process for each contender, which begins to prepare and, if `warm`, to warm up. One that hangs is ended."""
    spawn, threads = multiprocessing.get_context("spawn"), str(limits.threads)
    alarm = max(1, int(limits.seconds - RESERVED_SECONDS * len(row.contenders)))
    pools = {contender: ProcessPoolExecutor(1, spawn) for contender in row.contenders}
    try:
        with environment(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads):
            for pool in pools.values():
                pool.submit(signal.alarm, alarm)
            begun = {
                contender: [pools[contender].submit(in_words, set_up_contender, work, limits.threads)]
                for contender, work in row.contenders.items()
            }
            for contender, pool in pools.items() if warm else ():
                begun[contender].append(pool.submit(in_words, run_once))
            for pool in pools.values():
                pool.submit(signal.alarm, 0)
        yield Preparation(pools, begun)
    finally:
        for pool in pools.values():
            pool.shutdown()


def awaited(future: Any) -> Any:
    """A future's result. Raises Failed with the reason in one line."""
    if error := future.exception():
        raise Failed(ENDED) if isinstance(error, BrokenProcessPool) else error
    return future.result()


def in_words(function: Callable[..., Any], *arguments: Any) -> Any:
    """In a contender's process: what function(*arguments) returns. Raises Failed, since not every error can be pickled.

    Prints the traceback.
    """
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001 (contenders raise anything)
        traceback.print_exc()
        lines = str(error).strip().splitlines()[:2] or ["no message"]  # the compiler's errors begin with its own name
        raise Failed(f"{type(error).__name__} ({' '.join(lines)})") from None


def measured(pool: ProcessPoolExecutor, seconds: float, repeats: int) -> dict[str, Any]:
    """Units and seconds of each round, and the peak of memory.

    The first call warms up. It counts only if there is no time for another one.
    """
    start = time.monotonic()
    done = []

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return awaited(pool.submit(in_words, function, *arguments))
        except BrokenProcessPool:  # between two calls
            raise Failed(ENDED) from None

    call(signal.alarm, max(1, int(seconds)))
    while len(done) <= repeats:
        done.append(call(run_once))
        if time.monotonic() - start + done[-1][1] > seconds:
            break
    peak = call(peak_memory_bytes)
    warm = done[1:] or done
    return {
        "units": [units for units, _ in warm],
        "seconds": [duration for _, duration in warm],
        "warmed_up": len(done) > 1,
        "peak_memory_bytes": peak,
    }


def combined(row: Row, rounds: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """harness.results of what was measured. A ratio is one of each round of ours and each of a baseline's.

    Without rounds of the first contender, which is ours, there are no ratios.
    """
    there = {name: work for name, work in row.contenders.items() if name in rounds}
    units, seconds, peaks = (
        {name: rounds[name][key] for name in there} for key in ("units", "seconds", "peak_memory_bytes")
    )
    found = results(row._replace(contenders=there), units, seconds, peaks, itertools.product) if there else {}
    if (ours := next(iter(row.contenders))) not in there:
        found |= {"ours": ours, "ratios": {}}
    return found
