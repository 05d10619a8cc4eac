"""Transfers that resume: the part of a file that has arrived, and the rest of it from a path or an http(s) URL."""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scratchlm.data.catalogue import File
from scratchlm.data.web import CHUNK_BYTES, Opened, Refused, open_url, reading, with_retries
from scratchlm.run.files import sha256_of
from scratchlm.run.progress import Progress

UNPINNED_LIMIT_BYTES = 1 << 24  # for files without a pinned size: archives and GPT-2's small files
PINNED_LIMIT_BYTES = 1 << 40  # for files with a hash and no size, which are one's own
INDEX_END = bytes.fromhex("57fb808b247547db")  # of a TensorFlow checkpoint's index, a table in LevelDB's format


class Part:
    """The bytes of a file that have arrived, in `<file>.part`; `<file>.part.etag` notes where they came from."""

    def __init__(self, folder: Path, file: File) -> None:
        self.file, self.path = file, folder / f"{file.name}.part"
        self._note = folder / f"{file.name}.part.etag"

    def receive(self, address: str) -> bool:
        """Fetch the missing bytes from an address; return whether earlier bytes were kept.

        Raises Refused if the address does not provide them, or not within ATTEMPTS attempts.
        """
        resumed = False

        def attempt() -> None:
            nonlocal resumed
            offset, etag = self._resume_point(address)
            if offset and offset == self.file.size_bytes:
                resumed = True
                return
            with _open_path(address) if is_path(address) else open_url(address, offset, etag) as opened:
                resumed |= opened.start > 0
                if opened.start == 0:
                    self.discard()
                    self._note.write_text(f"{_digest(address)}\n{opened.etag}", encoding="utf-8")
                self.append(iter(lambda: opened.read(CHUNK_BYTES), b""))

        with_retries(attempt)
        return resumed

    def append(self, chunks: Iterator[bytes]) -> None:
        """Write chunks, up to the first byte too many (which content_fault reports)."""
        size, limit = self.file.size_bytes, _size_limit(self.file)
        with self.path.open("ab") as out:
            with Progress(self.file.name, size, out.tell(), "B") as bar:
                for chunk in chunks:
                    out.write(chunk)
                    bar.update(len(chunk))
                    if out.tell() > limit:
                        break
            out.flush()
            os.fsync(out.fileno())

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def _resume_point(self, address: str) -> tuple[int, str]:
        """Return how many bytes to keep, and their ETag if they came from this address.

        A hash finds bytes that do not belong together; without one, only bytes with an ETag are kept.
        """
        noted, etag = "", ""
        if self._note.exists():
            noted, _, etag = self._note.read_text(encoding="utf-8", errors="replace").partition("\n")
        etag = etag if noted == _digest(address) else ""
        return (self.path.stat().st_size if self.path.exists() and (self.file.sha256 or etag) else 0), etag


def content_fault(path: Path, file: File) -> str | None:
    """Return in a few words how the content at `path` differs from the catalogue, or None if it does not.

    Without a hash in the catalogue, the size is checked if it is known, and the format if the name tells it.
    """
    size, limit = path.stat().st_size, _size_limit(file)
    if size > limit:
        return f"more than {limit} bytes"
    if file.size_bytes is not None and size < file.size_bytes:
        return f"only {size} bytes"
    if file.sha256 is None:
        return _format_fault(path, file.name)
    found = sha256_of(path)
    return None if found == file.sha256 else f"sha256 {found}"


def is_path(address: str) -> bool:
    """Whether an address is a path on this machine."""
    return "://" not in address


def _format_fault(path: Path, name: str) -> str | None:
    if name.endswith(".json"):
        try:
            is_object = isinstance(json.loads(path.read_bytes()), dict)
        except (ValueError, RecursionError):
            is_object = False
        return None if is_object else "not a JSON object"
    with path.open("rb") as file:
        beginning = file.read(64)
        file.seek(max(0, path.stat().st_size - len(INDEX_END)))
        end = file.read()
    if name.endswith(".index") and end != INDEX_END:
        return "not the index of a TensorFlow checkpoint"
    return "a web page" if beginning.lstrip()[:1] == b"<" else None


def _size_limit(file: File) -> int:
    if file.size_bytes is None:
        return UNPINNED_LIMIT_BYTES if file.sha256 is None else PINNED_LIMIT_BYTES
    return file.size_bytes


def _digest(address: str) -> str:
    """What is noted of an address, which may hold a password."""
    return hashlib.sha256(os.fsencode(address)).hexdigest()


@contextmanager
def _open_path(address: str) -> Iterator[Opened]:
    with reading():
        mode = Path(address).stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a folder fails below
            raise Refused("not a regular file")  # a pipe or a device: opening or reading it may never end
        stream = Path(address).open("rb")  # noqa: SIM115 - closed below
    with stream:
        yield Opened(0, "", None, reading()(stream.read), may_be_cut=False)
