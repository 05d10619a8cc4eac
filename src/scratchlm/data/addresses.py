"""Files at addresses (local paths, s3://, gs://, http:// and https://): list them, and read each with its hash."""

import errno
import glob
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from scratchlm.data.manifest import WEB
from scratchlm.data.own_data import refuse_odd_name, refuse_unreadable
from scratchlm.run.display import without_secrets
from scratchlm.run.errors import UserError, explained

BLOCK_BYTES = 4 << 20  # asked for at once
PROTOCOLS = ("file", "s3", "gs", "http", "https")


class Reader(io.RawIOBase):
    """A file at an address, read once from its start. A thread fetches the next block while the last one is in use.

    size_bytes: as the storage says, None if it does not. may_be_cut: whether a lost connection would look like the end.
    digest (SHA-256) and n_bytes: of all blocks up to the one in use. advance: called with the number of bytes of each
    block; what it raises ends the reading.
    """

    def __init__(self, address: str, advance: Callable[[int], None]) -> None:
        self.address, self.digest, self.n_bytes = address, hashlib.sha256(), 0
        self._advance = advance
        with well_formed(address):
            self._file = _open(address)
        self.size_bytes: int | None = getattr(self._file, "size", None)
        self._executor, self._block = ThreadPoolExecutor(1), memoryview(b"")
        self._next = self._executor.submit(self._file.read, BLOCK_BYTES)

    @property
    def may_be_cut(self) -> bool:
        return getattr(self._file, "may_be_cut", False)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._block:
            self._block = memoryview(self._fetched())
        n = min(len(buffer), len(self._block))
        buffer[:n], self._block = self._block[:n], self._block[n:]
        return n

    def _fetched(self) -> bytes:
        """The next block; nothing at the end of the file."""
        with naming(self.address):
            block = self._next.result()
        if block:
            self._next = self._executor.submit(self._file.read, BLOCK_BYTES)
            self.digest.update(block)
            self.n_bytes += len(block)
            self._advance(len(block))
        return block

    def blocks(self) -> Iterator[bytes]:
        """What was not read yet."""
        return iter(lambda: self.read(BLOCK_BYTES) or b"", b"")

    def close(self) -> None:
        """Do nothing: what wraps this closes it at the end of its own text, and the hash needs the rest."""

    def __exit__(self, *_: object) -> None:
        self._executor.submit(self._file.close)  # after a read in progress, which may last as long as a server hangs
        self._executor.shutdown(wait=False)


def _open(address: str) -> Any:
    """Open an address for reading. http(s) without fsspec, which makes one request per block and retries none."""
    if address.startswith(WEB):
        from scratchlm.data.web import WebFile  # imports requests, which takes a moment

        return WebFile(address)
    files, path = file_system(address)
    with naming(address):
        return files.open(path, "rb", block_size=BLOCK_BYTES, cache_type="none")


