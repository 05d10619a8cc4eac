"""Zip archives: one member is read, nothing is unpacked to a path that an archive names."""

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from scratchlm.data.web import CHUNK_BYTES, Refused


def read_member(archive: Path, name: str) -> Iterator[bytes]:
    """Yield the bytes of a member, as long as they are sound. Raises Refused."""
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
