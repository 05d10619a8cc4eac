"""Instructions with answers: reading, splits, batches with masked targets. The book's chapter 7."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from scratchlm.data.entries import question, read_entries, without_repetitions
from scratchlm.data.prompts import PromptStyle, encode_prompt, format_prompt
from scratchlm.data.splits import Fractions, count_crossing_duplicates, refuse_empty_splits, split_in_order
from scratchlm.data.tokenizer import IGNORE_INDEX, Tokenizer
from scratchlm.run.files import atomic_folder, n_items, write_table

FIELDS = ("instruction", "input", "output")
_IDS = pa.list_(pa.int32())
INSTRUCTION_SCHEMA = pa.schema(
    [(text, pa.string()) for text in ("id", *FIELDS, "prompt")]
    + [("prompt_token_ids", _IDS), ("response_token_ids", _IDS)]
)


class InstructionsParams(Fractions):
    """The prompt template, and how the entries are split."""

    prompt_style: PromptStyle


def write_instructions(path: Path, tokenizer: Tokenizer, folder: Path, params: InstructionsParams) -> dict[str, Any]:
    """Read, deduplicate, split and tokenize the entries into `folder`/{train,val,test}.parquet; return the counts."""
    entries = read_instructions(path)
    different = without_repetitions(entries, params.deduplicate)
    splits = split_instructions(different, params)
    counts: dict[str, Any] = {"removed_duplicates": len(entries) - len(different)}
    with atomic_folder(folder) as temporary:
        for name, split in splits.items():
            rows = (_tokenized(entry, tokenizer, params.prompt_style) for entry in split)
            table = write_table(temporary / f"{name}.parquet", rows, INSTRUCTION_SCHEMA)
            n_tokens = sum(n_items(table[field]) for field in ("prompt_token_ids", "response_token_ids"))
            counts[name] = {"records": len(split), "tokens": n_tokens}
    asked = {name: list(map(question, split)) for name, split in splits.items()}
    return counts | {"duplicates_across_splits": count_crossing_duplicates(asked)}


def read_instructions(path: Path) -> list[dict[str, str]]:
    """Return the entries of a JSON list, each with an `id` (`task-` and its index), and its place.

    Errors as read_entries.
    """
    return read_entries(path, FIELDS, "task")


def split_instructions(
    entries: Sequence[dict[str, str]], params: InstructionsParams
) -> dict[str, Sequence[dict[str, str]]]:
    """Return the entries by split; see split_in_order. Raises UserError if a split would be empty."""
    splits = split_in_order(entries, params)
    refuse_empty_splits(
        {name: len(split) for name, split in splits.items()}, "tokenize.instructions", params.deduplicate
    )
    return splits


def collate(
    rows: Sequence[dict[str, Any]], end_token_id: int, context_length: int, *, mask_instruction: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Join prompts, responses and the end token; pad to the longest row and truncate to the context.

    rows: with prompt_token_ids and response_token_ids. Returns inputs, targets: (B, T) int64 each. Targets are the
    inputs one token later, and IGNORE_INDEX after the end token and, with mask_instruction, inside the prompt.
    Source: the book, section 7.3.
    """
    sequences = [[*row["prompt_token_ids"], *row["response_token_ids"], end_token_id] for row in rows]
    width = min(context_length, max(map(len, sequences)) - 1)
    inputs = np.full((len(rows), width), end_token_id, dtype=np.int64)
    targets = np.full((len(rows), width), IGNORE_INDEX, dtype=np.int64)
    for i, (row, sequence) in enumerate(zip(rows, sequences, strict=True)):
        n = min(width, len(sequence) - 1)
        inputs[i, :n] = sequence[:n]
        targets[i, :n] = sequence[1 : n + 1]
        if mask_instruction:
            targets[i, : len(row["prompt_token_ids"]) - 1] = IGNORE_INDEX
    return inputs, targets


def _tokenized(entry: dict[str, str], tokenizer: Tokenizer, style: PromptStyle) -> dict[str, Any]:
    prompt, response = encode_prompt(entry, style, tokenizer), tokenizer.encode(entry["output"])
    encoded = {"prompt_token_ids": prompt, "response_token_ids": response}
    return entry | {"prompt": format_prompt(entry, style)} | encoded
