"""Texts and their classes, such as ham and spam: balancing, splitting, padding. The book's chapter 6."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from scratchlm.data.duplicates import Deduplicate, comparable, count_crossing_duplicates, without_duplicates
from scratchlm.data.labelled_texts import MAX_LABELS, Reading, label_fault, read_labelled_texts
from scratchlm.data.splits import check_fractions, refuse_empty_splits
from scratchlm.data.tables import PLACE
from scratchlm.run.errors import UserError
from scratchlm.run.files import atomic_folder, damaged, n_items, read_json, read_splits, write_json, write_table
from scratchlm.run.params import Section

if TYPE_CHECKING:  # most importers of this module need neither
    import pandas as pd

    from scratchlm.data.tokenizer import Tokenizer

MESSAGE_SCHEMA = pa.schema(
    {"id": pa.string(), "label": pa.int8(), "text": pa.string(), "token_ids": pa.list_(pa.int32())}
)
CLASSES_FILE = "classes.json"


class Messages(NamedTuple):
    """splits: by name, rows of MESSAGE_SCHEMA. classes: their names; the label of a row is the index of its class."""

    splits: Mapping[str, Sequence[Mapping[str, Any]]]
    classes: tuple[str, ...]


class MessagesParams(Section):
    """Reading, balancing and splitting of the messages; test is the rest.

    reading: of the SMS spam collection; `strict` takes every line as a message, `book` is the book's pandas call, where
    a quotation mark can join lines (two messages of the real collection are lost). labels: the classes in their order;
    null: as found, sorted. deduplicate: first, keep only one of the messages with equal texts. balance: keep only as
    many messages of each class as the smallest has.
    """

    reading: Reading
    labels: Annotated[list[str | int], Field(min_length=2, max_length=MAX_LABELS)] | None
    deduplicate: Deduplicate
    balance: bool
    train_fraction: Annotated[float, Field(gt=0, lt=1)]
    val_fraction: Annotated[float, Field(gt=0, lt=1)]

    @property
    def classes(self) -> list[str] | None:
        """The names in `labels`."""
        return None if self.labels is None else list(map(str, self.labels))

    @model_validator(mode="after")
    def _leaves_a_rest(self) -> "MessagesParams":
        return check_fractions(self, self.train_fraction, self.val_fraction)

    @model_validator(mode="after")
    def _has_names(self) -> "MessagesParams":
        names = self.classes or []
        for name in names:
            if fault := label_fault(name):
                raise ValueError(f"labels has {fault}; correct it")
            if names.count(name) > 1:
                raise ValueError(f"labels has {name!r} {names.count(name)} times; each must be different")
        return self


def write_messages(
    path: Path, tokenizer: "Tokenizer", folder: Path, params: MessagesParams, seed: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Read, deduplicate, balance, split and tokenize the messages into `folder`, for load_messages; return the counts.

    say: is given one sentence if a text has more than one label.
    """
    messages, classes = read_labelled_texts(path, params.reading, params.classes)
    keys = [comparable((text,), params.deduplicate) for text in messages["text"]]
    if conflicts := label_conflicts(messages, keys):
        say(conflicts)
    different = first_of_each(messages, keys, classes, params.deduplicate)
    chosen = balance_by_undersampling(different, classes, seed) if params.balance else different
    splits = split_messages(chosen, classes, params, seed)
    counts: dict[str, Any] = {"read": len(messages), "removed_duplicates": len(messages) - len(different)}
    with atomic_folder(folder) as temporary:
        write_json(temporary / CLASSES_FILE, list(classes))
        for name, split in splits.items():
            rows: list[dict[str, Any]] = split.to_dict("records")
            encoded = (row | {"token_ids": tokenizer.begin_ids + tokenizer.encode(row["text"])} for row in rows)
            table = write_table(temporary / f"{name}.parquet", encoded, MESSAGE_SCHEMA)
            of_class = dict(zip(classes, np.bincount(split["label"], minlength=len(classes)).tolist(), strict=True))
            named = {classes[1]: of_class[classes[1]]} if len(classes) == 2 else {"classes": of_class}
            counts[name] = named | {"records": len(rows), "tokens": n_items(table["token_ids"])}
    texts = {name: split["text"].tolist() for name, split in splits.items()}
    return counts | {"duplicates_across_splits": count_crossing_duplicates(texts)}


