"""Work on many items, several at once, each by one thread: an error ends all of it."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from threading import Event, Lock
from typing import TypeVar

SECONDS_BETWEEN_SIGNALS = 0.5  # a Ctrl-C that Python misses as it begins to wait is found after this
Advance = Callable[[int], None]
Item = TypeVar("Item")
Result = TypeVar("Result")


class Stopped(Exception):
    """Other work has failed, or the user has interrupted it."""


def in_threads(
    n_threads: int, work: Callable[[Item, Advance], Result], items: Iterable[Item], update: Advance
) -> Iterator[tuple[Item, Result]]:
    """Yield each item and its result as they are ready. Raises what `work` raises, once all work has ended.

    KeyboardInterrupt is raised at once, since work may wait for a server; `boundary` then ends the process.
    work: called with an item and a function that takes the number of bytes of each read, which raises Stopped once
    another item has failed. update: called with these numbers, by one thread at a time.
    """
    stopped, lock = Event(), Lock()

    def advance(n: int) -> None:
        if stopped.is_set():
            raise Stopped
        with lock:
            update(n)

    pool, interrupted = ThreadPoolExecutor(n_threads), False
    try:
        done: SimpleQueue[Future[Result]] = SimpleQueue()
        waiting = {pool.submit(work, item, advance): item for item in items}
        for future in waiting:
            future.add_done_callback(done.put)
        while waiting:
            try:
                future = done.get(timeout=SECONDS_BETWEEN_SIGNALS)
            except Empty:
                continue
            yield waiting.pop(future), future.result()
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        stopped.set()
        pool.shutdown(wait=not interrupted, cancel_futures=True)