def file_system(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it. Raises UserError for other protocols than PROTOCOLS.

    Not through url_to_fs, for which `a::b` is no name but a file inside another.
    """
    import fsspec  # takes a moment

    protocol = address.partition("://")[0] if "://" in address else "file"
    name = without_secrets(address)
    if protocol not in PROTOCOLS:
        raise UserError(
            f"{name} begins with {protocol}://, but must be a local path, s3://, gs://, http:// or https://; name a "
            "copy of the files there"
        )
    try:
        kind: Any = fsspec.get_filesystem_class(protocol)
        files = kind(use_listings_cache=False, **kind._get_kwargs_from_urls(address))  # such as the version of a file
    except ImportError as error:
        raise UserError(f"{name}: {error}; install the package, or name a copy of the files elsewhere") from None
    return files, files._strip_protocol(address)


def files_at(address: str) -> dict[str, int]:
    """The address and size in bytes (0 if unknown) of one file, of all below a folder, or of all matching a pattern.

    In folders, files and folders whose name begins with . or _ are left out. Raises UserError if there is no file, for
    what would be left out although it may hold files, and for a password in a web address.
    """
    if not address:
        raise UserError("an address is empty; name a file, a folder or a pattern")
    if "@" in urlsplit(address).netloc and address.startswith(WEB):
        raise UserError(
            f"{without_secrets(address)} has a name or a password in it, which the manifest would show; remove it"
        )
    if address.startswith(WEB):  # a web server lists no files
        with Reader(address, lambda _: None) as reader:
            return {address: reader.size_bytes or 0}
    files, path = file_system(address)
    if "file" in files.protocol and os.path.realpath(plain := os.path.normpath(path)) == os.path.realpath(path):
        path = plain  # without `..`, unless it follows a link and so leads elsewhere
    with naming(address):
        is_pattern = glob.has_magic(path) and not files.exists(path)
        found = files.glob(path, detail=True) if is_pattern else files.find(path, detail=True)
        if "file" in files.protocol and (is_pattern or Path(path).is_dir()):
            _refuse_unlisted(path, is_pattern)
    # Of local files, so that one and a link to it are not read twice
    real = {os.path.realpath(name) for name, info in found.items() if info.get("islink") is False}
    sizes = {}
    for name, info in found.items():
        inside = [Path(name).name] if is_pattern else name.removeprefix(path).strip("/").split("/")
        is_file = info["type"] == "file"
        if info.get("islink"):
            is_file = Path(name).is_file() or not Path(name).exists()  # reading the latter says why
            is_file = is_file and os.path.realpath(name) not in real
        if is_file and not any(part.startswith((".", "_")) for part in inside):
            refuse_odd_name(one := _address_of(files, name))
            sizes[one] = info["size"]
    if not sizes:
        raise UserError(f"{without_secrets(address)}: there is no file; correct the address or the pattern")
    return sizes


def _refuse_unlisted(path: str, is_pattern: bool) -> None:
    """Refuse what fsspec leaves out without a word.

    Raises OSError for a folder that may not be read, and UserError for a link to a folder, if it may hold files at
    `path`, a folder or a pattern.
    """
    parts = Path(path).parts
    n_fixed = next(n for n, part in enumerate(parts) if glob.has_magic(part)) if is_pattern else len(parts)
    below = parts[n_fixed:] or ["**"]
    for folder, names, _ in os.walk(Path(*parts[:n_fixed]), onerror=refuse_unreadable):
        if not os.access(folder, os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
        depth = len(Path(folder).parts) - n_fixed
        if not is_pattern:
            names[:] = [name for name in names if not name.startswith((".", "_"))]
        elif "**" not in below[: depth + 1]:
            names[:] = [name for name in names if depth < len(below) - 1 and fnmatchcase(name, below[depth])]
        if link := next((name for name in names if Path(folder, name).is_symlink()), None):
            raise UserError(f"{Path(folder, link)} is a link to a folder, which is not followed; name its files")


def _address_of(files: Any, name: str) -> str:
    if "file" not in files.protocol:
        return str(files.unstrip_protocol(name))
    path = Path(name)
    return (path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path).as_posix()


@contextmanager
def well_formed(address: str) -> Iterator[None]:
    """Let an address that its protocol refuses, as s3:// without a bucket, be a sentence that names it."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{without_secrets(address)}: {error}; correct the address") from None


@contextmanager
def naming(address: str) -> Iterator[None]:
    """Let an error of the storage or the network be a sentence that names the address."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(
            f"{without_secrets(address)}: there is no such file, or its server cannot be reached; correct the address, "
            "or restore it"
        ) from None
    except Exception as error:  # also of s3fs and gcsfs, whose errors have no common class
        if isinstance(error, UserError) or (sentence := explained(error)) is None:
            raise
        sentence = sentence.removeprefix(f"{Path(address).absolute()}: ")  # the path of a local file
        raise UserError(f"{without_secrets(address)}: {sentence}") from error
