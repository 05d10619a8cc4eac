"""Comparisons of revisions, and of runs with several seeds, as text, Markdown or JSON."""

import json
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from scratchlm.compare.changes import Changes
from scratchlm.compare.compare import SAME, Comparison, Row, Variant
from scratchlm.compare.records import is_derived
from scratchlm.compare.revision import Revision
from scratchlm.compare.seeds import Spread, difference_factor, varying_and_constant
from scratchlm.report.tables import NONE, format_number, format_parameter, format_signed
from scratchlm.run import display
from scratchlm.tasks.intervals import CONFIDENCE

WIDTH = 120
NAME_CHARACTERS = 14  # of a revision in a table's head
VALUE_CHARACTERS, HASH_CHARACTERS = 40, 8
NAMED = 3  # stages, keys or columns that a message names; it counts the others
OF_A_CLASS = ".classes."  # in the names of metrics of a single class
MEANING = (
    "The 95 % interval of a change comes from a paired bootstrap over n test examples. It covers the choice of these "
    "examples, not the randomness of training, which `scratchlm seeds` measures. Of twenty metrics that are truly "
    "equal, expect one to get a verdict by chance. In brackets: the number of examples that a difference of the "
    "observed size needs to be detected with a power of 80 %."
)


def comparison_text(
    comparisons: Sequence[Comparison], everything: bool = False, markdown: bool = False, width: int = WIDTH
) -> str:
    """One page per comparison. everything: also metrics that are the same, ends of intervals, confusion counts and
    single classes.

    markdown: for a comment on a pull request. width: of the terminal, in columns.
    """
    pages = (_page(comparison, everything, markdown, width) for comparison in comparisons)
    return ("\n\n" if markdown else "\n\n\n").join(pages)


def comparison_json(comparisons: Sequence[Comparison]) -> str:
    """Everything, unrounded."""
    values = [
        {
            "baseline": _identity(first),
            "revision": _identity(second),
            "metrics": [row._asdict() for row in rows],
            "changes": {kind: [change._asdict() for change in found] for kind, found in changes._asdict().items()},
            "warnings": warnings,
        }
        for first, second, rows, changes, warnings in comparisons
    ]
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)


def _identity(side: Revision | Variant) -> dict[str, Any]:
    if isinstance(side, Variant):
        return {**_identity(side.revision), "variant": side.name}
    return {"revision": side.name, "commit": side.commit}


def seeds_text(metrics: Mapping[str, Spread], width: int = WIDTH) -> str:
    """A table of the metrics that vary, a line with those that do not, and the meaning of the last column."""
    varying, constant = varying_and_constant(metrics)
    head = ["metric", "mean", "sd", "min", "max", "minimum detectable difference"]
    rows = [[display.one_line(name), *map(format_number, row[1:])] for name, row in varying.items()]
    parts = [_table(head, rows, width)] if varying else []
    if constant:
        same = ", ".join(f"{display.one_line(name)} {row.mean:.10g}" for name, row in constant.items())
        parts.append(f"The same in all runs: {same}.")
    if varying:
        n = len(next(iter(varying.values())).values)
        parts.append(
            "Two single runs that differ by more than the minimum detectable difference can be told apart "
            f"({CONFIDENCE:.0%} confidence). It is t({n - 1}) · √2 · sd, for {n} runs {difference_factor(n):.2f} · sd."
        )
    return _paragraphs(parts, width)


def seeds_json(stage: str, seeds: Iterable[int], metrics: Mapping[str, Spread]) -> str:
    """The same for programs, unrounded, with the value of each run."""
    values = {name: row._asdict() for name, row in metrics.items()}
    return json.dumps({"stage": stage, "seeds": list(seeds), "metrics": values}, indent=2)


