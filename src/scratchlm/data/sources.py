"""Verified download: from a mirror or a public address to a store, whole and hashed or not at all."""

import os
import shutil
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO
from urllib.parse import quote, urlsplit

import requests
from tqdm import tqdm

from scratchlm.data.catalogue import File, Source
from scratchlm.run.errors import UserError
from scratchlm.run.files import sha256_of

ATTEMPTS = 4  # per address, for failures that may pass by themselves
WAIT_SECONDS = 1.0  # before the second attempt; doubled before each one after it
TIMEOUT_SECONDS = (10, 60)  # to connect, and between two packets
UNPINNED_LIMIT_BYTES = 1 << 24  # where no size is pinned: the archive and GPT-2's small files
CHUNK_BYTES = 1 << 16
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class DownloadError(UserError):
    """A file could not be had; the message is one sentence, written for the user."""


def addresses(source: Source, file: File, mirror: str | None) -> list[str]:
    """Where to look for a file, in order: the mirror, then the public addresses.

    What lies in this repository is read from there only: the sample never needs a network.
    Raises DownloadError if the mirror is neither a directory nor an http(s) URL.
    """
    if not mirror or _in_repository(file):
        return list(file.addresses)
    leaf = file.archive or file.name
    if _is_path(mirror):
        first = str(Path(mirror).expanduser() / source.name / leaf)
    elif urlsplit(mirror).scheme in ("http", "https"):
        first = f"{mirror.rstrip('/')}/{source.name}/{quote(leaf)}"
    else:
        raise DownloadError(
            f"SCRATCHLM_MIRROR is {mirror!r}, but only a directory or an http(s) URL is allowed;"
            " set it to one of these, or unset it"
        )
    return [first, *file.addresses]


def fetch(source: Source, file: File, store: Path, mirror: str | None) -> Path:
    """The verified file, at `<store>/<source>/<file>`; brought there if it is not there yet.

    A file already there with the right content costs no request. An interrupted transfer leaves
    `<file>.part`, which the next call resumes; content that is not what the catalogue says leaves
    nothing. Where the catalogue pins no hash, only the size (if known) is checked.
    Raises DownloadError if no address gives the file, or if it cannot be written.
    """
    stored = store / source.name / file.name
    tried = []
    with _naming(stored):
        if stored.exists() and _fault(stored, file) is None:
            return stored
        stored.parent.mkdir(parents=True, exist_ok=True)
        for address in addresses(source, file, mirror):
            try:
                _obtain(address, file, stored)
                return stored
            except _Failed as reason:
                tried.append(f"{address} ({reason})")
    raise DownloadError(_sentence(source, file, tried))


def place(stored: Path, target: Path) -> None:
    """Make the stored file appear whole at target: a hard link, or a copy where links are refused.

    Raises DownloadError if target cannot be written.
    """
    temporary = target.with_name(f".{target.name}.tmp")
    with _naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        try:
            try:
                os.link(stored, temporary)
            except OSError:  # another file system, or one without hard links
                with stored.open("rb") as from_, temporary.open("wb") as to:
                    shutil.copyfileobj(from_, to, CHUNK_BYTES)
                    _flush(to)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


class _Failed(Exception):
    """This address does not give the file; the next one may."""


class _Passing(Exception):
    """This attempt failed; the same address may give the file in a moment."""


_Opened = tuple[int, str, Iterator[bytes]]  # first byte delivered, strong ETag or "", the bytes


def _obtain(address: str, file: File, stored: Path) -> None:
    """Bring the file from one address to `stored`, or raise _Failed and leave no wrong content."""
    arriving = file
    if file.archive:
        arriving = replace(file, name=file.archive, sha256=None, size_bytes=None, archive=None)
    part, arriving_part = (stored.with_name(f"{it.name}.part") for it in (file, arriving))
    for last in (False, True):
        resumed = _receive(address, arriving, arriving_part)
        fault = _fault(arriving_part, arriving)
        if file.archive and not fault:
            fault = _extract(arriving_part, file, part)
        if not fault:
            part.replace(stored)
        _discard(part, arriving_part)
        if not fault:
            return
        if last or not resumed:  # else the bytes kept may be at fault: once more, from nothing
            raise _Failed(fault)


def _receive(address: str, file: File, part: Path) -> bool:
    """Bring the bytes at an address into `part`; True if it kept some from an earlier attempt."""
    resumed = False
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(WAIT_SECONDS * 2 ** (attempt - 1))
        offset, etag = _resume_point(address, file, part)
        if offset and offset == file.size_bytes:
            return True
        opening = _open_path(address) if _is_path(address) else _open_url(address, offset, etag)
        try:
            with opening as (start, etag, chunks):
                resumed |= start > 0
                if start == 0:
                    _discard(part)
                    _note(part).write_text(f"{address}\n{etag}")
                _append(part, chunks, file)
            return resumed
        except _Passing as passing:
            reason = str(passing)
    raise _Failed(f"{reason}, {ATTEMPTS} attempts")


def _resume_point(address: str, file: File, part: Path) -> tuple[int, str]:
    """How many bytes to keep, and their ETag if they began to arrive from this very address.

    Bytes that do not belong together are found out by the hash; without one, the ETag must vouch.
    """
    noted, _, etag = _note(part).read_text().partition("\n") if _note(part).exists() else [""] * 3
    etag = etag if noted == address else ""
    return (part.stat().st_size if part.exists() and (file.sha256 or etag) else 0), etag


