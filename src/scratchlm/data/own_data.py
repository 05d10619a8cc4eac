"""One's own data in the form that tokenization reads, from files of this project or an address."""

import csv
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
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
AS_THEY_ARE = (".csv", ".tsv", ".parquet")  # tables of messages with our columns


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
    """The files below data/mine, in order of their names. Raises UserError if there is none."""
    path = Path(source.path)
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
        raise UserError(f"params.yaml: there is no file {source.path}; put one there, or correct the path in sources")
    return found


def _is_of_a_tool(path: Path) -> bool:
    """Whether a file is no data: hidden, DVC's own, or one that .dvcignore names."""
    is_hidden = any(part.startswith(".") or part == "__pycache__" for part in path.parts)
    return is_hidden or path.suffix in (".dvc", ".tmp")


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
    if purpose == "messages" and len(files) == 1 and not source.columns and ending in AS_THEY_ARE:
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
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file.read()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error}); convert the file to UTF-8") from None


def table_rows(
    path: Path, columns: dict[str, str], remedy: str = "name the column in params.yaml, as in columns: {text: review}"
) -> Iterator[dict[str, str]]:
    """Rows with our names: columns is ours -> theirs. A column `input` may be missing.

    Raises UserError naming the file, and the first row that lacks a text; remedy: for a column of another name.
    """
    number = 0
    for number, row in enumerate(_raw_rows(path, [*columns.values()]), 1):
        if not isinstance(row, dict):
            raise UserError(f"{path}: row {number} is no object with {', '.join(columns.values())}; correct it")
        found = {name: row.get(theirs) for name, theirs in columns.items()}
        if found.get("input", "") is None and columns["input"] in ("input", *row):
            found["input"] = ""
        for name, value in found.items():
            if value is None:
                raise UserError(
                    f"{path}: row {number} has no text in the column {columns[name]!r} (it has "
                    f"{', '.join(map(str, row))[:200]}); complete the row, or {remedy}"
                )
            if isinstance(value, bool) or not isinstance(value, str | int):
                raise UserError(
                    f"{path}: row {number} has {str(value)[:80]} in the column {columns[name]!r}, which is neither a "
                    "text nor an integer; convert the column"
                )
            if not _is_unicode(str(value)):
                raise UserError(f"{path}: row {number} has characters in the column {columns[name]!r} that are no text")
        yield {name: str(value) for name, value in found.items()}
    if not number:
        raise UserError(f"{path}: there is no row; add some, or leave the file out")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a pair
        return False
    return True


def _raw_rows(path: Path, wanted: Sequence[str]) -> Iterator[Any]:
    """The rows of a table, by the ending of its name. wanted: columns, each of which must not be there twice."""
    ending = path.suffix.lower()
    if ending not in TABLES:
        raise UserError(f"{path}: the name must end in {', '.join(TABLES)}; rename or convert the file")
    if ending == ".parquet":
        with open_table(path) as file:
            names = file.schema_arrow.names
            _refuse_twins(path, names, wanted)
            for batch in file.iter_batches(columns=[name for name in names if name in wanted]):
                yield from batch.to_pylist()
        return
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if ending == ".json":
                found = json.load(file)
                yield from found if isinstance(found, list) else [found]
            elif ending == ".jsonl":
                yield from _json_lines(path, file)
            else:
                rows = csv.DictReader(file, delimiter="," if ending == ".csv" else "\t", strict=True)
                _refuse_twins(path, rows.fieldnames or [], wanted)
                for row in rows:
                    if None in row or None in row.values():
                        raise UserError(
                            f"{path}: line {rows.line_num} has more or fewer columns than the first; correct the line, "
                            "or save the table as Parquet"
                        )
                    yield row
    except FileNotFoundError:
        raise missing(path) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error}); convert the file to UTF-8") from None
    except (ValueError, RecursionError, csv.Error) as error:  # of JSON too deep, or with numbers too long
        raise UserError(f"{path}: {error}; correct the file, or save it as Parquet") from None


def _refuse_twins(path: Path, names: Sequence[str], wanted: Sequence[str]) -> None:
    if twin := next((name for name in wanted if list(names).count(name) > 1), None):
        raise UserError(f"{path}: more than one column is named {twin!r}; rename all but one")


def _json_lines(path: Path, lines: Iterable[str]) -> Iterator[Any]:
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                yield json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}: line {number}: {getattr(error, 'msg', error)}; correct the line, or save the table as Parquet"
            ) from None
