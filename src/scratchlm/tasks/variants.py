"""The variants of the assistant that answer the test instructions, and are judged."""

from typing import Annotated

from pydantic import AfterValidator, Field

from scratchlm.run.params import SHOWN_CHARACTERS

ASSISTANT, ASSISTANT_FOLDER = "instruct", "finetune_instruct"
BASE = "base"
# What the other names in the judge's metrics begin with
RESERVED = ("control_", "repeat_", "second_", "reordered", "agreement", "pairwise", "judge", "trust")


def _comparable(variants: dict[str, str]) -> dict[str, str]:
    if variants.get(ASSISTANT) != ASSISTANT_FOLDER:
        raise ValueError(
            f"must have {ASSISTANT}: {ASSISTANT_FOLDER}, which the others are compared with and whose tasks give the "
            "judge's controls; add it"
        )
    if reserved := [name for name in variants if name.startswith(RESERVED)]:
        raise ValueError(
            f"has the name {reserved[0][:SHOWN_CHARACTERS]!r}, but names that begin with {', '.join(RESERVED)} have "
            "another meaning in the judge's metrics; choose another"
        )
    return variants


# Name of the variant -> folder of data/models
Variants = Annotated[dict[str, Annotated[str, Field(min_length=1)]], AfterValidator(_comparable)]
