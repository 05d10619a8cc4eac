"""Files on web servers: follow redirects, retry temporary failures, resume lost connections."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

import requests
import urllib3.exceptions

from scratchlm.run.display import without_secrets
from scratchlm.run.errors import UserError

ATTEMPTS = 4  # per address, for failures that may be temporary
WAIT_SECONDS = 1.0  # before the second attempt; doubled before each later one
MOST_WAIT_SECONDS = 60.0  # that a server may ask for
TIMEOUT_SECONDS = (10, 60)  # to connect, and between two packets
LEAST_BYTES_PER_SECOND, RATE_SECONDS = 1000, 60.0  # the least average rate, and the time waited over which it counts
MOST_REDIRECTS = 10
CHUNK_BYTES = 1 << 16


class Refused(Exception):
    """This address does not provide the file; another one may. The message says why in a few words."""


class Interrupted(Exception):
    """This attempt failed; the same address may provide the file after `wait_seconds`."""

    def __init__(self, reason: str, wait_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


class Opened(NamedTuple):
    """An open file. start: position of the first byte that `read` returns. etag: a strong one, or "".

    size: of the whole file in bytes, None if it is not known. read: return at most n bytes, none at the end.
    may_be_cut: whether a lost connection looks like the end of the file, because the server sends neither a length nor
    chunks (RFC 9112, section 6.3).
    """

    start: int
    etag: str
    size: int | None
    read: Callable[[int], bytes]
    may_be_cut: bool


class WebFile:
    """A file at an http(s) URL, read once from its start: by one request, and one more after each lost connection.

    size: in bytes, None if the server does not say. may_be_cut: as in Opened, for any of the requests. Opening and
    reading raise UserError if the server refuses, or fails ATTEMPTS times in a row.
    """

    def __init__(self, url: str) -> None:
        self._url, self._position, self._etag = url, 0, ""
        self.size: int | None = None
        self.may_be_cut = False
        self._opened = ExitStack()
        self._read: Callable[[int], bytes] | None = None
        self._retried(self._open)

    def read(self, n_bytes: int) -> bytes:
        """Return at most `n_bytes` of the next bytes, none at the end.

        Only at the end are they fewer than both `n_bytes` and CHUNK_BYTES. With less, a server that breaks off after
        each byte would have ATTEMPTS for each.
        """
        found = bytearray()

        def attempt() -> None:
            while len(found) < min(n_bytes, CHUNK_BYTES) and (block := self._next(n_bytes - len(found))):
                found.extend(block)

        self._retried(attempt)
        return bytes(found)

    def close(self) -> None:
        self._read = None
        self._opened.close()

    def _next(self, n_bytes: int) -> bytes:
        if self._read is None:
            self._open()
        assert self._read
        try:
            block = self._read(n_bytes)
            if not block and self._position < (self.size or 0):
                raise Interrupted("connection lost")
        except Interrupted:
            self.close()
            raise
        self._position += len(block)
        return block

    def _open(self) -> None:
        self.close()
        opening = open_url(self._url, self._position, self._etag)
        start, etag, size, read, may_be_cut = self._opened.enter_context(opening)
        if self._position:
            if (None not in (size, self.size) and size != self.size) or (start == 0 and etag != self._etag):
                raise Refused("it changed while it was read")
            position = start
            while position < self._position:  # skip what a server without ranges sends again
                if not (block := read(min(CHUNK_BYTES, self._position - position))):
                    raise Interrupted("connection lost")
                position += len(block)
        self._etag, self.size, self._read = etag, size or self.size, read
        self.may_be_cut |= may_be_cut and self.size is None

    def _retried(self, attempt: Callable[[], None]) -> None:
        try:
            with_retries(attempt)
        except Refused as reason:
            name, fault = without_secrets(self._url), without_secrets(str(reason))
            raise UserError(f"{name}: {fault}; correct the address, or run this again later") from None


def with_retries(attempt: Callable[[], None]) -> None:
    """Call `attempt` until it raises no Interrupted, with growing waits.

    Raises Refused after ATTEMPTS calls, or if a server asks for a wait of over MOST_WAIT_SECONDS.
    """
    wait = 0.0
    for number in range(ATTEMPTS):
        if number:
            time.sleep(max(wait, WAIT_SECONDS * 2 ** (number - 1)))
        try:
            return attempt()
        except Interrupted as interruption:
            reason, wait = str(interruption), interruption.wait_seconds
            if wait > MOST_WAIT_SECONDS:
                raise Refused(f"{reason}, to be asked again in {wait:.0f} s") from None
    raise Refused(f"{reason}, {ATTEMPTS} attempts")


@contextmanager
def reading() -> Iterator[None]:
    """Turn errors of the file system and the network into Interrupted, if they may be temporary, or Refused."""
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
def open_url(url: str, offset: int, etag: str) -> Iterator[Opened]:
    """GET the bytes from `offset`, or all of them if the server does not support or refuses the range.

    etag: of the bytes before `offset`, or "". Raises Interrupted or Refused.
    """
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

        @reading()
        def read(n_bytes: int) -> bytes:  # read1: what has arrived, without waiting for n_bytes
            return response.raw.read1(n_bytes, decode_content=True)

        start = offset if status == 206 else 0
        etag = "" if etag.startswith("W/") else etag
        may_be_cut = not response.raw.chunked and response.raw.length_remaining is None
        yield Opened(start, etag, _whole_size(response.headers, start), _fast_enough(read), may_be_cut)


def _fast_enough(read: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """Return `read`, raising Interrupted if it takes RATE_SECONDS at fewer than LEAST_BYTES_PER_SECOND."""
    waited, received = 0.0, 0

    def read_in_time(n_bytes: int) -> bytes:
        nonlocal waited, received
        start = time.monotonic()
        block = read(n_bytes)
        waited, received = waited + time.monotonic() - start, received + len(block)
        if waited >= RATE_SECONDS:
            if received < LEAST_BYTES_PER_SECOND * waited:
                raise Interrupted(f"slower than {LEAST_BYTES_PER_SECOND} bytes a second")
            waited, received = 0.0, 0
        return block

    return read_in_time


def _whole_size(headers: Mapping[str, str], start: int) -> int | None:
    """The size of the whole file in bytes, from a response that begins at `start`; None if the server does not say."""
    length = headers.get("Content-Length", "")
    return start + int(length) if length.isdecimal() and "Content-Encoding" not in headers else None


class _Session(requests.Session):
    """Follow no redirects: requests would read their bodies, without a limit, even with allow_redirects=False."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


def _get(url: str, headers: dict[str, str]) -> requests.Response:
    """GET, following redirects."""
    with reading():
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