def _append(part: Path, chunks: Iterator[bytes], file: File) -> None:
    """Write what arrives, until it is too much (which _fault then finds)."""
    with (
        part.open("ab") as out,
        # disable=None: silent where nobody watches a terminal
        tqdm(
            desc=file.name,
            total=file.size_bytes,
            initial=out.tell(),
            unit="B",
            unit_scale=True,
            leave=False,
            disable=None,
        ) as bar,
    ):
        for chunk in chunks:
            out.write(chunk)
            bar.update(len(chunk))
            if out.tell() > _most(file):
                break
        _flush(out)


@contextmanager
def _open_path(address: str) -> Iterator[_Opened]:
    try:
        stream = Path(address).open("rb")  # noqa: SIM115 - closed by the caller
    except OSError as error:
        raise _Failed((error.strerror or str(error)).lower()) from error
    with stream:
        yield 0, "", iter(lambda: stream.read(CHUNK_BYTES), b"")


@contextmanager
def _open_url(url: str, offset: int, etag: str) -> Iterator[_Opened]:
    """A GET of the bytes from `offset` on; from zero if the server has or wants it otherwise."""
    # identity: a compressed transfer would count other bytes than the file's
    headers = {"Accept-Encoding": "identity"}
    more = {"Range": f"bytes={offset}-"} if offset else {}
    if offset and etag:
        more["If-Range"] = etag
    with ExitStack() as stack:
        response = stack.enter_context(_get(url, headers | more))
        begins = response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")
        if offset and (response.status_code == 416 or response.status_code == 206 and not begins):
            offset = 0
            response = stack.enter_context(_get(url, headers))
        status = response.status_code
        if status == 429 or status >= 500:
            raise _Passing(f"HTTP {status}")
        if status != 200 and not (offset and status == 206):
            raise _Failed(f"HTTP {status}")
        if url.startswith("https:") and not response.url.startswith("https:"):
            raise _Failed("redirected to plain http")
        etag = response.headers.get("ETag", "")
        yield offset if status == 206 else 0, "" if etag.startswith("W/") else etag, _body(response)


def _get(url: str, headers: dict[str, str]) -> requests.Response:
    with _judging():
        return requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS)


def _body(response: requests.Response) -> Iterator[bytes]:
    with _judging():
        yield from response.iter_content(CHUNK_BYTES)


@contextmanager
def _judging() -> Iterator[None]:
    """Sort what requests raises into what may pass by itself and what will not."""
    try:
        yield
    except requests.exceptions.SSLError as error:
        raise _Failed("TLS certificate or handshake refused") from error
    except requests.Timeout as error:
        raise _Passing("timed out") from error
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
        cause: BaseException | None = error
        while cause and not getattr(cause, "strerror", None):
            cause = cause.__cause__ or cause.__context__
        raise _Passing(str(getattr(cause, "strerror", "connection lost")).lower()) from error
    except OSError as error:  # every other RequestException, or a CA bundle that is not there
        raise _Failed(str(error)) from error


def _extract(archive: Path, file: File, part: Path) -> str | None:
    """Write the one member wanted to `part`; what is wrong with it, if anything."""
    _discard(part)
    try:
        _append(part, _member(archive, file), file)
    except _Failed as reason:
        return str(reason)
    return _fault(part, file)


def _member(archive: Path, file: File) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(archive) as opened, opened.open(file.name) as member:
            if opened.getinfo(file.name).compress_type not in _COMPRESSIONS:
                raise _Failed(f"{file.name} in it is neither stored nor deflated")
            yield from iter(lambda: member.read(CHUNK_BYTES), b"")
    except KeyError as error:
        raise _Failed(f"no {file.name} in it") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        # what zipfile raises on damaged, encrypted or unknown archives
        raise _Failed("not a sound zip archive") from error


def _fault(path: Path, file: File) -> str | None:
    """How a file's content differs from the catalogue, in a few words; None if it does not."""
    size = path.stat().st_size
    if size > _most(file):
        return f"more than {_most(file)} bytes"
    if file.size_bytes is not None and size < file.size_bytes:
        return f"only {size} bytes"
    if file.sha256 is not None and (found := sha256_of(path)) != file.sha256:
        return f"sha256 {found}"
    return None


def _most(file: File) -> int:
    return UNPINNED_LIMIT_BYTES if file.size_bytes is None else file.size_bytes


def _is_path(address: str) -> bool:
    return "://" not in address


def _in_repository(file: File) -> bool:
    return all(_is_path(address) for address in file.addresses)


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _discard(*parts: Path) -> None:
    for part in parts:
        part.unlink(missing_ok=True)
        _note(part).unlink(missing_ok=True)


def _flush(stream: IO[bytes]) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _sentence(source: Source, file: File, tried: list[str]) -> str:
    leaf = file.archive or file.name
    member = f" holding {file.name}" if file.archive else ""
    size = "" if file.size_bytes is None else f" of {file.size_bytes} bytes"
    digest = "" if file.sha256 is None else f" with sha256 {file.sha256}"
    remedy = (
        f"put it at <mirror>/{source.name}/{leaf} and set SCRATCHLM_MIRROR to <mirror>, a directory or an http(s) URL"
    )
    if _in_repository(file):
        remedy = f"restore it with `git checkout -- {' '.join(file.addresses)}`"
    return f"cannot get {source.name}/{leaf}: tried {', '.join(tried)}; expected a file{member}{size}{digest}; {remedy}"


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into a sentence that names the path."""
    try:
        yield
    except OSError as error:
        raise DownloadError(
            f"cannot write {error.filename or path}: {(error.strerror or str(error)).lower()};"
            " it must be in a writable folder with enough room; make it so and run again"
        ) from error
