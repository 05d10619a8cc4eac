"""Conditions on a comparison that let continuous integration fail: `--fail-if`."""

import difflib
import re
from collections.abc import Sequence
from typing import NamedTuple

from scratchlm.compare.compare import NOT_COMPARED, WORSE, Comparison, Row
from scratchlm.compare.text import OF_A_CLASS, first_few
from scratchlm.report.tables import format_number
from scratchlm.run.errors import UserError

DECIMALS = 9  # of a change, so that 0.95 − 0.93 is 0.02
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_FORM = re.compile(rf"(?:(\S+)\s+)?{WORSE}|(\S+?)\s*(<|>|\s(?:drops|rises)\s)\s*({_NUMBER})")


class Condition(NamedTuple):
    """`worse` (the metric is None), `METRIC worse`, or a metric with a relation (<, >, drops, rises) and a number."""

    text: str
    metric: str | None
    relation: str
    number: float


def parse_conditions(texts: Sequence[str]) -> list[Condition]:
    """Raises UserError for a text that is no condition: before hours of work, not after."""
    found = []
    for text in texts:
        if not (match := _FORM.fullmatch(text.strip())):
            raise UserError(
                f"--fail-if is {text!r}, but must be `worse`, `METRIC worse`, or a metric with <, >, drops or rises "
                "and a number, such as `judge.instruct.mean_score < 70`; correct it"
            )
        metric, limited, relation, number = match.groups()
        found.append(Condition(text, metric or limited, (relation or WORSE).strip(), float(number or 0)))
    return found


def reasons(conditions: Sequence[Condition], comparisons: Sequence[Comparison]) -> list[str]:
    """One sentence for each metric that fulfils a condition, in any of the comparisons.

    Raises UserError if that cannot be told: the metric does not exist or was not compared, or results are out of date.
    """
    found = [
        f"{comparison.second}: {reason} (--fail-if {condition.text!r})"
        for comparison in comparisons
        for condition in conditions
        for reason in _reasons(condition, comparison)
    ]
    return list(dict.fromkeys(found))


def _reasons(condition: Condition, comparison: Comparison) -> list[str]:
    if comparison.warnings:
        raise UserError(f"--fail-if {condition.text!r}: {comparison.warnings[0]}")
    rows = _rows(condition, comparison)
    needs_pairs = condition.relation not in ("<", ">")
    if needs_pairs and (lacking := [row for row in rows if row.verdict == NOT_COMPARED]):
        names = first_few([row.metric for row in lacking])
        raise UserError(f"--fail-if {condition.text!r}: {names} cannot be told: {lacking[0].note}")
    return [reason for row in rows if (reason := _reason(condition, row))]


def _rows(condition: Condition, comparison: Comparison) -> list[Row]:
    """The rows of the metrics that a condition is about: those with a verdict, or the one that it names."""
    if condition.metric is None:
        rows = [row for row in comparison.rows if row.verdict and OF_A_CLASS not in row.metric]
        known, wanted = bool(rows), "a metric with a verdict"
    else:
        rows = [row for row in comparison.rows if row.metric == condition.metric]
        needs_both = condition.relation in ("drops", "rises")
        values = [value for row in rows for value in ((row.first, row.second) if needs_both else (row.second,))]
        has_verdict = condition.relation != WORSE or any(row.verdict for row in rows)
        known, wanted = bool(rows) and None not in values and has_verdict, condition.metric
    if not known:
        possible = [row.metric for row in comparison.rows if row.verdict or condition.relation != WORSE]
        near = difflib.get_close_matches(wanted, possible, n=1)
        hint = f" (did you mean {near[0]}?)" if near and near[0] != wanted else ""
        kind = "a verdict on" if condition.relation == WORSE else "the metric"
        raise UserError(
            f"--fail-if {condition.text!r}: {comparison.second} compared with {comparison.first} lacks {kind} "
            f"{wanted}{hint}; --format json lists every metric"
        )
    return rows


def _reason(condition: Condition, row: Row) -> str | None:
    limit, values = format_number(condition.number), f"{format_number(row.first)} → {format_number(row.second)}"
    if condition.relation == WORSE:
        return f"{row.metric} is worse, {values}" if row.verdict == WORSE else None
    assert row.second is not None
    if condition.relation in ("<", ">"):
        is_below, side = condition.relation == "<", "below" if condition.relation == "<" else "above"
        crossed = row.second < condition.number if is_below else row.second > condition.number
        return f"{row.metric} is {format_number(row.second)}, {side} {limit}" if crossed else None
    assert row.first is not None
    change = round(row.second - row.first, DECIMALS) * (-1 if condition.relation == "drops" else 1)
    return f"{row.metric} {condition.relation} by {limit} or more, {values}" if change >= condition.number else None
