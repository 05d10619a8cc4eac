"""Comparisons of revisions, and of runs with several seeds, as text, Markdown or JSON."""

import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from scratchlm.compare.changes import Changes
from scratchlm.compare.compare import NOT_COMPARED, SAME, Comparison, Row
from scratchlm.compare.spread import Spread, difference_factor, split
from scratchlm.report.tables import NONE, format_number
from scratchlm.tasks.intervals import CONFIDENCE

WIDTH = 120
NAME_CHARACTERS = 14  # of a revision in a table's head
HASH_CHARACTERS = 8
NAMED = 3  # stages, keys or columns that a message names; it counts the others
DERIVED = ("_low", "_high")  # ends of the intervals of other metrics
MEANING = (
    "The 95 % interval of a change comes from a paired bootstrap over n test examples. It covers the choice of these "
    "examples, not the randomness of training, which `scratchlm seeds` measures. Of twenty metrics that are truly "
    "equal, expect one to get a verdict by chance. In brackets: the number of examples that a difference of the "
    "observed size needs to be detected with a power of 80 %."
)


def comparison_text(comparisons: Sequence[Comparison], everything: bool = False) -> str:
    """One page per comparison. everything: also metrics that are the same, ends of intervals and confusion counts."""
    return "\n\n\n".join(_page(comparison, everything, markdown=False) for comparison in comparisons)


def comparison_markdown(comparisons: Sequence[Comparison], everything: bool = False) -> str:
    """The same pages for a comment on a pull request."""
    return "\n\n".join(_page(comparison, everything, markdown=True) for comparison in comparisons)


def comparison_json(comparisons: Sequence[Comparison]) -> str:
    """Everything, unrounded."""
    values = [
        {
            "baseline": {"revision": comparison.first.name, "commit": comparison.first.commit},
            "revision": {"revision": comparison.second.name, "commit": comparison.second.commit},
            "metrics": [row._asdict() for row in comparison.rows],
            "changes": {kind: [c._asdict() for c in found] for kind, found in comparison.changes._asdict().items()},
            "warnings": comparison.warnings,
        }
        for comparison in comparisons
    ]
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)


def seeds_text(metrics: Mapping[str, Spread]) -> str:
    """A table of the metrics that vary, a line with those that do not, and the meaning of the last column."""
    varying, constant = split(metrics)
    parts = []
    if varying:
        n = len(next(iter(varying.values())).values)
        head = ["metric", "mean", "sd", "min", "max", "minimum detectable difference"]
        parts.append(_table(head, [[name, *map("{:.4g}".format, row[1:])] for name, row in varying.items()], False))
    if constant:
        parts.append(f"The same in all runs: {', '.join(f'{name} {row.mean:.10g}' for name, row in constant.items())}.")
    if varying:
        parts.append(
            "Two single runs that differ by more than the minimum detectable difference can be told apart "
            f"({CONFIDENCE:.0%} confidence). It is t({n - 1}) · √2 · sd, for {n} runs {difference_factor(n):.2f} · sd."
        )
    return "\n\n".join(part if "\n" in part else _wrapped(part) for part in parts)


def seeds_json(stage: str, seeds: Iterable[int], metrics: Mapping[str, Spread]) -> str:
    """The same for programs, unrounded, with the value of each run."""
    values = {name: row._asdict() for name, row in metrics.items()}
    return json.dumps({"stage": stage, "seeds": list(seeds), "metrics": values}, indent=2)


