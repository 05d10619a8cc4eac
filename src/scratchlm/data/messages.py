"""The SMS spam collection: reading, balancing, splitting, padding. The book's chapter 6."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from scratchlm.data.splits import check_fractions, count_crossing_duplicates, refuse_empty_splits
from scratchlm.run.errors import UserError
from scratchlm.run.files import atomic_folder, missing, n_items, write_table
from scratchlm.run.params import Section

if TYPE_CHECKING:  # most importers of this module need neither
    import pandas as pd

    from scratchlm.data.tokenizer import Tokenizer

CLASSES = ("ham", "spam")
MESSAGE_SCHEMA = pa.schema(
    {"id": pa.string(), "label": pa.int8(), "text": pa.string(), "token_ids": pa.list_(pa.int32())}
)
_REMEDY = "every line must be `ham` or `spam`, a tab and a text, in UTF-8; fetch the file again"


class MessagesParams(Section):
    """Reading, balancing and splitting of the messages; test is the rest.

    reading: `strict` takes every line as a message; `book` is the book's pandas call, where a quotation mark can
    join lines (two messages of the real collection are lost). balance: keep only as much ham as there is spam.
    """

    reading: Literal["strict", "book"]
    balance: bool
    train_fraction: Annotated[float, Field(gt=0, lt=1)]
    val_fraction: Annotated[float, Field(gt=0, lt=1)]

    @model_validator(mode="after")
    def _leaves_a_rest(self) -> "MessagesParams":
        return check_fractions(self, self.train_fraction, self.val_fraction)


def write_messages(
    path: Path, tokenizer: "Tokenizer", folder: Path, params: MessagesParams, seed: int
) -> dict[str, Any]:
    """Read, balance, split and tokenize the messages into `folder`/{train,val,test}.parquet; return the counts."""
    messages = read_messages(path, params.reading)
    chosen = balance_by_undersampling(messages, seed) if params.balance else messages
    splits = split_messages(chosen, params, seed)
    counts: dict[str, Any] = {"read": len(messages)}
    with atomic_folder(folder) as temporary:
        for name, split in splits.items():
            rows: list[dict[str, Any]] = split.to_dict("records")
            encoded = (row | {"token_ids": tokenizer.begin_ids + tokenizer.encode(row["text"])} for row in rows)
            table = write_table(temporary / f"{name}.parquet", encoded, MESSAGE_SCHEMA)
            n_tokens = n_items(table["token_ids"])
            counts[name] = {"records": len(rows), "spam": int(split["label"].sum()), "tokens": n_tokens}
    texts = {name: split["text"].tolist() for name, split in splits.items()}
    return counts | {"duplicates_across_splits": count_crossing_duplicates(texts)}


def read_messages(path: Path, reading: Literal["strict", "book"]) -> "pd.DataFrame":
    """Return one row per message: id (`sms-` and its index), label (1 is spam) and text.

    Raises UserError naming the file and the first row that is not `ham` or `spam`, a tab and a text.
    """
    import pandas as pd

    quoting = csv.QUOTE_NONE if reading == "strict" else csv.QUOTE_MINIMAL
    try:
        messages = pd.read_csv(
            path, sep="\t", header=None, names=["label", "text"], dtype=str, quoting=quoting, keep_default_na=False
        )
    except FileNotFoundError:
        raise missing(path) from None
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {str(error).strip()}; {_REMEDY}") from None
    if not isinstance(messages.index, pd.RangeIndex):  # of a first line with more columns, pandas makes an index
        raise UserError(f"{path}: row 1 has more than one tab; {_REMEDY}")
    wrong = ~messages["label"].isin(CLASSES) | (messages["text"] == "")
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise UserError(f"{path}: row {row + 1} starts {messages['label'].iloc[row][:40]!r}; {_REMEDY}")
    ids, label = [f"sms-{row:05d}" for row in range(len(messages))], (messages["label"] == "spam").astype("int8")
    return pd.DataFrame({"id": ids, "label": label, "text": messages["text"]})


def balance_by_undersampling(messages: "pd.DataFrame", seed: int) -> "pd.DataFrame":
    """Return a random draw of ham, as much as there is spam, then all of the spam (the book's section 6.2).

    Raises UserError if there is more spam than ham, or no spam.
    """
    import pandas as pd

    ham, spam = messages[messages["label"] == 0], messages[messages["label"] == 1]
    if spam.empty:
        raise UserError(f"{len(ham)} ham messages but no spam, so there is nothing to balance; add spam to the file")
    if len(spam) > len(ham):
        raise UserError(f"{len(spam)} spam messages but only {len(ham)} ham; set tokenize.messages.balance to false")
    return pd.concat([ham.sample(len(spam), random_state=seed), spam])


def split_messages(messages: "pd.DataFrame", params: MessagesParams, seed: int) -> "dict[str, pd.DataFrame]":
    """Shuffle, then divide into train, val and test in this order (the book's section 6.2).

    Raises UserError if a split would be empty, or train would have one class alone.
    """
    shuffled = messages.sample(frac=1, random_state=seed)
    train_end = int(len(shuffled) * params.train_fraction)
    val_end = train_end + int(len(shuffled) * params.val_fraction)
    splits = {"train": shuffled[:train_end], "val": shuffled[train_end:val_end], "test": shuffled[val_end:]}
    refuse_empty_splits({name: len(split) for name, split in splits.items()}, "tokenize.messages")
    if len(found := set(splits["train"]["label"])) == 1:
        raise UserError(
            f"the {len(splits['train'])} training messages are all {CLASSES[found.pop()]}, so there is nothing to tell "
            "apart; add messages of the other class, or raise tokenize.messages.train_fraction"
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
