"""Work on the files of a corpus, several at once, each by one thread."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from scratchlm.data.manifest import PinnedFile
from scratchlm.run.context import available_cores
from scratchlm.run.progress import Progress
from scratchlm.run.threads import Advance, in_threads
from scratchlm.run.workers import requested_workers

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
    """Yield the number and the result of each file in `todo` as they are ready; see run/threads.py.

    Threads suffice: tiktoken, decompression, hashes and Parquet release the interpreter's lock.
    """
    n_bytes, n_todo = (sum(each.file.size_bytes for each in some) for some in (files, todo))
    with Progress(title, n_bytes, n_bytes - n_todo, "B") as bar:
        n_threads = requested_workers(available_cores())
        yield from in_threads(n_threads, work, {each.number: each for each in todo}, bar.update)
