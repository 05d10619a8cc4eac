"""Read and write files: complete or not at all, the same bytes for the same content."""

import csv
import errno
import glob
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scratchlm.run.errors import NOT_ALLOWED, UserError, os_error

SIGNIFICANT_DIGITS = 6


@contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; it replaces `target` on success and is deleted on error."""
    if target.exists() and not target.is_file() and not target.is_dir():  # the system refuses to replace a folder
        raise UserError(f"{target} is a device, pipe or socket, and not replaced by a file; name another path")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with naming(target):
            yield temporary
            flush(temporary)
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Like atomic_write, for a folder: an existing `target` is replaced as a whole."""
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is no folder, and not replaced by one; name another path")
    with temporary_folder(target) as scratch:
        new, old = scratch / "new", scratch / "old"
        new.mkdir()
        yield new
        for path in filter(Path.is_file, new.rglob("*")):
            flush(path)
        try:
            if target.exists():
                target.rename(old)  # deleting it in place would leave half of it if interrupted
            new.replace(target)
        finally:
            if old.exists() and not target.exists():
                old.rename(target)


@contextmanager
def temporary_folder(beside: Path) -> Iterator[Path]:
    """Yield an empty folder beside a path, for scratch files; it is deleted when the block exits."""
    beside.parent.mkdir(parents=True, exist_ok=True)
    with (
        naming(beside),
        TemporaryDirectory(
            prefix=f".{beside.name}.", suffix=".tmp", dir=beside.parent, ignore_cleanup_errors=True
        ) as folder,
    ):
        yield Path(folder)


def refuse_unwritable(path: Path) -> None:
    """Raises UserError if nothing exists at `path` and nothing can be made there: an output, or a mistyped input."""
    folder = path
    while not os.path.lexists(folder):
        folder = folder.parent
    if folder != path:
        try:
            TemporaryFile(dir=folder, prefix=f".{path.name}.", suffix=".tmp").close()  # on Linux it has no name
        except OSError as error:
            reason = str(error.strerror).lower()
            raise UserError(
                f"{path} does not exist and cannot be made in {folder}: {reason}; use another path"
            ) from None


def stale_temporary_files(target: Path) -> list[Path]:
    """The files and folders that the functions above leave beside `target` if the process is killed."""
    ours = re.compile(rf"\.{re.escape(target.name)}\.(\d+|[a-z0-9_]{{8}})\.tmp")  # of a process id, or of tempfile
    found = target.parent.glob(f".{glob.escape(target.name)}.*.tmp")
    return [path for path in found if ours.fullmatch(path.name) and not path.is_symlink()]


@contextmanager
def naming(target: Path) -> Iterator[None]:
    """Let an error that names no file, or a temporary one, name `target`."""
    try:
        yield
    except Exception as error:
        if (refusal := os_error(error)) is None:
            raise
        if refusal.errno is None:  # numpy says only how much it wrote
            refusal = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        named = refusal.filename
        parts = Path(os.fsdecode(named)).parts if isinstance(named, str | bytes) else ()
        if named is None or any(part.startswith(f".{target.name}.") and part.endswith(".tmp") for part in parts):
            refusal.filename = os.fspath(target)
        raise refusal from None


