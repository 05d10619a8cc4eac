"""Reading texts and their labels: the SMS spam collection, a table with the columns text and label, movie reviews."""

import csv
import gzip
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from scratchlm.data.tables import OWN_SCHEMA, OWN_TABLE, PLACE, TABLES, files_of, refuse_rows, table_rows
from scratchlm.run.errors import UserError
from scratchlm.run.files import damaged, missing

if TYPE_CHECKING:
    import pandas as pd

Reading = Literal["strict", "book"]
Rows = Mapping[str, Sequence[str]]  # id, label, text and place, equally many of each
COLLECTION = ("ham", "spam")
COLUMNS = ("label", "text")
MAX_LABELS, MAX_LABEL_CHARACTERS = 128, 100  # a label's index is an int8
FOLDERS = ("neg", "pos")  # in the archive of movie reviews
_REMEDY = "every line must be `ham` or `spam`, a tab and a text, in UTF-8; fetch the file again"


def read_labelled_texts(
    path: Path, reading: Reading, labels: Sequence[str] | None
) -> tuple["pd.DataFrame", tuple[str, ...]]:
    """Return one row per text, with id, label (an index), text and place, and the names of the classes in their order.

    The ending of the name decides: those of tables, .tar.gz is that of the movie reviews; anything else is the SMS spam
    collection. labels: the names in the wanted order; None: as found, sorted.
    Raises UserError naming the file, and the first row that is wrong: of one's own texts, the user's file.
    """
    import pandas as pd

    read = next((reader for ending, reader in READERS.items() if path.name.lower().endswith(ending)), None)
    rows = read(path) if read else _read_collection(path, reading)
    names = rows["label"]
    where = files_of(rows[PLACE]) if path.name == OWN_TABLE else str(path)
    classes = _classes(where, rows, () if read else COLLECTION, labels)
    if len({f"{actual}_as_{predicted}" for actual in classes for predicted in classes}) < len(classes) ** 2:
        raise UserError(f"{where}: labels that contain `_as_` make equal names of confusions; rename one of them")
    index = {name: number for number, name in enumerate(classes)}
    return pd.DataFrame({**rows, "label": pd.Series([index[name] for name in names], dtype="int8")}), classes


def label_fault(label: str) -> str | None:
    """Return what is wrong with the name of a class, or None. Names become parts of metrics and of charts."""
    if label == label.strip() and label.isprintable() and 0 < len(label) <= MAX_LABEL_CHARACTERS:
        return None
    return (
        f"the label {label[:MAX_LABEL_CHARACTERS]!r}; a label has 1 to {MAX_LABEL_CHARACTERS} printable characters, "
        "and no space at its ends"
    )


def _classes(where: str, rows: Rows, always: Iterable[str], labels: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the classes in their order. always: those that need no row."""
    found = {*rows["label"], *always}
    if labels is not None:
        pairs = zip(rows[PLACE], rows["label"], strict=True)
        unknown = [f"{place} has the unknown label {name!r}" for place, name in pairs if name not in labels]
        refuse_rows(unknown, "add it to tokenize.messages.labels, or remove its rows")
        if absent := [name for name in labels if name not in found]:
            raise UserError(f"{where}: no row has the label {absent[0]!r}; remove it from tokenize.messages.labels")
        return tuple(labels)
    if len(found) < 2:
        raise UserError(
            f"{where}: {f'every row has the label {min(found)!r}' if found else 'there is no row'}, so there is "
            "nothing to tell apart; add texts with another label"
        )
    if len(found) > MAX_LABELS:
        raise UserError(
            f"{where}: {len(found)} different labels, and at most {MAX_LABELS} are allowed; is the column label a "
            "class?"
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
    n = len(messages)
    return {
        "id": [f"sms-{row:05d}" for row in range(n)],
        **{name: messages[name].tolist() for name in COLUMNS},
        PLACE: [f"{path}: row {row}" for row in range(1, n + 1)],
    }


def _read_table(path: Path) -> Rows:
    names = OWN_SCHEMA.names if path.name == OWN_TABLE else COLUMNS
    remedy = "name one column `text` and one `label`"
    rows = list(table_rows(path, {name: name for name in names}, remedy))
    return {"id": [f"row-{number:05d}" for number in range(len(rows))], **_checked(rows)}


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
    rows = [dict(zip(COLUMNS, found[name], strict=True)) | {PLACE: f"{path}: {name}"} for name in ids]
    return {"id": ids, **_checked(rows)}


def _checked(rows: Sequence[Mapping[str, str]]) -> Rows:
    """The columns of rows that all have a text and a label."""
    blank = [f"{row[PLACE]} has no text" for row in rows if not row["text"].strip()]
    refuse_rows(blank, "remove it, or give it one")
    for row in rows:
        if fault := label_fault(row["label"]):
            raise UserError(f"{row[PLACE]} has {fault}")
    return {name: [row[name] for row in rows] for name in OWN_SCHEMA.names}


READERS: dict[str, Callable[[Path], Rows]] = {**dict.fromkeys(TABLES, _read_table), ".tar.gz": _read_reviews}
