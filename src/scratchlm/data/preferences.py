"""Preferences: to each instruction a better and a worse response. The book's bonus code to chapter 7."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from scratchlm.data.entries import question, read_entries, without_repetitions
from scratchlm.data.prompts import PromptStyle, encode_prompt, format_prompt
from scratchlm.data.splits import Fractions, count_crossing_duplicates, refuse_empty_splits, split_in_order
from scratchlm.data.tables import PLACE, files_of
from scratchlm.data.tokenizer import Tokenizer
from scratchlm.run.errors import UserError
from scratchlm.run.files import atomic_folder, n_items, write_table

FIELDS = ("instruction", "input", "chosen", "rejected")
TOKENS = ("prompt_token_ids", "chosen_token_ids", "rejected_token_ids")
PREFERENCE_SCHEMA = pa.schema(
    [(text, pa.string()) for text in ("id", *FIELDS, "prompt")] + [(ids, pa.list_(pa.int32())) for ids in TOKENS]
)


class PreferencesParams(Fractions):
    """How the pairs are split. Their prompts have the style of tokenize.instructions."""


def write_preferences(
    path: Path, tokenizer: Tokenizer, folder: Path, params: PreferencesParams, style: PromptStyle
) -> dict[str, Any]:
    """Read, deduplicate, split and tokenize the pairs into `folder`/{train,val,test}.parquet; return the counts."""
    read = read_preferences(path)
    entries = without_repetitions(read, params.deduplicate)
    pairs = {name: [pair for pair in split if differ(pair)] for name, split in split_in_order(entries, params).items()}
    refuse_empty_splits({name: len(split) for name, split in pairs.items()}, "tokenize.preferences", params.deduplicate)
    counts: dict[str, Any] = {"read": len(read), "removed_duplicates": len(read) - len(entries)}
    counts["same_responses"] = sum(not differ(pair) for pair in entries)
    with atomic_folder(folder) as temporary:
        for name, split in pairs.items():
            rows = (_tokenized(pair, tokenizer, style) for pair in split)
            table = write_table(temporary / f"{name}.parquet", rows, PREFERENCE_SCHEMA)
            counts[name] = {"records": len(split), "tokens": sum(n_items(table[field]) for field in TOKENS)}
    asked = {name: list(map(question, split)) for name, split in pairs.items()}
    return counts | {"duplicates_across_splits": count_crossing_duplicates(asked)}


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


def differ(pair: dict[str, str]) -> bool:
    """Whether a pair has two responses. Equal ones have no gradient, and no model can tell them apart."""
    return pair["chosen"] != pair["rejected"]


def _tokenized(pair: dict[str, str], tokenizer: Tokenizer, style: PromptStyle) -> dict[str, Any]:
    texts = {"prompt": format_prompt(pair, style), "prompt_token_ids": encode_prompt(pair, style, tokenizer)}
    return pair | texts | {f"{side}_token_ids": tokenizer.encode(pair[side]) for side in ("chosen", "rejected")}
