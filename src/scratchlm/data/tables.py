"""Rows of a table (CSV, TSV, JSON lines, JSON or Parquet), each with its place in the file, for messages."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scratchlm.run.errors import UserError
from scratchlm.run.files import missing, open_table

TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
PLACE = "place"  # of a row: its file and line, such as `data/mine/reviews.csv: line 7`
OWN_TABLE, OWN_ENTRIES = "own.parquet", "own.json"  # one's own texts or entries, as `download` writes them, with PLACE
OWN_SCHEMA = pa.schema([(name, pa.string()) for name in ("label", "text", PLACE)])
NAMED = 3  # of many files, those that a message names
SHOWN_CHARACTERS = 200
ROWS_AT_ONCE = 1024  # of a corpus, a row may be a book

Located = tuple[str, Any]  # `line 7` or `row 3` with what is there, which may be no object


def table_rows(path: Path, columns: Mapping[str, str], remedy: str) -> Iterator[dict[str, str]]:
    """Yield rows with our names, and PLACE. columns: ours -> theirs; a column `input` may be missing.

    Lines are counted in CSV, TSV and JSON lines, where a row begins, and rows in JSON and Parquet, from 1.
    Raises UserError naming the place of the first row that lacks a text; remedy: for a column of another name.
    """
    return checked_rows(path, _located(path, columns, remedy), columns, remedy)


def checked_rows(
    source: Path | str, located: Iterable[Located], columns: Mapping[str, str], remedy: str
) -> Iterator[dict[str, str]]:
    """Yield what table_rows yields of rows that were read. source: the file, for messages."""
    at = ""
    for at, row in located:
        place = f"{source}: {at}"
        if not isinstance(row, dict):
            raise UserError(f"{place} is no object with {', '.join(columns.values())}; correct it")
        found = {name: row.get(theirs) for name, theirs in columns.items()}
        if found.get("input", "") is None and columns["input"] in ("input", *row):
            found["input"] = ""
        for name, value in found.items():
            if value is None:
                instead = "is null" if columns[name] in row else f"has {_listed(row)}"
                raise UserError(
                    f"{place} has no text in the column {columns[name]!r} (it {instead}); complete the row, or {remedy}"
                )
            if isinstance(value, bool) or not isinstance(value, str | int):
                raise UserError(
                    f"{place} has {str(value)[:80]} in the column {columns[name]!r}, which is neither a text nor an "
                    "integer; convert the column"
                )
            if not _is_unicode(str(value)):
                raise UserError(f"{place} has characters in the column {columns[name]!r} that are no text; correct it")
        yield {PLACE: place} | {name: str(value) for name, value in found.items()}
    if not at:
        raise UserError(f"{source}: there is no row; add some, or leave the file out")


def files_of(places: Iterable[str]) -> str:
    """Return the files that hold these places, the first few by name."""
    files = list(dict.fromkeys(place.rpartition(": ")[0] for place in places))
    more = [f"{len(files) - NAMED} more files"] if len(files) > NAMED else []
    return " and ".join([", ".join(files[:NAMED]), *more])


def refuse_rows(faults: Sequence[str], remedy: str) -> None:
    """Raise UserError with the first of the faults, each with its place, and the number of the others, if any."""
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise UserError(f"{faults[0]}{more}; {remedy}")


def text_blocks(path: Path, n_characters: int) -> Iterator[str]:
    """Yield a UTF-8 file in blocks of n_characters, without a byte order mark.

    Raises UserError naming the file if it is missing, and the first line that is not UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from iter(lambda: file.read(n_characters), "")
    except FileNotFoundError:
        raise missing(path) from None
    except UnicodeDecodeError:
        raise not_utf8(path) from None