def write_text(path: Path, text: str) -> None:
    """UTF-8 with LF line ends, on every platform."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Sorted keys, floats of six significant digits. Raises ValueError for NaN and infinities: JSON has none."""
    write_text(path, json.dumps(_rounded(value), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, kind: type = dict) -> Any:
    """Return the content of a JSON file, which must be of a kind: dict, list, or object for any.

    Raises UserError naming the file if it is missing, is not JSON, or holds another kind or half a surrogate pair.
    """
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except (FileNotFoundError, NotADirectoryError):
        raise missing(path) from None
    except UnicodeEncodeError as error:
        near = error.object[max(0, error.start - 40) : error.start]
        raise damaged(path, f"no text: half of a surrogate pair after {near!r}") from None
    except (ValueError, RecursionError) as error:  # of text, bytes, numbers of 4,300 digits, or depth
        raise damaged(path, f"not valid JSON ({error})") from None
    if not isinstance(value, kind):
        expected = "a list" if kind is list else "an object"
        raise damaged(path, f"expected {expected} of JSON, found {type(value).__name__}")
    return value


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One line per row under the first row's keys; floats rounded as in write_json."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows([_rounded(dict(row)) for row in rows])


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file as text. Raises UserError naming the file if it is missing or damaged."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        raise missing(path) from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise damaged(path, f"not valid CSV ({error})") from None


ROWS_AT_ONCE = 4096
PARQUET_OPTIONS: dict[str, Any] = {"compression": "zstd", "compression_level": 3, "version": "2.6"}


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Write rows as Parquet and return them. The schema is given: the one that pyarrow infers depends on the rows.

    Lists of numbers take ten times as much memory in Python as in a table, so an iterator is drawn from in parts.
    """
    parts, rest = [schema.empty_table()], iter(rows)
    while part := [dict(row) for row in islice(rest, ROWS_AT_ONCE)]:
        parts.append(pa.Table.from_pylist(part, schema=schema))
    table = pa.concat_tables(parts).combine_chunks()
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, row_group_size=65_536, **PARQUET_OPTIONS)
    return table


def n_items(column: pa.ChunkedArray) -> int:
    """How many items the lists of a column hold in all."""
    return sum(len(chunk.flatten()) for chunk in column.chunks)


@contextmanager
def open_table(path: Path, schema: pa.Schema | None = None) -> Iterator[pq.ParquetFile]:
    """Yield a Parquet file. Raises UserError naming the file if it is damaged or has other columns than `schema`."""
    try:
        with pq.ParquetFile(path) as file:
            if schema is not None and not file.schema_arrow.equals(schema):
                found, expected = (
                    ", ".join(f"{field.name}: {field.type}" for field in fields)
                    for fields in (file.schema_arrow, schema)
                )
                raise damaged(path, f"has the columns {found}, expected {expected}")
            yield file
    except (FileNotFoundError, NotADirectoryError):
        raise missing(path) from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: the name of a column
        if getattr(error, "errno", None):  # of the file system, perhaps for another file
            raise
        raise damaged(path, f"cannot be read as Parquet ({' '.join(str(error).split())})") from None


def read_table(path: Path, schema: pa.Schema | None = None) -> list[dict[str, Any]]:
    """Rows of a Parquet file. Errors as open_table."""
    with open_table(path, schema) as file:
        return file.read().to_pylist()


def read_splits(folder: Path, schema: pa.Schema | None = None) -> dict[str, list[dict[str, Any]]]:
    """The rows of `folder`/{train,val,test}.parquet. Errors as open_table."""
    return {split: read_table(folder / f"{split}.parquet", schema) for split in ("train", "val", "test")}


def append_log(path: Path, record: Mapping[str, Any]) -> None:
    """Append a record to a file of JSON lines, with rounded floats."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(_rounded(dict(record)), sort_keys=True) + "\n")


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def md5_of(path: Path) -> str:
    """The MD5 of a file's content in hex, as DVC records it; also where MD5 is forbidden for security (FIPS)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def only_file(folder: Path) -> Path:
    """The one file in a source's folder. Raises UserError if there is none or more than one."""
    files = [path for path in folder.glob("*") if path.is_file()]
    if len(files) != 1:
        raise UserError(f"{folder} holds {len(files)} files, expected one; run dvc repro to download it again")
    return files[0]


def missing(path: Path) -> UserError:
    """The error for a file that does not exist, or that some libraries call so if it may not be read."""
    if path.exists():
        return UserError(f"{path}: cannot be read; {NOT_ALLOWED}")
    ours = "`dvc repro` makes every artifact, `dvc checkout` restores cached ones"
    return UserError(f"{path}: no such file; {ours if is_artifact(path) else 'check the path'}")


def damaged(path: Path, fault: str) -> UserError:
    """The error for a file whose content cannot be used: `fault` says why."""
    ours = "run dvc checkout, or delete it and run dvc repro"
    return UserError(f"{path}: {fault}; {ours if is_artifact(path) else 'correct it, or take a sound copy'}")


def is_artifact(path: Path) -> bool:
    """Whether the pipeline in the working folder makes this file, so that it can make it again."""
    made, given = ("data", "metrics"), ("data/mine", "data/sample")
    ours, theirs = (
        any(path.absolute().is_relative_to(Path(name).absolute()) for name in names) for names in (made, given)
    )
    return ours and not theirs


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_rounded(item) for item in value]
    return value


def flush(path: Path) -> None:
    """Wait until a file's content is on disk: a power cut must not leave its name without it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
