"""Work on the files of a corpus, several at once, each by one thread."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Event
from typing import NamedTuple, TypeVar

from scratchlm.data.manifest import PinnedFile, in_turns
from scratchlm.run.context import available_cores
from scratchlm.run.progress import Progress
from scratchlm.run.workers import requested_workers

Advance = Callable[[int], None]
Result = TypeVar("Result")


class NumberedFile(NamedTuple):
    """A file, and its number in the manifest, from 0."""

    number: int
    file: PinnedFile

    @property
    def name(self) -> str:
        """Names in the order of the manifest."""
        return f"{self.number:06d}"


def in_parallel(
    title: str,
    files: Sequence[NumberedFile],
    todo: Sequence[NumberedFile],
    work: Callable[[NumberedFile, Advance], Result],
) -> Iterator[tuple[int, Result]]:
    """Yield the number and the result of each file in `todo` as they are ready; an error ends all work.

    work: called with a file and a function that takes the number of bytes of each read. Threads suffice: tiktoken,
    decompression, hashes and Parquet release the interpreter's lock.
    """
    stopped = Event()
    n_bytes, n_todo = (sum(each.file.size_bytes for each in some) for some in (files, todo))
    with Progress(title, n_bytes, n_bytes - n_todo, "B") as bar:
        advance = in_turns(bar.update, stopped)
        with ThreadPoolExecutor(requested_workers(otherwise=available_cores())) as pool:
            waiting = {pool.submit(work, each, advance): each.number for each in todo}
            try:
                for future in as_completed(waiting):
                    yield waiting[future], future.result()
            except BaseException:
                stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
