"""Reading texts and their labels: the SMS spam collection, a table with the columns text and label, movie reviews."""

import csv
import gzip
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from scratchlm.run.errors import UserError
from scratchlm.run.files import damaged, missing, open_table

if TYPE_CHECKING:
    import pandas as pd

Reading = Literal["strict", "book"]
Rows = tuple[Sequence[str], Sequence[str], Sequence[str]]  # ids, labels and texts, equally many
COLLECTION = ("ham", "spam")
COLUMNS = ("label", "text")
MAX_LABELS, MAX_LABEL_CHARACTERS = 128, 100  # a label's index is an int8
FOLDERS = ("neg", "pos")  # in the archive of movie reviews
_REMEDY = "every line must be `ham` or `spam`, a tab and a text, in UTF-8; fetch the file again"


def read_labelled_texts(
    path: Path, reading: Reading, labels: Sequence[str] | None
) -> tuple["pd.DataFrame", tuple[str, ...]]:
    """Return one row per text, with id, label (an index) and text, and the names of the classes in their order.

    The ending of the name decides: .csv and .tsv have a header and quotation marks, .parquet needs none, .tar.gz is
    that of the movie reviews; anything else is the SMS spam collection. labels: the names in the wanted order; None: as
    found, sorted.
    Raises UserError naming the file, and the first row that is wrong.
    """
    import pandas as pd

    read = next((reader for ending, reader in READERS.items() if path.name.lower().endswith(ending)), None)
    ids, names, texts = read(path) if read else _read_collection(path, reading)
    classes = _classes(path, set(names) if read else {*names, *COLLECTION}, labels)
    if len({f"{actual}_as_{predicted}" for actual in classes for predicted in classes}) < len(classes) ** 2:
        raise UserError(f"{path}: labels that contain `_as_` make equal names of confusions; rename one of them")
    index = {name: number for number, name in enumerate(classes)}
    found = pd.DataFrame({"id": ids, "label": pd.Series([index[name] for name in names], dtype="int8"), "text": texts})
    return found, classes


def label_fault(label: str) -> str | None:
    """Return what is wrong with the name of a class, or None. Names become parts of metrics and of charts."""
    if label == label.strip() and label.isprintable() and 0 < len(label) <= MAX_LABEL_CHARACTERS:
        return None
    return (
        f"the label {label[:MAX_LABEL_CHARACTERS]!r}; a label has 1 to {MAX_LABEL_CHARACTERS} printable characters, "
        "and no space at its ends"
    )


def _classes(path: Path, found: set[str], labels: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the classes in their order."""
    if labels is not None:
        if unknown := sorted(found - set(labels)):
            raise UserError(
                f"{path}: a row has the label {unknown[0]!r}, which is not in tokenize.messages.labels; add it there, "
                "or remove its rows"
            )
        if absent := [name for name in labels if name not in found]:
            raise UserError(f"{path}: no row has the label {absent[0]!r}; remove it from tokenize.messages.labels")
        return tuple(labels)
    if len(found) < 2:
        raise UserError(
            f"{path}: {f'every row has the label {min(found)!r}' if found else 'there is no row'}, so there is nothing "
            "to tell apart; add texts with another label"
        )
    if len(found) > MAX_LABELS:
        raise UserError(
            f"{path}: {len(found)} different labels, and at most {MAX_LABELS} are allowed; is the column label a class?"
        )
    are_integers = all(re.fullmatch("-?[0-9]+", name) for name in found)
    return tuple(sorted(found, key=lambda name: (int(name) if are_integers else 0, name)))


def _read_collection(path: Path, reading: Reading) -> Rows:
    """Lines of `ham` or `spam`, a tab and a text. `book` is the book's pandas call: a quotation mark can join lines."""
    import pandas as pd

    quoting = csv.QUOTE_NONE if reading == "strict" else csv.QUOTE_MINIMAL
    try:
        messages = pd.read_csv(
            path, sep="\t", header=None, names=COLUMNS, dtype=str, quoting=quoting, keep_default_na=False
        )
    except FileNotFoundError:
        raise missing(path) from None
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {str(error).strip()}; {_REMEDY}") from None
    if not isinstance(messages.index, pd.RangeIndex):  # of a first line with more columns, pandas makes an index
        raise UserError(f"{path}: row 1 has more than one tab; {_REMEDY}")
    wrong = ~messages["label"].isin(COLLECTION) | (messages["text"] == "")
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise UserError(f"{path}: row {row + 1} starts {messages['label'].iloc[row][:40]!r}; {_REMEDY}")
    ids = [f"sms-{row:05d}" for row in range(len(messages))]
    return ids, messages["label"].tolist(), messages["text"].tolist()


def _read_delimited(path: Path, delimiter: str) -> Rows:
    """A CSV or TSV file with a header; a field in quotation marks may have delimiters, and line ends."""
    remedy = "correct the line, or save the table as Parquet"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, delimiter=delimiter, strict=True)
            header = next(rows, [])
            columns = _columns(path, header)
            pairs = []
            for row in rows:
                if len(row) not in (0, len(header)):  # 0: a blank line
                    raise UserError(f"{path}: line {rows.line_num} has {len(row)} of {len(header)} columns; {remedy}")
                if row:
                    pairs.append([row[column] for column in columns])
    except FileNotFoundError:
        raise missing(path) from None
    except csv.Error as error:
        raise UserError(f"{path}: line {rows.line_num}: {error}; {remedy}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error}); convert the file to UTF-8") from None
    return _checked(path, pairs)


