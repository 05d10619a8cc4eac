"""One's own data in the form that tokenization reads, from files of this project or an address."""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import Field, model_validator

from scratchlm.data.tables import OWN_ENTRIES, OWN_SCHEMA, OWN_TABLE, TABLES, table_rows, text_blocks
from scratchlm.run.errors import UserError
from scratchlm.run.files import write_json, write_table
from scratchlm.run.params import Section

FOLDER = "data/mine"  # a dependency of the stage download
COLUMNS = {  # that a file has for each purpose
    "corpus": ("text",),
    "messages": ("text", "label"),
    "instructions": ("instruction", "input", "output"),
    "preferences": ("instruction", "input", "chosen", "rejected"),
}
END_OF_DOCUMENT = "<|endoftext|>"
REMEDY = "name the column in params.yaml, as in columns: {text: review}"
PIECE_CHARACTERS = 1 << 20


class OwnSource(Section):
    """path: below data/mine a file, a folder of files or a pattern such as data/mine/*.txt; or an address of a file.

    sha256: of what the address leads to. columns: the names in the file of text, label, instruction and so on, where
    they are others.
    """

    path: Annotated[str, Field(min_length=1, max_length=1000)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    columns: dict[str, str] = {}

    @model_validator(mode="after")
    def _can_be_found_again(self) -> "OwnSource":
        if self.is_address:
            if not re.match("https?://[^/@\\s\\[]+(/[^\\s]*)?$", self.path):
                raise ValueError(
                    "path is an address, which must begin with https:// or http://, have no space, and neither a name "
                    "nor a password in it (requests takes these from ~/.netrc)"
                )
            if self.sha256 is None:
                raise ValueError("a path that is an address needs the file's sha256 beside it (sha256sum FILE)")
            return self
        parts = PurePosixPath(self.path).parts
        if ".." in parts or len(parts) < 3 or PurePosixPath(*parts[:2]) != PurePosixPath(FOLDER):
            raise ValueError(f"path is {self.path!r}, but must be below {FOLDER}, or an address; put the data there")
        if any("**" in part and part != "**" for part in parts):
            raise ValueError(f"path is {self.path!r}, but ** stands for whole folders; write **/ before the name")
        if self.sha256 is not None:
            raise ValueError(f"a path below {FOLDER} needs no sha256, because DVC follows its content; remove it")
        return self

    @property
    def is_address(self) -> bool:
        return "://" in self.path


def own_files(source: OwnSource) -> list[Path]:
    """The files below data/mine, in order of their names; [] for an address. Raises UserError if there is none."""
    if source.is_address:
        return []
    path = Path(source.path)
    if not path.is_file():
        for _ in os.walk(path if path.is_dir() else FOLDER, onerror=refuse_unreadable):  # glob would leave them out
            pass
    pattern = PurePosixPath(source.path).relative_to(FOLDER)
    found = path.rglob("*") if path.is_dir() else [path] if path.exists() else Path(FOLDER).glob(str(pattern))
    everything = sorted(found)
    for it in (path, *everything):
        inside = it.relative_to(FOLDER).parts
        links = (Path(FOLDER, *inside[: n + 1]) for n in range(len(inside)))
        if link := next((each for each in links if each.is_symlink() and each.is_dir()), None):
            raise UserError(f"{link} is a link to a folder, whose content DVC does not follow; copy the files there")
    found = [it for it in everything if it.is_file() and not _is_of_a_tool(it.relative_to(FOLDER))]
    if not found:
        place = f"in {source.path}" if path.is_dir() else source.path
        raise UserError(f"there is no file {place}; put one there, or correct the path")
    for it in found:
        refuse_odd_name(it.as_posix())
    return found


def refuse_odd_name(path: str) -> None:
    """Raise UserError for the path of a file that is not UTF-8: neither DVC nor a manifest can name it."""
    if os.fsencode(path).decode(errors="replace") != path:
        raise UserError(f"{path!a} is a name that is not UTF-8; rename the file")


def refuse_unreadable(error: OSError) -> None:
    """Raise the error of os.walk for a folder that may not be read. A missing folder is no error."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _is_of_a_tool(path: Path) -> bool:
    """Whether a file is no data: hidden, DVC's own, or one that .dvcignore names."""
    is_hidden = any(part.startswith(".") or part == "__pycache__" for part in path.parts)
    return is_hidden or path.suffix in (".dvc", ".tmp")


def write_own(purpose: str, source: OwnSource, files: Sequence[Path], folder: Path) -> None:
    """Write the one file into `folder` that tokenization reads. Raises UserError naming what is wrong in which file.

    Each row of a table has its place, so that tokenization, too, names the user's file.
    """
    first = files[0]
    if purpose == "corpus":
        if len(files) == 1 and first.suffix.lower() not in TABLES:
            if not sum(map(len, text_blocks(first, PIECE_CHARACTERS))):
                raise UserError(f"{first}: there is no text; add some")
            shutil.copyfile(first, folder / first.name)  # no link: DVC may make what it keeps read-only
            return
        with (folder / "corpus.txt").open("w", encoding="utf-8", newline="") as file:
            for number, text in enumerate(document for path in files for document in _documents(path, source)):
                file.write(END_OF_DOCUMENT * (number > 0) + text)
        return
    columns = {name: source.columns.get(name, name) for name in COLUMNS[purpose]}
    rows = [row for path in files for row in table_rows(path, columns, REMEDY)]
    if purpose == "messages":
        write_table(folder / OWN_TABLE, rows, OWN_SCHEMA)
    else:
        write_json(folder / OWN_ENTRIES, rows)


def _documents(path: Path, source: OwnSource) -> Iterator[str]:
    if path.suffix.lower() in TABLES:
        yield from (row["text"] for row in table_rows(path, {"text": source.columns.get("text", "text")}, REMEDY))
    else:
        yield "".join(text_blocks(path, PIECE_CHARACTERS))
