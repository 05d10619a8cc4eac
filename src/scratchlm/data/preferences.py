"""Preferences: to each instruction a better and a worse response. The book's bonus code to chapter 7."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from scratchlm.data.instructions import (
    INSTRUCTION_SCHEMA,
    TOKEN_IDS,
    question,
    read_entries,
    without_repetitions,
    write_entries,
)
from scratchlm.data.prompts import PromptStyle, encode_prompt, format_prompt
from scratchlm.data.splits import Fractions, refuse_empty_splits, split_in_order
from scratchlm.data.tables import PLACE, files_of
from scratchlm.data.tokenizer import Tokenizer
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_splits

FIELDS = ("instruction", "input", "chosen", "rejected")
PREFERENCE_SCHEMA = pa.schema(
    [(text, pa.string()) for text in ("id", *FIELDS, "prompt")]
    + [(f"{part}_token_ids", TOKEN_IDS) for part in ("prompt", "chosen", "rejected")]
)


class PreferencesParams(Fractions):
    """How the pairs are split. Their prompts have the style of tokenize.instructions."""


def write_preferences(
    path: Path, tokenizer: Tokenizer, folder: Path, params: PreferencesParams, style: PromptStyle
) -> dict[str, Any]:
    """Read, deduplicate, split and tokenize the pairs into `folder`/{train,val,test}.parquet; return the counts."""

    def tokenized(pair: dict[str, str]) -> dict[str, Any]:
        texts = {"prompt": format_prompt(pair, style), "prompt_token_ids": encode_prompt(pair, style, tokenizer)}
        return pair | texts | {f"{side}_token_ids": tokenizer.encode(pair[side]) for side in ("chosen", "rejected")}

    read = read_preferences(path)
    entries = without_repetitions(read, params.deduplicate)
    pairs = {name: [pair for pair in split if differ(pair)] for name, split in split_in_order(entries, params).items()}
    refuse_empty_splits(pairs, "tokenize.preferences", params.deduplicate)
    counts = write_entries(pairs, folder, PREFERENCE_SCHEMA, tokenized)
    counts |= {"read": len(read), "removed_duplicates": len(read) - len(entries)}
    return counts | {"same_responses": sum(not differ(pair) for pair in entries)}


def read_preferences(path: Path) -> list[dict[str, str]]:
    """Return the pairs of a JSON list, each with an `id` (`pair-` and its index), and its place.

    Errors as read_entries; also if no entry has two responses.
    """
    entries = read_entries(path, FIELDS, "pair")
    if not any(map(differ, entries)):
        raise UserError(
            f"{files_of(pair[PLACE] for pair in entries)}: chosen and rejected are equal in each of its {len(entries)} "
            "entries, so none says what is better; correct them"
        )
    return entries


def count_shared_questions(instructions: Path, preferences: Path, say: Callable[[str], None]) -> dict[str, int]:
    """Count the pairs whose question one tokenized source trains and the other tests; `say` so if there are any.

    instructions, preferences: folders of splits. test_also_in_instructions_train: test pairs whose answers the
    assistant has learnt. train_also_in_instructions_test: train pairs on whose questions the variants are judged.
    """
    sources = ((instructions, INSTRUCTION_SCHEMA), (preferences, PREFERENCE_SCHEMA))
    asked, paired = (
        {split: list(map(question, rows)) for split, rows in read_splits(*source).items()} for source in sources
    )
    trained, tested = ({*asked[split]} for split in ("train", "test"))
    learnt, judged = sum(it in trained for it in paired["test"]), sum(it in tested for it in paired["train"])
    if learnt or judged:
        say(
            f"{learnt} test pairs ask what the assistant is trained on, and {judged} train pairs what it is tested on; "
            "give tokenize.preferences the fractions of tokenize.instructions, if both have the same questions"
        )
    return {"test_also_in_instructions_train": learnt, "train_also_in_instructions_test": judged}


def differ(pair: dict[str, str]) -> bool:
    """Whether a pair has two responses. Equal ones have no gradient, and no model can tell them apart."""
    return pair["chosen"] != pair["rejected"]