def _read_parquet(path: Path) -> Rows:
    """A Parquet file, with texts as strings, and labels as strings or integers."""
    import pyarrow as pa

    with open_table(path) as file:
        _columns(path, file.schema_arrow.names)
        for name in COLUMNS:
            kind = file.schema_arrow.field(name).type
            if pa.types.is_dictionary(kind):
                kind = kind.value_type
            is_string = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
            if not is_string and (name == "text" or not pa.types.is_integer(kind)):
                allowed = "strings" if name == "text" else "strings or integers"
                raise UserError(f"{path}: the column {name} has the type {kind}, not {allowed}; convert it")
        table = file.read(columns=list(COLUMNS))
        table.validate(full=True)  # strings that are not UTF-8
        columns = [table[name].cast(pa.string()).to_pylist() for name in COLUMNS]
    return _checked(path, zip(*columns, strict=True))


def _read_reviews(path: Path) -> Rows:
    """The archive of Maas et al. 2011: …/neg/NAME.txt and …/pos/NAME.txt, of which unlabelled reviews are left out."""
    found = {}
    try:
        with gzip.open(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                parts = PurePosixPath(member.name).parts
                is_review = len(parts) > 2 and parts[-2] in FOLDERS and parts[-1].endswith(".txt")
                if is_review and member.isfile() and member.name.isascii():
                    file = archive.extractfile(member)
                    assert file
                    found["/".join(parts[-3:]).removesuffix(".txt")] = parts[-2], file.read().decode("utf-8")
    except FileNotFoundError:
        raise missing(path) from None
    except (tarfile.TarError, zlib.error, EOFError, UnicodeDecodeError, OSError) as error:
        if getattr(error, "errno", None):  # of the file system
            raise
        raise damaged(path, f"cannot be read as an archive of reviews ({error})") from None
    ids = sorted(found)
    _, labels, texts = _checked(path, (found[name] for name in ids))
    return ids, labels, texts


def _columns(path: Path, header: Sequence[str]) -> list[int]:
    """The positions of label and text."""
    for name in COLUMNS:
        if header.count(name) != 1:
            shown = ", ".join(header)[:200] or "none"
            raise UserError(
                f"{path}: {header.count(name) or 'no'} column{'s' * (header.count(name) > 1)} {name!r} among {shown}; "
                "name one column `text` and one `label`, in a .csv or .tsv file in its first line"
            )
    return [header.index(name) for name in COLUMNS]


def _checked(path: Path, pairs: Iterable[Sequence[str | None]]) -> Rows:
    """Labels and texts that have one."""
    labels, texts = [], []
    for number, (label, text) in enumerate(pairs, 1):
        if text is None or not text.strip():
            raise UserError(f"{path}: row {number} has no text; remove it, or give it one")
        if fault := label_fault(label or ""):
            raise UserError(f"{path}: row {number} has {fault}")
        labels.append(label or "")
        texts.append(text)
    return [f"row-{number:05d}" for number in range(len(texts))], labels, texts


READERS: dict[str, Callable[[Path], Rows]] = {
    ".csv": lambda path: _read_delimited(path, ","),
    ".tsv": lambda path: _read_delimited(path, "\t"),
    ".parquet": _read_parquet,
    ".tar.gz": _read_reviews,
}
