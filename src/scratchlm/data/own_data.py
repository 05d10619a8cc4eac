"""One's own data in the form that tokenization reads, from files of this project or an address."""

import csv
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field, model_validator

from scratchlm.run.errors import UserError
from scratchlm.run.files import missing, open_table, write_json, write_table
from scratchlm.run.params import Section

FOLDER = "data/mine"  # a dependency of the stage download
COLUMNS = {  # that a file has for each purpose
    "corpus": ("text",),
    "messages": ("text", "label"),
    "instructions": ("instruction", "input", "output"),
    "preferences": ("instruction", "input", "chosen", "rejected"),
}
END_OF_DOCUMENT = "<|endoftext|>"
TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
AS_THEY_ARE = {"messages": (".csv", ".tsv", ".parquet"), "instructions": (".json",), "preferences": (".json",)}


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
            if not re.match("https?://", self.path):
                raise ValueError(f"path is {self.path!r}, but an address begins with https:// or http://")
            if self.sha256 is None:
                raise ValueError("a path that is an address needs the file's sha256 beside it (sha256sum FILE)")
            return self
        parts = PurePosixPath(self.path).parts
        if ".." in parts or len(parts) < 3 or PurePosixPath(*parts[:2]) != PurePosixPath(FOLDER):
            raise ValueError(f"path is {self.path!r}, but must be below {FOLDER}, or an address; put the data there")
        if self.sha256 is not None:
            raise ValueError(f"a path below {FOLDER} needs no sha256, because DVC follows its content; remove it")
        return self

    @property
    def is_address(self) -> bool:
        return "://" in self.path


def own_files(source: OwnSource) -> list[Path]:
    """The files below data/mine, in order of their names. Raises UserError if there is none."""
    path = Path(source.path)
    pattern = PurePosixPath(source.path).relative_to(FOLDER)
    found = path.rglob("*") if path.is_dir() else [path] if path.exists() else Path(FOLDER).glob(str(pattern))
    found = sorted(it for it in found if it.is_file() and not it.name.startswith("."))
    if not found:
        raise UserError(f"params.yaml: there is no file {source.path}; put one there, or correct the path in sources")
    return found


def write_own(purpose: str, source: OwnSource, files: Sequence[Path], folder: Path) -> None:
    """Write the one file into `folder` that tokenization reads. Raises UserError naming what is wrong in which file."""
    first, ending = files[0], files[0].suffix.lower()
    if purpose == "corpus":
        if len(files) == 1 and ending not in TABLES:
            shutil.copyfile(first, folder / first.name)  # no link: DVC may make what it keeps read-only
            return
        with (folder / "corpus.txt").open("w", encoding="utf-8", newline="") as file:
            for number, text in enumerate(document for path in files for document in _documents(path, source)):
                file.write(END_OF_DOCUMENT * (number > 0) + text)
        return
    if len(files) == 1 and not source.columns and ending in AS_THEY_ARE[purpose]:
        shutil.copyfile(first, folder / first.name)
        return
    wanted = COLUMNS[purpose]
    rows = [
        row for path in files for row in table_rows(path, {name: source.columns.get(name, name) for name in wanted})
    ]
    if purpose == "messages":
        write_table(folder / "messages.parquet", rows, pa.schema([(name, pa.string()) for name in wanted]))
    else:
        write_json(folder / f"{purpose}.json", rows)


def _documents(path: Path, source: OwnSource) -> Iterator[str]:
    if path.suffix.lower() in TABLES:
        yield from (row["text"] for row in table_rows(path, {"text": source.columns.get("text", "text")}))
        return
    try:
        yield path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error}); convert the file to UTF-8") from None


def table_rows(path: Path, columns: dict[str, str]) -> Iterator[dict[str, str]]:
    """Rows with our names: columns is ours -> theirs. A column `input` may be missing.

    Raises UserError naming the file, and the first row that lacks a text.
    """
    for number, row in enumerate(_raw_rows(path), 1):
        if not isinstance(row, dict):
            raise UserError(f"{path}: row {number} is no object with {', '.join(columns.values())}; correct it")
        found = {name: row.get(theirs) for name, theirs in columns.items()}
        if found.get("input", "") is None:
            found["input"] = ""
        for name, value in found.items():
            if not isinstance(value, str | int):
                shown = ", ".join(map(str, row))[:200]
                raise UserError(
                    f"{path}: row {number} has no text in the column {columns[name]!r} (it has {shown}); complete the "
                    f"row, or name the column in params.yaml: columns: {{{name}: …}}"
                )
        yield {name: str(value) for name, value in found.items()}


def _raw_rows(path: Path) -> Iterator[Any]:
    """The rows of a table, by the ending of its name."""
    ending = path.suffix.lower()
    if ending not in TABLES:
        raise UserError(f"{path}: the name must end in {', '.join(TABLES)}; rename or convert the file")
    if ending == ".parquet":
        with open_table(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
        return
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if ending == ".json":
                found = json.load(file)
                yield from found if isinstance(found, list) else [found]
            elif ending == ".jsonl":
                yield from (json.loads(line) for line in file if line.strip())
            else:
                yield from csv.DictReader(file, delimiter="," if ending == ".csv" else "\t", strict=True)
    except FileNotFoundError:
        raise missing(path) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error}); convert the file to UTF-8") from None
    except (json.JSONDecodeError, csv.Error) as error:
        raise UserError(f"{path}: {error}; correct the file, or save it as Parquet") from None