def _page(comparison: Comparison, everything: bool, markdown: bool, width: int) -> str:
    show = display.markdown if markdown else display.one_line
    first, second = comparison.first, comparison.second
    shown = [row for row in comparison.rows if everything or OF_A_CLASS not in row.metric]
    rows = [row._replace(metric=show(row.metric), note=show(row.note)) for row in shown]
    notes = list(dict.fromkeys(row.note for row in rows if row.note))
    judged = [row for row in rows if row.verdict and (everything or row.verdict != SAME)]
    same = [row.metric for row in rows if row.verdict == SAME and not everything]
    other = [row for row in rows if not row.verdict and row.difference is not None]
    if not everything:
        other = [row for row in other if row.difference and not is_derived(row.metric)]
    names = [show(display.shortened(revision.name, NAME_CHARACTERS)) for revision in (first, second)]
    title = f"{show(str(second))} compared with {show(str(first))}"
    parts = [f"### {title}" if markdown else title]
    if judged:
        cells = [_judged_cells(row, notes) for row in judged]
        parts.append(_table(["metric", *names, "change", "95 % interval", "n", "verdict"], cells, width, markdown))
    if same:
        parts.append(f"{SAME.capitalize()}: {', '.join(same)}.")
    if other:
        cells = [_cells(row)[:4] for row in other]
        table = _table(["other tracked metrics", *names, "change"], cells, width, markdown)
        folded = f"<details><summary>other tracked metrics: {len(other)}</summary>\n\n{table}\n\n</details>"
        parts.append(folded if markdown else table)
    parts.append("\n".join(["What differs:", "", *(f"- {line}" for line in _change_lines(comparison.changes, show))]))
    parts += [f"[{i}] {note}." for i, note in enumerate(notes, 1)]
    for side, others in ((first, [row.second for row in rows]), (second, [row.first for row in rows])):
        if lacking := _lacking([row.metric for row in rows], others):
            parts.append(f"Only {show(side.name)} has {', '.join(lacking)}.")
    parts += [f"{show(warning)}." for warning in comparison.warnings]
    if any(row.interval for row in judged):
        parts.append(MEANING)
    return "\n\n".join(parts) if markdown else _paragraphs(parts, width)


def _lacking(metrics: Sequence[str], values: Sequence[float | None]) -> list[str]:
    """The metrics files that lack all or some of these metrics, whose value is None."""
    files: dict[str, set[bool]] = {}
    for metric, value in zip(metrics, values, strict=True):
        files.setdefault(metric.partition(".")[0], set()).add(value is None)
    return [f"metrics/{name}.json{' (in part)' * (False in lack)}" for name, lack in files.items() if True in lack]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int, markdown: bool = False) -> str:
    """The names in the first column get lines of their own if the table is wider than the terminal."""
    align = ["left" if name in ("verdict", head[0]) else "right" for name in head]
    form = "pipe" if markdown else "simple"
    table = tabulate(rows, head, tablefmt=form, disable_numparse=True, colalign=align)
    if markdown or all(len(line) <= width for line in table.splitlines()):
        return table
    lines = tabulate([row[1:] for row in rows], head[1:], disable_numparse=True, colalign=align[1:]).splitlines()
    below = [line for row, cells in zip(rows, lines[2:], strict=True) for line in (row[0], cells.rstrip())]
    return "\n".join([head[0], *lines[:2], *below])


def _paragraphs(parts: Iterable[str], width: int) -> str:
    """Wrap each sentence; a part that has several lines already is a table or a list."""
    wrapped = (part if "\n" in part else textwrap.fill(part, width, break_on_hyphens=False) for part in parts)
    return "\n\n".join(wrapped)


def _cells(row: Row) -> list[str]:
    return [row.metric, format_number(row.first), format_number(row.second), *difference_cells(row)]


def _judged_cells(row: Row, notes: Sequence[str]) -> list[str]:
    needed = f" ({_about(row.needed)})" if row.needed else ""
    mark = f" [{notes.index(row.note) + 1}]" if row.note else ""
    verdict = row.verdict.removesuffix(" of a difference")
    return [*_cells(row), format_number(row.examples), f"{verdict}{needed}{mark}"]


def difference_cells(row: Row) -> tuple[str, str]:
    """The difference and its interval, to the third digit of the largest of these numbers."""
    if row.difference is None:
        return NONE, NONE
    numbers = [row.difference, *(row.interval or ())]
    largest = max(map(abs, numbers))
    decimals = max(0, 2 - math.floor(math.log10(largest))) if largest else 0
    if isinstance(row.difference, int):
        decimals = 0
    signed = [format_signed(number, decimals) if number else "0" for number in numbers]
    return signed[0], " to ".join(signed[1:]) or NONE


def _about(count: int) -> str:
    """Two significant digits."""
    return f"{int(float(f'{count:.2g}')):,}" if count < 1_000_000 else "> 10⁶"


def _change_lines(changes: Changes, show: Callable[[str], str]) -> list[str]:
    def value(of: Any) -> str:
        text = format_parameter(of) if isinstance(of, bool) else format_number(of)
        return show(display.shortened(text or "empty", VALUE_CHARACTERS))

    def hash_(of: str | None) -> str:
        return show(format_number(of)[:HASH_CHARACTERS])

    lines = [f"parameters: {show(c.name)} {value(c.old)} → {value(c.new)}" for c in changes.parameters]
    lines += [f"packages: {show(c.name)} {value(c.old)} → {value(c.new)}" for c in changes.packages]
    lines += [f"data: {show(c.name)} {hash_(c.old)} → {hash_(c.new)}" for c in changes.data]
    lines += [f"code: {show(c.name)} ({show(first_few(c.stages))})" for c in changes.code]
    return lines or ["nothing in parameters, packages, data or code"]


def first_few(names: Sequence[str]) -> str:
    """Return the first names and the number of the others."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
