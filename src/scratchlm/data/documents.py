"""The documents of a corpus, read from files as verified streams, and the split that each document belongs to."""

import hashlib
import io
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, count
from typing import IO, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from scratchlm.data.addresses import Reader
from scratchlm.data.byte_pairs import END_OF_TEXT
from scratchlm.data.manifest import PinnedFile
from scratchlm.data.tables import Located, checked_rows, json_lines, parquet_rows
from scratchlm.run.context import available_cores
from scratchlm.run.display import without_secrets
from scratchlm.run.errors import UserError
from scratchlm.run.progress import Progress
from scratchlm.run.threads import Advance, in_threads
from scratchlm.run.workers import requested_workers

CODECS = {"gz": "gzip", "zst": "zstd"}
BLOCK_CHARACTERS = 1 << 20
MOST_CHARACTERS = 1 << 26  # of a document, which is in memory as a whole
MOST_LINE_CHARACTERS = 6 * MOST_CHARACTERS  # of JSON, which may have six for one of a document
REMEDY = "pin the files again with --column NAME"
PIN_AGAIN = "restore the file, or pin it as it is now with scratchlm sources pin"

Result = TypeVar("Result")


def documents(file: PinnedFile, advance: Callable[[int], None]) -> Iterator[str]:
    """Yield each document that is not empty: a row of a table, or of a text what `<|endoftext|>` divides.

    advance: called with the number of bytes of each read. The generator ends only after the whole file has been
    verified, so a caller that has seen its end has seen what is pinned.
    Raises UserError, which names the file, if it is not as pinned or cannot be read.
    """
    from scratchlm.data.sources import at_nearest  # imports requests, which takes a moment

    name = without_secrets(file.address)
    with at_nearest(file.address, lambda near: Reader(near, advance)) as reader:
        if reader.size_bytes not in (None, file.size_bytes):
            raise UserError(f"{name} has {reader.size_bytes:,} bytes, but {file.size_bytes:,} are pinned; {PIN_AGAIN}")
        try:
            for text in _texts(file, reader, name):
                for document in text.split(END_OF_TEXT) if END_OF_TEXT in text else (text,):
                    if len(document) > MOST_CHARACTERS:
                        raise too_long(name)
                    if document:
                        yield document
        except (UnicodeDecodeError, pa.ArrowException, OSError) as error:
            _verify(file, reader, name)
            fault = " ".join(str(error).split())
            raise UserError(
                f"{name} cannot be read as {file.format} ({fault}); correct it, then pin it again"
            ) from None
        except UserError:
            _verify(file, reader, name)
            raise
        _verify(file, reader, name)


def check_readable(files: Sequence[PinnedFile]) -> None:
    """Raises UserError if no file of some format has a document, or if one cannot be read up to its first."""
    for first in {file.format: file for file in reversed(files)}.values():
        same = (file for file in files if file.format == first.format)
        if all(next(documents(file, lambda _: None), None) is None for file in same):
            raise UserError(
                f"{without_secrets(first.address)} has no text, nor has any other {first.format} file; leave these out"
            )


def is_of_train(document: bytes, train_fraction: float) -> bool:
    """Whether a document, as UTF-8, belongs to train rather than val: a function of its text alone."""
    return digest(document) < train_fraction * 2.0**64


def digest(document: bytes) -> int:
    """The first 64 bits of the SHA-256 of a document."""
    return int.from_bytes(hashlib.sha256(document).digest()[:8])


def too_long(name: str) -> UserError:
    """The error for a document that does not fit the memory of a worker."""
    return UserError(f"{name} has a document of more than {MOST_CHARACTERS:,} characters; divide it by {END_OF_TEXT}")


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
) -> Iterator[tuple[NumberedFile, Result]]:
    """Yield each file in `todo` and its result as they are ready; see run/threads.py.

    Threads suffice: tiktoken, decompression, hashes and Parquet release the interpreter's lock.
    """
    n_bytes, n_todo = (sum(each.file.size_bytes for each in some) for some in (files, todo))
    with Progress(title, n_bytes, n_bytes - n_todo, "B") as bar:
        n_threads = requested_workers(available_cores())
        yield from in_threads(n_threads, work, todo, bar.update)


def _verify(file: PinnedFile, reader: Reader, name: str) -> None:
    for _ in reader.blocks():
        pass
    found = reader.digest.hexdigest()
    if reader.n_bytes != file.size_bytes or found != file.sha256:
        raise UserError(
            f"{name} has {reader.n_bytes:,} bytes with sha256 {found}, but {file.size_bytes:,} bytes with "
            f"{file.sha256} are pinned; {PIN_AGAIN}"
        )


def _texts(file: PinnedFile, reader: Reader, name: str) -> Iterator[str]:
    """The texts of a file, each of one or several documents."""
    kind, _, compression = file.format.partition(".")
    columns = {"text": file.column or ""}
    if kind == "parquet":
        with _copied(reader, name) as copy, pq.ParquetFile(copy, pre_buffer=False) as table:
            yield from _column(name, parquet_rows(name, table, columns, REMEDY), columns)
        return
    stream = pa.CompressedInputStream(pa.PythonFile(reader, "r"), CODECS[compression]) if compression else reader
    with io.TextIOWrapper(io.BufferedReader(stream, BLOCK_CHARACTERS), encoding="utf-8-sig", newline="") as text:
        if kind == "txt":
            yield from _divided(iter(lambda: text.read(BLOCK_CHARACTERS), ""), name)
        else:
            yield from _column(name, json_lines(name, _lines(text, name)), columns)


def _column(name: str, located: Iterator[Located], columns: Mapping[str, str]) -> Iterator[str]:
    """The text of each row. There may be none, as in parts of what a cluster has written."""
    if first := next(located, None):
        yield from (row["text"] for row in checked_rows(name, chain([first], located), columns, REMEDY))


@contextmanager
def _copied(reader: Reader, name: str) -> Iterator[IO[bytes]]:
    """A temporary copy of a file whose end is read before its beginning; no kill leaves it."""
    with ExitStack() as stack:
        try:
            copy = stack.enter_context(tempfile.TemporaryFile())
            copy.writelines(reader.blocks())
            copy.flush()
        except OSError as error:
            raise UserError(
                f"{name} cannot be copied into the folder for temporary files ({str(error.strerror).lower()}); free "
                "some space, or set TMPDIR to another folder"
            ) from None
        yield copy


def _lines(text: io.TextIOWrapper, name: str) -> Iterator[str]:
    """The lines of a text. Raises UserError for one that does not fit the memory of a worker, such as a whole array."""
    for number in count(1):
        if not (line := text.readline(MOST_LINE_CHARACTERS)):
            return
        if len(line) == MOST_LINE_CHARACTERS:
            raise UserError(
                f"{name}: line {number} has {MOST_LINE_CHARACTERS:,} characters or more; write one object per line"
            )
        yield line


def _divided(blocks: Iterable[str], name: str) -> Iterator[str]:
    """The documents of a text that comes in blocks."""
    pending = ""
    for block in blocks:
        pending += block
        *whole, pending = pending.split(END_OF_TEXT)
        yield from whole
        if len(pending) > MOST_CHARACTERS:
            raise too_long(name)
    yield pending
