"""Transfers that resume: the part of a file that has arrived, and the rest of it from a path or an http(s) URL."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import requests
from tqdm import tqdm

from scratchlm.data.catalogue import File
from scratchlm.run.files import sha256_of

ATTEMPTS = 4  # per address, for failures that may be temporary
WAIT_SECONDS = 1.0  # before the second attempt; doubled before each later one
TIMEOUT_SECONDS = (10, 60)  # to connect, and between two packets
UNPINNED_LIMIT_BYTES = 1 << 24  # for files without a pinned size: archives and GPT-2's small files
CHUNK_BYTES = 1 << 16


class Refused(Exception):
    """This address does not provide the file; another one may. The message says why in a few words."""


class Interrupted(Exception):
    """This attempt failed; the same address may provide the file a moment later."""


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
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(WAIT_SECONDS * 2 ** (attempt - 1))
            offset, etag = self._resume_point(address)
            if offset and offset == self.file.size_bytes:
                return True
            try:
                opened = _open_path(address) if is_path(address) else _open_url(address, offset, etag)
                with opened as (start, etag, chunks):
                    resumed |= start > 0
                    if start == 0:
                        self.discard()
                        self._note.write_text(f"{address}\n{etag}")
                    self.append(chunks)
                return resumed
            except Interrupted as interruption:
                reason = str(interruption)
        raise Refused(f"{reason}, {ATTEMPTS} attempts")

    def append(self, chunks: Iterator[bytes]) -> None:
        """Write chunks, up to the first byte too many (which content_fault reports)."""
        size, limit = self.file.size_bytes, _size_limit(self.file)
        with self.path.open("ab") as out:
            with tqdm(
                desc=self.file.name, total=size, initial=out.tell(), unit="B", unit_scale=True, leave=False,
                disable=None,  # no bar if standard error is not a terminal
            ) as bar:  # fmt: skip
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
        noted, _, etag = self._note.read_text().partition("\n") if self._note.exists() else [""] * 3
        etag = etag if noted == address else ""
        return (self.path.stat().st_size if self.path.exists() and (self.file.sha256 or etag) else 0), etag


def content_fault(path: Path, file: File) -> str | None:
    """Return in a few words how the content at `path` differs from the catalogue, or None if it does not."""
    size, limit = path.stat().st_size, _size_limit(file)
    if size > limit:
        return f"more than {limit} bytes"
    if file.size_bytes is not None and size < file.size_bytes:
        return f"only {size} bytes"
    if file.sha256 is not None and (found := sha256_of(path)) != file.sha256:
        return f"sha256 {found}"
    return None


def is_path(address: str) -> bool:
    return "://" not in address


def _size_limit(file: File) -> int:
    return UNPINNED_LIMIT_BYTES if file.size_bytes is None else file.size_bytes


_Opened = tuple[int, str, Iterator[bytes]]  # position in the file of the first byte, a strong ETag or "", the bytes


@contextmanager
def _open_path(address: str) -> Iterator[_Opened]:
    try:
        stream = Path(address).open("rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise Refused((error.strerror or str(error)).lower()) from error
    with stream:
        yield 0, "", iter(lambda: stream.read(CHUNK_BYTES), b"")


@contextmanager
def _open_url(url: str, offset: int, etag: str) -> Iterator[_Opened]:
    """GET the bytes from `offset`, or all of them if the server does not support or refuses the range."""
    headers = {"Accept-Encoding": "identity"}  # in a compressed transfer, offsets would not be the file's
    ranged = {"Range": f"bytes={offset}-"} if offset else {}
    if offset and etag:
        ranged["If-Range"] = etag
    with ExitStack() as stack:
        response = stack.enter_context(_get(url, headers | ranged))
        as_asked = response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")
        if offset and (response.status_code == 416 or (response.status_code == 206 and not as_asked)):
            offset = 0
            response = stack.enter_context(_get(url, headers))
        status = response.status_code
        if status == 429 or status >= 500:
            raise Interrupted(f"HTTP {status}")
        if status != 200 and not (offset and status == 206):
            raise Refused(f"HTTP {status}")
        if url.startswith("https:") and not response.url.startswith("https:"):
            raise Refused("redirected to plain http")
        etag = response.headers.get("ETag", "")
        yield offset if status == 206 else 0, "" if etag.startswith("W/") else etag, _body(response)


@contextmanager
def _translated() -> Iterator[None]:
    """Turn exceptions of requests into Interrupted, if they may be temporary, or Refused."""
    try:
        yield
    except requests.exceptions.SSLError as error:
        raise Refused("TLS certificate or handshake refused") from error
    except requests.Timeout as error:
        raise Interrupted("timed out") from error
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
        cause: BaseException | None = error
        while cause and not getattr(cause, "strerror", None):
            cause = cause.__cause__ or cause.__context__
        raise Interrupted(str(getattr(cause, "strerror", "connection lost")).lower()) from error
    except OSError as error:  # any other RequestException, or a missing CA bundle
        raise Refused(str(error)) from error


@_translated()
def _get(url: str, headers: dict[str, str]) -> requests.Response:
    return requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS)


def _body(response: requests.Response) -> Iterator[bytes]:
    with _translated():
        yield from response.iter_content(CHUNK_BYTES)
