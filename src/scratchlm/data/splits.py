"""Division into train, val and test, and its checks."""

from collections.abc import Mapping, Sequence, Sized
from typing import Annotated, Self, TypeVar

from pydantic import Field, model_validator

from scratchlm.data.duplicates import Deduplicate
from scratchlm.run.errors import UserError
from scratchlm.run.params import Section

Params = TypeVar("Params")
Record = TypeVar("Record")


def check_fractions(params: Params, first: float, second: float) -> Params:
    """Return `params` if two fractions leave something for the third split. Raises ValueError otherwise."""
    if first + second >= 1:
        raise ValueError(f"fractions {first} and {second} leave nothing for the third split; their sum must be below 1")
    return params


class Fractions(Section):
    """How records are divided by position; val is the rest. deduplicate: first, keep one of those that ask the same."""

    deduplicate: Deduplicate
    train_fraction: Annotated[float, Field(gt=0, lt=1)]
    test_fraction: Annotated[float, Field(gt=0, lt=1)]

    @model_validator(mode="after")
    def _leaves_a_rest(self) -> Self:
        return check_fractions(self, self.train_fraction, self.test_fraction)


def split_in_order(records: Sequence[Record], params: Fractions) -> dict[str, Sequence[Record]]:
    """Return records in file order: the first are train, the next test, the rest val (the book's section 7.2)."""
    train_end = int(len(records) * params.train_fraction)
    test_end = train_end + int(len(records) * params.test_fraction)
    return {"train": records[:train_end], "val": records[test_end:], "test": records[train_end:test_end]}


def refuse_empty_splits(splits: Mapping[str, Sized], section: str, deduplicate: Deduplicate) -> None:
    """Raises UserError naming the parameters to change if a split is empty."""
    if empty := [name for name, split in splits.items() if not len(split)]:
        left = "" if deduplicate == "none" else f" that {section}.deduplicate leaves"
        raise UserError(
            f"the {empty[0]} split of the {sum(map(len, splits.values()))} records{left} is empty; add records, or "
            f"change the fractions in {section}"
        )