def not_utf8(path: Path) -> UserError:
    """The error for a file that is not UTF-8 text: it names the first line that is not."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                before = line[: error.start].decode()[-20:]
                fault = f"the byte 0x{line[error.start]:02x} after {before!r}"
                return UserError(f"{path}: line {number} is not UTF-8 text ({fault}); convert the file to UTF-8")
    raise AssertionError(f"{path} is UTF-8 text")


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(map(str, names))[:SHOWN_CHARACTERS] or "nothing"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a pair
        return False
    return True


def _located(path: Path, columns: Mapping[str, str], remedy: str) -> Iterator[Located]:
    """The rows by the ending of the file's name."""
    ending = path.suffix.lower()
    if ending not in TABLES:
        raise UserError(f"{path}: the name must end in {', '.join(TABLES)}; rename or convert the file")
    if ending == ".parquet":
        with open_table(path) as table:
            yield from parquet_rows(path, table, columns, remedy)
        return
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if ending == ".json":
                found = json.load(file)
                rows = found if isinstance(found, list) else [found]
                yield from ((f"row {number}", row) for number, row in enumerate(rows, 1))
            elif ending == ".jsonl":
                yield from json_lines(path, file)
            else:
                yield from _delimited(path, file, columns, remedy)
    except FileNotFoundError:
        raise missing(path) from None
    except UnicodeDecodeError:
        raise not_utf8(path) from None
    except (ValueError, RecursionError) as error:  # of JSON too deep, or with numbers too long
        raise UserError(f"{path}: {error}; correct the file, or save it as Parquet") from None


def _delimited(path: Path, lines: Iterable[str], columns: Mapping[str, str], remedy: str) -> Iterator[Located]:
    """CSV, or TSV: a header, and rows whose fields in quotation marks may have delimiters and line ends."""
    rows = csv.reader(lines, delimiter="," if path.suffix.lower() == ".csv" else "\t", strict=True)
    begin = 1  # the line where a row begins; an unclosed quotation mark reaches to the end of the file
    correct = "correct the line, or save the table as Parquet"
    try:
        if not (header := next(rows, [])):
            raise UserError(f"{path}: the first line names no columns; write their names there")
        _check_header(path, header, columns, remedy)
        begin = rows.line_num + 1
        for row in rows:
            if len(row) not in (0, len(header)):  # 0: a blank line
                raise UserError(f"{path}: line {begin} has {len(row)} of {len(header)} columns; {correct}")
            if row:
                yield f"line {begin}", dict(zip(header, row, strict=True))
            begin = rows.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}: line {begin}: {error}; {correct}") from None


def json_lines(path: Path | str, lines: Iterable[str]) -> Iterator[Located]:
    """Yield the object of each line that is not blank."""
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                yield f"line {number}", json.loads(line)
        except (ValueError, RecursionError) as error:  # the first, too, of integers of over 4,300 digits
            fault = getattr(error, "msg", "") or str(error).partition(";")[0]  # then Python's advice to programmers
            raise UserError(f"{path}: line {number}: {fault}; correct the line, or save the table as Parquet") from None


def parquet_rows(path: Path | str, file: pq.ParquetFile, columns: Mapping[str, str], remedy: str) -> Iterator[Located]:
    """Yield the wanted columns of a Parquet file's rows, a few rows in memory at once."""
    number = 0
    names = file.schema_arrow.names
    _check_header(path, names, columns, remedy)
    wanted = [name for name in names if name in columns.values()]
    for name in wanted:
        _check_type(path, file.schema_arrow.field(name))
    for batch in file.iter_batches(ROWS_AT_ONCE, columns=wanted):
        for row in batch.to_pylist():
            number += 1
            yield f"row {number}", row


def _check_type(path: Path | str, field: pa.Field) -> None:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    is_string = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not (is_string or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise UserError(f"{path}: the column {field.name} has the type {kind}, not strings or integers; convert it")


def _check_header(path: Path | str, names: list[str], columns: Mapping[str, str], remedy: str) -> None:
    for name, theirs in columns.items():
        if names.count(theirs) > 1:
            raise UserError(f"{path}: more than one column is named {theirs!r}; rename all but one")
        if theirs not in names and not name == theirs == "input":
            raise UserError(f"{path}: no column {theirs!r} among {_listed(names)}; {remedy}")