def _page(comparison: Comparison, everything: bool, markdown: bool) -> str:
    first, second, rows = comparison.first, comparison.second, comparison.rows
    notes = list(dict.fromkeys(row.note for row in rows if row.note))
    judged = [row for row in rows if row.verdict and (everything or row.verdict != SAME)]
    same = [row.metric for row in rows if row.verdict == SAME and not everything]
    other = [row for row in rows if not row.verdict and row.difference is not None]
    other = [row for row in other if everything or (row.difference and not _is_derived(row.metric))]
    names = [cut(revision.name, NAME_CHARACTERS) for revision in (first, second)]
    title = f"{second} compared with {first}"
    parts = [f"### {title}" if markdown else title]
    if judged:
        cells = [_judged_cells(row, notes) for row in judged]
        parts.append(_table(["metric", *names, "change", "95 % interval", "n", "verdict"], cells, markdown))
    if same:
        parts.append(f"{SAME.capitalize()}: {', '.join(same)}.")
    if other:
        cells = [
            [row.metric, format_number(row.first), format_number(row.second), difference_cells(row)[0]] for row in other
        ]
        table = _table(["other tracked metrics", *names, "change"], cells, markdown)
        folded = f"<details><summary>other tracked metrics: {len(other)}</summary>\n\n{table}\n\n</details>"
        parts.append(folded if markdown else table)
    parts.append("\n".join(_bullets(["What differs:", *_change_lines(comparison.changes)])))
    one_sided = [
        f"Only {there.name} has {', '.join(files)}."
        for there, files in ((first, _files(rows, missing=2)), (second, _files(rows, missing=1)))
        if files
    ]
    sentences = [*(f"[{i}] {note}." for i, note in enumerate(notes, 1)), *one_sided]
    sentences += [f"{warning}." for warning in comparison.warnings]
    parts += sentences
    if any(row.interval for row in judged):
        parts.append(MEANING)
    return "\n\n".join(part if markdown or "\n" in part else _wrapped(part) for part in parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool) -> str:
    cells = [[cell.replace("|", "\\|") if markdown else cell for cell in row] for row in (head, *rows)]
    align = ["left" if name in ("verdict", head[0]) else "right" for name in head]
    return tabulate(
        cells[1:], cells[0], tablefmt="pipe" if markdown else "simple", disable_numparse=True, colalign=align
    )


def _judged_cells(row: Row, notes: Sequence[str]) -> list[str]:
    needed = f" ({_about(row.needed)})" if row.needed else ""
    mark = f" [{notes.index(row.note) + 1}]" if row.note else ""
    verdict = row.verdict if row.verdict in (SAME, NOT_COMPARED) else row.verdict.removesuffix(" of a difference")
    values = [format_number(row.first), format_number(row.second), *difference_cells(row)]
    return [row.metric, *values, format_number(row.examples), f"{verdict}{needed}{mark}"]


def difference_cells(row: Row) -> tuple[str, str]:
    """The difference and its interval, to the third digit of the largest of these numbers."""
    if row.difference is None:
        return NONE, NONE
    numbers = [row.difference, *(row.interval or ())]
    largest = max(map(abs, numbers))
    decimals = max(0, 2 - math.floor(math.log10(largest))) if largest else 0
    if isinstance(row.difference, int):
        decimals = 0
    signed = [f"{number:+.{decimals}f}".replace("-", "\N{MINUS SIGN}") if number else "0" for number in numbers]
    return signed[0], " to ".join(signed[1:]) or NONE


def _about(count: int) -> str:
    """Two significant digits."""
    return f"{int(float(f'{count:.2g}')):,}" if count < 1_000_000 else "over 1,000,000"


def _change_lines(changes: Changes) -> list[str]:
    kinds = {"parameters": changes.parameters, "packages": changes.packages}
    lines = [
        f"{kind}: {change.name} {_value(change.old)} → {_value(change.new)}"
        for kind, found in kinds.items()
        for change in found
    ]
    lines += [f"data: {c.name} {_hash(c.old)} → {_hash(c.new)}" for c in changes.data]
    lines += [f"code: {change.name} ({first_few(change.stages)})" for change in changes.code]
    return lines or ["nothing in parameters, packages, data or code"]


def _value(value: Any) -> str:
    return cut(format_number(value), 40)


def _hash(value: str | None) -> str:
    return NONE if value is None else value[:HASH_CHARACTERS]


def first_few(names: Sequence[str]) -> str:
    """Return the first names and the number of the others."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _bullets(lines: Sequence[str]) -> list[str]:
    return [lines[0], "", *(f"- {line}" for line in lines[1:])]


def _wrapped(sentence: str) -> str:
    return textwrap.fill(sentence, WIDTH, break_on_hyphens=False)


def _files(rows: Iterable[Row], missing: int) -> list[str]:
    """The metrics files of which the first (1) or second (2) revision lacks a metric."""
    return list(dict.fromkeys(f"metrics/{row.metric.split('.')[0]}.json" for row in rows if row[missing] is None))


def _is_derived(metric: str) -> bool:
    return metric.endswith(DERIVED) or ".confusion." in metric


def cut(text: str, characters: int) -> str:
    """Return at most so many characters of a text, with … for the rest."""
    return text if len(text) <= characters else text[: characters - 1] + "…"
