"""The manifest of a corpus of many files: where each is, and what pins its content. One JSON object per line."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from scratchlm.data.own_data import FOLDER
from scratchlm.run.display import without_secrets
from scratchlm.run.errors import UserError
from scratchlm.run.files import missing, stale_temporary_files, write_text
from scratchlm.run.params import Section

WEB = ("http://", "https://")
MANIFEST = "manifest.jsonl"  # in the raw corpus, where no text has this ending
Format = Literal["txt", "txt.gz", "txt.zst", "jsonl", "jsonl.gz", "jsonl.zst", "parquet"]
FORMATS: tuple[str, ...] = get_args(Format)
TEXT_PER_BYTE = 5  # assumed of compressed files: text shrinks to between a half and a fifth


class PinnedSource(Section):
    """manifest: below data/mine, as `scratchlm sources pin` writes it."""

    manifest: Annotated[str, Field(max_length=1000)]

    @field_validator("manifest")
    @classmethod
    def _is_followed_by_dvc(cls, path: str) -> str:
        if not PurePosixPath(path).is_relative_to(FOLDER) or ".." in path.split("/") or not path.endswith(".jsonl"):
            raise ValueError(f"must be a path below {FOLDER} that ends in .jsonl; write it with scratchlm sources pin")
        return path


@dataclass(frozen=True)
class PinnedFile:
    """A file of a corpus. format: the ending of its name. column: that holds the text, of all formats but txt."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    address: Annotated[str, Field(min_length=1)]
    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    format: Format
    column: str | None = None

    @property
    def estimated_text_bytes(self) -> int:
        """The size of the text in bytes; for compressed files an estimate."""
        return self.size_bytes * (1 if self.format in ("txt", "jsonl") else TEXT_PER_BYTE)


PINNED_FILE = TypeAdapter(PinnedFile)  # checks a line


def format_of(address: str) -> Format:
    """The format by the ending of the name. Raises UserError for another ending."""
    name = (urlsplit(address).path if address.startswith(WEB) else address).lower()
    for known in FORMATS:
        if name.endswith(f".{known}"):
            return known  # type: ignore[return-value]
    endings = ", ".join(f".{known}" for known in FORMATS)
    raise UserError(
        f"{without_secrets(address)} is no file of a corpus, whose name ends in {endings}; name a pattern without it, "
        "such as FOLDER/*.gz, or rename the file"
    )


def write_manifest(path: Path, files: Sequence[PinnedFile]) -> None:
    """Write one line per file. Delete what a killed process has left beside it."""
    for stale in stale_temporary_files(path):
        stale.unlink(missing_ok=True)
    write_text(path, "".join(json.dumps(manifest_row(file), ensure_ascii=False) + "\n" for file in files))


def manifest_row(file: PinnedFile) -> dict[str, str | int]:
    """The object of a file's line in a manifest, without values that are None."""
    return {key: value for key, value in asdict(file).items() if value is not None}


def read_manifest(path: Path) -> list[PinnedFile]:
    """Return the files in their order. Raises UserError naming the first line that is wrong."""
    remedy = "write the manifest again with scratchlm sources pin"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise missing(path) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error}); {remedy}") from None
    files: dict[str, PinnedFile] = {}
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            file = PINNED_FILE.validate_json(line)
        except ValidationError as error:
            mistake = error.errors()[0]
            place = ".".join(map(str, mistake["loc"])) or "the object"
            raise UserError(f"{path}: line {number}: {place}: {mistake['msg'].lower()}; {remedy}") from None
        if file.address in files:
            raise UserError(f"{path}: line {number} names {file.address} again; {remedy}")
        if (file.column is None) != file.format.startswith("txt"):
            fault = "needs a column" if file.column is None else "has no column"
            raise UserError(f"{path}: line {number}: a {file.format} {fault}; {remedy}")
        files[file.address] = file
    if not files:
        raise UserError(f"{path}: there is no file in it; {remedy}")
    return list(files.values())


def copy_manifest(path: Path, folder: Path) -> None:
    """Copy the manifest into a new folder, in place of a corpus; tokenization reads the files themselves."""
    folder.mkdir(parents=True)
    shutil.copyfile(path, folder / MANIFEST)


def changes(old: Sequence[PinnedFile], new: Sequence[PinnedFile]) -> str:
    """How many files a new manifest has that the old one has not, and so on: `2 added, 1 removed, 3 changed`."""
    before, after = ({file.address: file for file in files} for files in (old, new))
    n_changed = sum(before[address] != file for address, file in after.items() if address in before)
    return f"{len(after.keys() - before)} added, {len(before.keys() - after)} removed, {n_changed} changed"
