"""The inputs that fuzzing has kept, each for a new way through a reader.

`python -m tests.fuzz.corpus FOLDER` packs FOLDER/TARGET/* again. They are in one archive, corpus.zip, because no editor
and no git should touch them.
"""

import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

ARCHIVE = Path(__file__).with_suffix(".zip")


def inputs() -> Iterator[tuple[str, str, bytes]]:
    """Yield target, name and content of each."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        for member in archive.namelist():
            target, name = member.split("/")
            yield target, name, archive.read(member)


def pack(folder: Path) -> None:
    with zipfile.ZipFile(ARCHIVE, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.glob("*/*")):
            info = zipfile.ZipInfo(
                path.relative_to(folder).as_posix()
            )  # with a fixed date, so the same bytes each time
            archive.writestr(info, path.read_bytes(), zipfile.ZIP_DEFLATED)


if __name__ == "__main__":
    pack(Path(sys.argv[1]))
