"""A person's scores of responses: which responses to score, and the file of ratings."""

import csv
import hashlib
import math
import os
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scratchlm.judge.protocol import MAX_SCORE
from scratchlm.run.errors import UserError

HEAD = ("id", "response_sha256", "score")
Key = tuple[str, str]  # the task's id and the hash of the response
Ratings = dict[Key, float | None]  # None: skipped


def key_of(row: Mapping[str, Any]) -> Key:
    """Return what a rating belongs to: a task and a response, whichever variant gave it."""
    return row["id"], hashlib.sha256(row["response"].encode("utf-8", "surrogatepass")).hexdigest()


def sample(rows: Iterable[Mapping[str, Any]], seed: int, n: int) -> list[Mapping[str, Any]]:
    """Return `n` different responses in random order, so that those of each variant are a random sample of it.

    rows: of RESPONSE_SCHEMA, of all variants.
    """
    different = {key_of(row): row for row in rows}
    order = sorted(different)
    random.Random(seed).shuffle(order)
    return [different[key] for key in order[:n]]


def score_of(text: str) -> float | None:
    """Return the score in a text, or None if it is no number from 0 to 100."""
    try:
        score = float(text)
    except ValueError:
        return None
    return score if math.isfinite(score) and 0 <= score <= MAX_SCORE else None


def read_ratings(path: Path) -> Ratings:
    """Return the ratings of a file, none if it does not exist. Raises UserError for the first line that is not one."""
    if not path.exists():
        return {}
    if not path.is_file():
        raise UserError(f"{path} is a folder, device or pipe, and no file of ratings; name another file with --file")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; name another file with --file") from None
    if lines[0].rstrip("\r") != ",".join(HEAD):
        raise UserError(f"{path} is no file of ratings, whose first line is {','.join(HEAD)}; name another with --file")
    ratings: Ratings = {}
    for number, line in enumerate(lines[1:-1], 2):
        cells = next(csv.reader([line]), [])
        fault = _fault(cells, ratings)
        if fault:
            raise UserError(f"{path}, line {number}: {fault}; correct or delete the line")
        ratings[cells[0], cells[1]] = score_of(cells[2])
    if lines[-1]:
        raise UserError(f"{path}, line {len(lines)}: the last line has no end; complete or delete it")
    return ratings


def add_rating(path: Path, key: Key, score: float | None) -> None:
    """Append a rating and wait until it is on disk. score: None for a response that was skipped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not file.tell():
            writer.writerow(HEAD)
        writer.writerow([*key, "" if score is None else f"{score:g}"])
        file.flush()
        os.fsync(file.fileno())


def _fault(cells: list[str], ratings: Ratings) -> str:
    """Return what is wrong with the cells of a line, or ""."""
    if len(cells) != len(HEAD):
        return f"{len(cells)} cells in place of {len(HEAD)}"
    if (cells[0], cells[1]) in ratings:
        return "this response has a rating in a line above"
    if cells[2] and score_of(cells[2]) is None:
        return f"{cells[2]!r} is no score from 0 to {MAX_SCORE}"
    return ""
