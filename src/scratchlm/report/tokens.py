"""The tokens of messages and instructions: how long they are, how much of the vocabulary they use, and repeats."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from scratchlm.data.duplicates import count_crossing_duplicates
from scratchlm.run.files import open_table

COLUMNS: Mapping[str, Sequence[str]] = {
    "messages": ("token_ids",),
    "instructions": ("prompt_token_ids", "response_token_ids"),
}


@dataclass(frozen=True)
class TokenCounts:
    """lengths: tokens of every text, all splits together. used: distinct tokens of the train split.

    unseen: the share of the tokens of val and test that the train split does not have.
    """

    lengths: list[int]
    used: int
    unseen: float

    def quantile(self, share: float) -> int:
        """Return the smallest length that at least this share of the texts does not exceed."""
        return sorted(self.lengths)[max(0, math.ceil(share * len(self.lengths)) - 1)]


def read_token_counts(folder: Path, columns: Sequence[str]) -> TokenCounts:
    """Count the tokens in `folder`/{train,val,test}.parquet. Raises UserError naming a missing or damaged file.

    columns: of lists of token ids, which follow each other in a text.
    """
    lengths: list[int] = []
    token_ids = {}
    for split in ("train", "val", "test"):
        table = _read(folder, split, columns)
        lists = [chunk for name in columns for chunk in table[name].chunks]
        token_ids[split] = np.concatenate([np.array([], dtype=np.int32), *(part.flatten() for part in lists)])
        sizes = [np.diff(part.offsets) for part in lists]
        lengths += np.sum(sizes, axis=0).tolist() if sizes else []
    used = np.unique(token_ids["train"])
    others = np.concatenate([token_ids["val"], token_ids["test"]])
    return TokenCounts(lengths, len(used), 1 - float(np.isin(others, used).mean()) if len(others) else 0.0)


@dataclass(frozen=True)
class Repeated:
    """How many test messages are also in train, where a classifier may have memorised them, and how many there are."""

    count: int
    total: int


def read_repeated(folder: Path) -> Repeated:
    """Compare the texts in `folder`/{train,test}.parquet. Raises UserError naming a missing or damaged file."""
    texts = {split: _read(folder, split, ["text"])["text"].to_pylist() for split in ("train", "test")}
    return Repeated(count_crossing_duplicates(texts), len(texts["test"]))


def _read(folder: Path, split: str, columns: Sequence[str]) -> pa.Table:
    with open_table(folder / f"{split}.parquet") as file:
        return file.read(columns=list(columns)).combine_chunks()
