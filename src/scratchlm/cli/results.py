"""The main results as a table for a terminal of 80 columns."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tabulate import tabulate

from scratchlm.cli.pipeline import TextOrJson
from scratchlm.compare.git import unpack_commit
from scratchlm.report.headline import Headline, read_headline
from scratchlm.run.display import say, shortened
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_json

WIDTH = 80
MANY_REPEATED = 0.01  # of val and test
SUBJECT_CHARACTERS, MEASURE_CHARACTERS = 17, 22


def results(format: TextOrJson = "text") -> None:
    """Show the main results; data/report.html has everything. Where they differ, the last commit's are beside them."""
    lines = read_headline(Path("params.yaml"), Path("metrics"))
    before = committed_headline()
    if format == "json":
        say(results_json(lines, before))
        return
    say(results_text(lines, before))
    if note := repeated_note(read_json(Path("metrics/tokenize.json"))["messages"]):
        say(f"\n{note}")


def repeated_note(counts: Mapping[str, Any]) -> str | None:
    """Return a sentence if many messages of val and test are also in train, or None. counts: tokenize.messages."""
    repeated, n_others = counts["duplicates_across_splits"], sum(counts[split]["records"] for split in ("val", "test"))
    if repeated < MANY_REPEATED * n_others:
        return None
    return (
        f"Messages of val and test that are also in train: {repeated:,} of {n_others:,}. They may raise\n"
        "the accuracy; tokenize.messages.deduplicate removes them."
    )


def committed_headline() -> list[Headline]:
    """Return the main results of HEAD; [] if it has none, or those of an older version."""
    with TemporaryDirectory() as folder, suppress(UserError):
        unpack_commit(Path(), "HEAD", ("params.yaml", "metrics"), Path(folder))
        return read_headline(Path(folder, "params.yaml"), Path(folder, "metrics"))
    return []


def results_json(lines: Sequence[Headline], committed: Sequence[Headline]) -> str:
    """Return the results with all their digits, one JSON object per line of the table; null for a missing number.

    committed: the lines of HEAD, none if it has no results.
    """
    there = {(line.subject, line.measure): line.value for line in committed}
    names = ("subject", "measure", "value", "low", "high", "before")
    rows = [
        {name: getattr(line, name) for name in names} | {"head": there.get((line.subject, line.measure))}
        for line in lines
    ]
    return json.dumps(rows, indent=2, ensure_ascii=False)


def results_text(lines: Sequence[Headline], committed: Sequence[Headline]) -> str:
    """Return the table of results, at most WIDTH columns wide, with a column HEAD if some result differs from HEAD's.

    committed: the lines of HEAD, none if it has no results.
    """
    there = {(line.subject, line.measure): line.result for line in committed}
    old = [there.get((line.subject, line.measure), "") for line in lines]
    differs = bool(there) and any(line.result != value for line, value in zip(lines, old, strict=True))
    starts = old if differs else [line.start.partition(" (")[0] for line in lines]
    rows = [
        (
            shortened(line.subject, SUBJECT_CHARACTERS),
            shortened(line.measure.partition(",")[0], MEASURE_CHARACTERS),
            start,
            line.result,
            line.interval,
        )
        for line, start in zip(lines, starts, strict=True)
    ]
    head = ["", "", "HEAD" if differs else "before", "result", "95 % interval"]
    align = ["left", "left", "right", "right", "right"]
    return tabulate(rows, head, disable_numparse=True, colalign=align).replace("\N{NO-BREAK SPACE}", " ")
