"""Ask the judge of params.yaml which of two revisions answers the same instructions better."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tabulate import tabulate

from scratchlm.compare.compare import BETTER, NO_EVIDENCE, WORSE
from scratchlm.compare.records import ANSWERED, RESPONSES, Unpaired, tasks_of
from scratchlm.compare.revision import PARAMETERS, WORKSPACE, Revision
from scratchlm.compare.text import WIDTH
from scratchlm.judge.pairwise import judge_pairs, pair_metrics, pairwise_judge
from scratchlm.judge.protocol import JudgeParams, Trials
from scratchlm.run import display
from scratchlm.run.errors import UserError
from scratchlm.run.params import Section, read_params
from scratchlm.tasks.variants import ASSISTANT

REPLIES = ".scratchlm/replies"  # as the stage `judge` has it
COUNTED = {"ties by contradiction": "inconsistent", "without a verdict": "failures"}
MEANING = (
    "The judge was asked in both orders which response is better. Answers that contradict each other are ties, and so "
    "are identical responses. A win rate counts half of the ties; at equal length is what it would be if the responses "
    "were as long as those of the baseline. The intervals cover the choice of test examples, not the judge's taste."
)


class _Params(Section):
    judge: JudgeParams


class Pairwise(NamedTuple):
    """A revision (second) against the baseline (first). records: of PAIRWISE_SCHEMA. metrics: of pair_metrics."""

    first: Revision
    second: Revision
    judge: Mapping[str, Any]
    records: list[dict[str, Any]]
    metrics: Mapping[str, Any]


def compare_responses(names: Sequence[str]) -> list[Pairwise]:
    """Compare the assistant's responses of each revision with those of the first one, the baseline.

    A single revision is the baseline of the workspace. Raises UserError if a revision has no responses, or others'
    instructions, or if the judge of the workspace cannot compare two responses.
    """
    first, *others = [Revision(name) for name in (names if len(names) > 1 else [*names, WORKSPACE])]
    params = read_params(first.root / PARAMETERS, _Params).judge
    if not isinstance(params, Trials):
        raise UserError(
            f"judge.backend is {params.backend}, which cannot say which of two responses is better; set judge in "
            "params.yaml to a language model (docs/judge.md)"
        )
    baseline = _rows(first)
    compared = [(other, _pairs(first, baseline, other)) for other in others]
    judge = pairwise_judge(params, first.root / REPLIES)
    judged = [(other, judge_pairs(judge, pairs)) for other, pairs in compared]
    return [Pairwise(first, other, judge.identity, records, pair_metrics(records)) for other, records in judged]


def pairwise_text(outcomes: Sequence[Pairwise], markdown: bool = False) -> str:
    """Return a table per comparison and a verdict."""
    pages = []
    for first, second, judge, _, found in outcomes:
        show = display.markdown if markdown else display.one_line
        title = f"{show(str(second))} compared with {show(str(first))} by {show(judge.get('model', judge['backend']))}"
        pages += [f"### {title}" if markdown else title, _table(found, markdown), _verdict(found, show(second.name))]
    parts = [*pages, MEANING]
    return "\n\n".join(part if markdown or "\n" in part else textwrap.fill(part, WIDTH) for part in parts)


def pairwise_json(outcomes: Sequence[Pairwise]) -> str:
    """Everything, unrounded."""
    values = [
        {
            "baseline": {"revision": first.name, "commit": first.commit},
            "revision": {"revision": second.name, "commit": second.commit},
            "judge": judge,
            "metrics": metrics,
            "records": records,
        }
        for first, second, judge, records, metrics in outcomes
    ]
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)


def _rows(revision: Revision) -> list[dict[str, Any]]:
    return revision.table(RESPONSES.replace(r"\1", ASSISTANT)).to_pylist()


def _pairs(
    first: Revision, baseline: Sequence[dict[str, Any]], other: Revision
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the responses to the same instructions. Raises Unpaired if the instructions differ."""
    rows = _rows(other)
    if tasks_of(rows) != tasks_of(baseline):
        raise Unpaired(
            f"{first.name} and {other.name} have responses to different instructions; build both with the same "
            f"{ANSWERED}"
        )
    by_id = {row["id"]: row for row in rows}
    return [(row | {"model": first.name}, by_id[row["id"]] | {"model": other.name}) for row in baseline]


def _table(found: Mapping[str, Any], markdown: bool) -> str:
    counts = [(name, f"{found[name]}", "") for name in ("responses", "wins", "ties", "losses")]
    counts += [(name, f"{found[key]}", "") for name, key in COUNTED.items() if found[key]]
    rates = [
        (name, f"{found[key]:.3f}", f"{found[f'{key}_low']:.3f} to {found[f'{key}_high']:.3f}")
        for name, key in (("win rate", "win_rate"), ("at equal length", "length_controlled_win_rate"))
    ]
    form = "pipe" if markdown else "simple"
    head, align = ["", "", "95 % interval"], ["left", "right", "right"]
    return tabulate([*counts, *rates], head, tablefmt=form, disable_numparse=True, colalign=align)


def _verdict(found: Mapping[str, Any], name: str) -> str:
    plain, at_equal_length = (_side(found, key) for key in ("win_rate", "length_controlled_win_rate"))
    if plain == NO_EVIDENCE:
        return f"There is {NO_EVIDENCE}."
    return f"{name} is {plain}{'' if at_equal_length == plain else ', but not at equal length'}."


def _side(found: Mapping[str, Any], key: str) -> str:
    low, high = found[f"{key}_low"], found[f"{key}_high"]
    return BETTER if low > 0.5 else WORSE if high < 0.5 else NO_EVIDENCE
