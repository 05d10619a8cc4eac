"""Instructions with answers: reading, splits, batches with masked targets. The book's chapter 7.

An entry is an instruction with its response or, in data/preferences.py, with two responses.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from scratchlm.data.duplicates import Deduplicate, comparable, count_crossing_duplicates, without_duplicates
from scratchlm.data.prompts import PromptStyle, encode_prompt, format_prompt
from scratchlm.data.splits import Fractions, refuse_empty_splits, split_in_order
from scratchlm.data.tables import OWN_ENTRIES, PLACE, refuse_rows
from scratchlm.data.tokenizer import IGNORE_INDEX, Tokenizer
from scratchlm.run.errors import UserError
from scratchlm.run.files import atomic_folder, damaged, n_items, read_json, write_table

FIELDS = ("instruction", "input", "output")
TOKEN_IDS = pa.list_(pa.int32())
INSTRUCTION_SCHEMA = pa.schema(
    [(text, pa.string()) for text in ("id", *FIELDS, "prompt")]
    + [("prompt_token_ids", TOKEN_IDS), ("response_token_ids", TOKEN_IDS)]
)


class InstructionsParams(Fractions):
    """The prompt template, and how the entries are split."""

    prompt_style: PromptStyle


def write_instructions(path: Path, tokenizer: Tokenizer, folder: Path, params: InstructionsParams) -> dict[str, Any]:
    """Read, deduplicate, split and tokenize the entries into `folder`/{train,val,test}.parquet; return the counts."""

    def tokenized(entry: dict[str, str]) -> dict[str, Any]:
        prompt, response = encode_prompt(entry, params.prompt_style, tokenizer), tokenizer.encode(entry["output"])
        encoded = {"prompt_token_ids": prompt, "response_token_ids": response}
        return entry | {"prompt": format_prompt(entry, params.prompt_style)} | encoded

    entries = read_instructions(path)
    different = without_repetitions(entries, params.deduplicate)
    counts = write_entries(split_instructions(different, params), folder, INSTRUCTION_SCHEMA, tokenized)
    return counts | {"removed_duplicates": len(entries) - len(different)}


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
    refuse_empty_splits(splits, "tokenize.instructions", params.deduplicate)
    return splits


def read_entries(path: Path, fields: Sequence[str], name: str) -> list[dict[str, str]]:
    """Return the entries with these texts, an `id` (`name`-00000, …) and PLACE.

    Raises UserError naming the place of the first entry that lacks a text, or whose text is blank, but for `input`.
    """
    entries = read_json(path, list)
    if not entries:
        raise damaged(path, f"no entry; expected entries with the texts {', '.join(fields)}")
    is_own = path.name == OWN_ENTRIES
    found = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not all(isinstance(entry.get(field), str) for field in fields):
            raise UserError(f"{path}: entry {number} needs the texts {', '.join(fields)}; complete it or remove it")
        place = str(entry[PLACE]) if is_own else f"{path}: entry {number}"
        found.append({"id": f"{name}-{number:05d}", PLACE: place} | {field: entry[field] for field in fields})
    for field in fields:
        blank = [entry[PLACE] for entry in found if field != "input" and not entry[field].strip()]
        refuse_rows([f"{place} has no text for {field}" for place in blank], "complete it or remove it")
    return found


def question(entry: Mapping[str, str]) -> tuple[str, ...]:
    """Return what an entry asks. Entries that ask the same are duplicates, whatever the responses."""
    return entry["instruction"], entry["input"]


def without_repetitions(entries: Sequence[dict[str, str]], how: Deduplicate) -> list[dict[str, str]]:
    """Return the entries in their order, of those that ask the same only the first. how: `none` keeps all."""
    return without_duplicates(entries, [comparable(question(entry), how) for entry in entries], how)


def write_entries(
    splits: Mapping[str, Sequence[dict[str, str]]],
    folder: Path,
    schema: pa.Schema,
    tokenized: Callable[[dict[str, str]], dict[str, Any]],
) -> dict[str, Any]:
    """Write each entry, as `tokenized` returns it, into `folder`/SPLIT.parquet; return the counts of the splits."""
    counts: dict[str, Any] = {}
    with atomic_folder(folder) as temporary:
        for name, split in splits.items():
            table = write_table(temporary / f"{name}.parquet", map(tokenized, split), schema)
            n_tokens = sum(n_items(table[field.name]) for field in schema if field.type == TOKEN_IDS)
            counts[name] = {"records": len(split), "tokens": n_tokens}
    asked = {name: list(map(question, split)) for name, split in splits.items()}
    return counts | {"duplicates_across_splits": count_crossing_duplicates(asked)}


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
