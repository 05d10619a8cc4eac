"""Duplicates among the records of a source: which texts count as equal, keeping the first, and those across splits."""

import re
import sys
import unicodedata
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from typing import Literal, TypeVar

Deduplicate = Literal["none", "exact", "normalised"]
Record = TypeVar("Record")
WITH_MEANING = "#%&*/@\\"  # punctuation for Unicode, but part of names and formulas, as in C# and 2*3


def comparable(texts: tuple[str, ...], how: Deduplicate) -> tuple[str, ...]:
    """Return what is equal for texts that are duplicates of each other."""
    return tuple(map(normalised, texts)) if how == "normalised" else texts


def without_duplicates(records: Sequence[Record], keys: Sequence[Hashable], how: Deduplicate) -> list[Record]:
    """Return the records in their order, of those with equal keys only the first. how: `none` keeps all."""
    if how == "none":
        return list(records)
    first: dict[Hashable, Record] = {}
    for record, key in zip(records, keys, strict=True):
        first.setdefault(key, record)
    return list(first.values())


def count_crossing_duplicates(splits: Mapping[str, Sequence[Hashable]]) -> int:
    """Return how many records of the other splits are also in train, where the model may have memorised them."""
    train = set(splits["train"])
    return sum(record in train for name, records in splits.items() if name != "train" for record in records)


def normalised(text: str) -> str:
    """Return a text without what may differ between near duplicates.

    Compatibility forms, case, and punctuation and white space between words: after NFKC, case folding and NFKC, each
    run of white space and punctuation (categories P*, except WITH_MEANING) is one space, and none at the ends. Before
    a digit, punctuation stays: it may be a sign, a point or an operator. So does punctuation without any words.
    Idempotent. Source of the folding: the Unicode Standard, section 3.13, compatibility caseless matching.
    """
    folded = " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split())
    words = _separators().sub(lambda run: run[0] if run[0][-1].isdecimal() else " ", folded)
    return words.strip() or folded


@cache
def _separators() -> re.Pattern[str]:
    """A run of spaces and punctuation, with the digit that follows it, if one does."""
    characters = map(chr, range(sys.maxunicode + 1))
    marks = [mark for mark in characters if unicodedata.category(mark)[0] == "P" and mark not in WITH_MEANING]
    return re.compile(rf"[ {re.escape(''.join(marks))}]+\d?")