def load_messages(folder: Path) -> Messages:
    """Return what write_messages wrote. Raises UserError naming a file that is missing or damaged."""
    splits, classes = read_splits(folder, MESSAGE_SCHEMA), read_json(folder / CLASSES_FILE, list)
    n_classes = 1 + max((row["label"] for rows in splits.values() for row in rows), default=1)
    if not all(isinstance(name, str) for name in classes) or not n_classes <= len(classes) <= MAX_LABELS:
        raise damaged(folder / CLASSES_FILE, f"not the names of the {n_classes} or more classes beside it")
    return Messages(splits, tuple(classes))


def label_conflicts(messages: "pd.DataFrame", keys: Sequence[Hashable]) -> str | None:
    """Return a sentence if messages with equal keys have different labels, or None."""
    places: dict[Hashable, dict[int, str]] = {}  # key -> label -> where it is first
    for key, label, place in zip(keys, messages["label"], messages[PLACE], strict=True):
        places.setdefault(key, {}).setdefault(label, place)
    conflicts = [list(found.values()) for found in places.values() if len(found) > 1]
    if not conflicts:
        return None
    texts = "1 text has" if len(conflicts) == 1 else f"{len(conflicts)} texts have"
    return f"{texts} more than one label, as in {conflicts[0][0]} and {conflicts[0][1]}; correct the labels"


def first_of_each(
    messages: "pd.DataFrame", keys: Sequence[Hashable], classes: Sequence[str], how: Deduplicate
) -> "pd.DataFrame":
    """Return the messages in their order, of those with equal keys only the first, whatever the labels.

    Raises UserError if no message of a class is left.
    """
    different = messages.iloc[without_duplicates(range(len(messages)), keys, how)]
    if gone := sorted(set(messages["label"]) - set(different["label"])):
        place = messages[messages["label"] == gone[0]][PLACE].iloc[0]
        raise UserError(
            f"each text of {classes[gone[0]]} is above it with another label, as that of {place}; correct the labels, "
            "or set tokenize.messages.deduplicate to none"
        )
    return different


def balance_by_undersampling(messages: "pd.DataFrame", classes: Sequence[str], seed: int) -> "pd.DataFrame":
    """Return, class by class, a random draw of as many messages as the smallest class has (the book's section 6.2).

    All of the smallest class is kept, in its order. Raises UserError if a class has no messages.
    """
    import pandas as pd

    of_class = [messages[messages["label"] == label] for label in range(len(classes))]
    smallest = min(reversed(of_class), key=len)
    if smallest.empty:
        absent = next(name for name, found in zip(classes, of_class, strict=True) if found.empty)
        raise UserError(
            f"{len(messages)} messages but no {absent}, so there is nothing to balance; add some to the file"
        )
    return pd.concat(
        [found if found is smallest else found.sample(len(smallest), random_state=seed) for found in of_class]
    )


def split_messages(
    messages: "pd.DataFrame", classes: Sequence[str], params: MessagesParams, seed: int
) -> "dict[str, pd.DataFrame]":
    """Shuffle, then divide into train, val and test in this order (the book's section 6.2).

    Raises UserError if a split would be empty, or train would lack a class.
    """
    shuffled = messages.sample(frac=1, random_state=seed)
    train_end = int(len(shuffled) * params.train_fraction)
    val_end = train_end + int(len(shuffled) * params.val_fraction)
    splits = {"train": shuffled[:train_end], "val": shuffled[train_end:val_end], "test": shuffled[val_end:]}
    refuse_empty_splits(splits, "tokenize.messages", params.deduplicate)
    if absent := sorted(set(range(len(classes))) - set(splits["train"]["label"])):
        elsewhere = shuffled[shuffled["label"] == absent[0]][PLACE].tolist()
        only = f" ({len(elsewhere)} of val and test, such as {elsewhere[0]})" if elsewhere else ""
        raise UserError(
            f"none of the {len(splits['train'])} training messages is {classes[absent[0]]}{only}, so it cannot be "
            "learnt; add messages of this class, or raise tokenize.messages.train_fraction"
        )
    return splits


def pad(sequences: Sequence[Sequence[int]], pad_token_id: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Truncate or pad sequences at the end: token ids (B, width) int64, and their unpadded lengths (B,) int64.

    An empty sequence counts as one padding token, so that every row has a position to classify.
    """
    token_ids = np.full((len(sequences), width), pad_token_id, dtype=np.int64)
    lengths = np.ones(len(sequences), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        n = min(width, len(sequence))
        token_ids[row, :n] = sequence[:n]
        lengths[row] = max(1, n)
    return token_ids, lengths
