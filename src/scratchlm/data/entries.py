"""Entries of a JSON list, such as instructions and pairs of responses."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from scratchlm.data.duplicates import Deduplicate, comparable, without_duplicates
from scratchlm.data.tables import PLACE, refuse_rows
from scratchlm.run.errors import UserError
from scratchlm.run.files import damaged, read_json

OWN_ENTRIES = "own.json"  # one's own entries, as `download` writes them, with the places that they come from


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
