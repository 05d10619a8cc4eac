"""Transfers that resume: the part of a file that has arrived, and the rest of it from a path or an http(s) URL."""

import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests
import urllib3.exceptions
from tqdm import tqdm

from scratchlm.data.catalogue import File
from scratchlm.run.files import sha256_of

ATTEMPTS = 4  # per address, for failures that may be temporary
WAIT_SECONDS = 1.0  # before the second attempt; doubled before each later one
MOST_WAIT_SECONDS = 60.0  # that a server may ask for
TIMEOUT_SECONDS = (10, 60)  # to connect, and between two packets
LEAST_BYTES_PER_SECOND, RATE_SECONDS = 1000, 60.0  # on average over so long
MOST_REDIRECTS = 10
UNPINNED_LIMIT_BYTES = 1 << 24  # for files without a pinned size: archives and GPT-2's small files
PINNED_LIMIT_BYTES = 1 << 40  # for files with a hash and no size, which are one's own
CHUNK_BYTES = 1 << 16
INDEX_END = bytes.fromhex("57fb808b247547db")  # of a TensorFlow checkpoint's index, a table in LevelDB's format


class Refused(Exception):
    """This address does not provide the file; another one may. The message says why in a few words."""


class Interrupted(Exception):
    """This attempt failed; the same address may provide the file after `wait_seconds`."""

    def __init__(self, reason: str, wait_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


class Part:
    """The bytes of a file that have arrived, in `<file>.part`; `<file>.part.etag` notes where they came from."""

    def __init__(self, folder: Path, file: File) -> None:
        self.file, self.path = file, folder / f"{file.name}.part"
        self._note = folder / f"{file.name}.part.etag"

    def receive(self, address: str) -> bool:
        """Fetch the missing bytes from an address; return whether earlier bytes were kept.

        Raises Refused if the address does not provide them, or not within ATTEMPTS attempts.
        """
        resumed, wait = False, 0.0
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(max(wait, WAIT_SECONDS * 2 ** (attempt - 1)))
            offset, etag = self._resume_point(address)
            if offset and offset == self.file.size_bytes:
                return True
            try:
                opened = _open_path(address) if is_path(address) else _open_url(address, offset, etag)
                with opened as (start, etag, chunks):
                    resumed |= start > 0
                    if start == 0:
                        self.discard()
                        self._note.write_text(f"{_digest(address)}\n{etag}", encoding="utf-8")
                    self.append(_fast_enough(chunks))
                return resumed
            except Interrupted as interruption:
                reason, wait = str(interruption), interruption.wait_seconds
                if wait > MOST_WAIT_SECONDS:
                    raise Refused(f"{reason}, to be asked again in {wait:.0f} s") from None
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


def _fast_enough(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Pass chunks on. Raises Interrupted where fewer than LEAST_BYTES_PER_SECOND have come for RATE_SECONDS."""
    begin, received = time.monotonic(), 0
    for chunk in chunks:
        yield chunk
        received += len(chunk)
        seconds = time.monotonic() - begin
        if seconds >= RATE_SECONDS:
            if received < LEAST_BYTES_PER_SECOND * seconds:
                raise Interrupted(f"slower than {LEAST_BYTES_PER_SECOND} bytes a second")
            begin, received = time.monotonic(), 0


_Opened = tuple[int, str, Iterator[bytes]]  # position in the file of the first byte, a strong ETag or "", the bytes


@contextmanager
def _open_path(address: str) -> Iterator[_Opened]:
    with _reading():
        mode = Path(address).stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a folder fails below
            raise Refused("not a regular file")  # a pipe or a device: opening or reading it may never end
        stream = Path(address).open("rb")  # noqa: SIM115 - closed below
    with stream:
        yield 0, "", _blocks(stream.read)


def _blocks(read: Callable[[int], bytes]) -> Iterator[bytes]:
    with _reading():
        while block := read(CHUNK_BYTES):
            yield block


@contextmanager
def _reading() -> Iterator[None]:
    """Turn what the file system or the network refuses into Interrupted, if it may be temporary, or Refused."""
    try:
        yield
    except requests.exceptions.ProxyError as error:
        raise Interrupted(f"the proxy that the environment names: {_cause(error)}") from error
    except (requests.exceptions.SSLError, urllib3.exceptions.SSLError) as error:
        raise Refused("TLS certificate or handshake refused") from error
    except (requests.Timeout, urllib3.exceptions.ReadTimeoutError) as error:
        raise Interrupted("timed out") from error
    except (requests.ConnectionError, urllib3.exceptions.ProtocolError) as error:
        raise Interrupted(_cause(error)) from error
    except ValueError as error:
        raise Refused(f"the address, a proxy or .netrc is not valid: {error}") from error
    except (OSError, urllib3.exceptions.HTTPError) as error:  # any other one of requests, or a missing CA bundle
        raise Refused((getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()) from error


def _cause(error: BaseException) -> str:
    """The system's reason for an error, which other exceptions wrap."""
    cause: BaseException | None = error
    while cause and not getattr(cause, "strerror", None):
        cause = cause.__cause__ or cause.__context__
    return str(getattr(cause, "strerror", "connection lost")).lower()


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
            raise Interrupted(f"HTTP {status}", _retry_after(response.headers.get("Retry-After", "")))
        if status != 200 and not (offset and status == 206):
            raise Refused(f"HTTP {status}")
        etag = response.headers.get("ETag", "")
        received = _blocks(
            lambda size: response.raw.read1(size, decode_content=True)
        )  # what is there, not `size` bytes
        yield offset if status == 206 else 0, "" if etag.startswith("W/") else etag, received


class _Session(requests.Session):
    """Sees no redirects: requests reads their bodies, without a limit, even where it shall not follow them."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


def _get(url: str, headers: dict[str, str]) -> requests.Response:
    """GET, following redirects."""
    with _reading():
        for _ in range(MOST_REDIRECTS + 1):
            with _Session() as session:
                response = session.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS)
            location = requests.Session().get_redirect_target(response)
            if location is None:
                return response
            response.close()
            target = urljoin(url, location)
            if urlsplit(target).scheme not in ("http", "https"):
                raise Refused(f"redirected to {target}, which is not an http(s) URL")
            if url.startswith("https:") and not target.startswith("https:"):
                raise Refused("redirected to plain http")
            url = target
        raise Refused(f"more than {MOST_REDIRECTS} redirects")


def _retry_after(value: str) -> float:
    """The seconds that a Retry-After header asks to wait, given as such or as a date; 0 if it says nothing."""
    try:
        return float(value) if value.isdecimal() else (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):  # no date, or one without a zone
        return 0.0
