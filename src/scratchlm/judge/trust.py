"""Can the judge be trusted? Judgements that mean nothing are refused, and the others come with a verdict."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from scratchlm.judge.agreement import agreement, spearman
from scratchlm.judge.protocol import CONTROL, REORDERED, REPEAT, SECOND
from scratchlm.run.errors import UserError
from scratchlm.tasks.variants import ASSISTANT

QUOTED_CHARACTERS = 200
MAX_SPREAD, MAX_REORDERED_CHANGE, MAX_FAILED_SHARE = 10.0, 2.0, 0.05  # above them, the verdict is doubtful
MIN_ALPHA = 0.667  # below it no conclusion is safe: Krippendorff 2004, Content Analysis, section 11.4


def check_trust(judged: Sequence[Mapping[str, Any]], scores: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare the scores by model (of judge_scores) with what they must be, for each judge.

    Raises UserError if half of a model's responses or more have no score, or if the interval of the mean score of the
    reference answers overlaps that of the shuffled or of the empty ones.
    """
    for model, found in scores.items():
        if 2 * found["failures"] >= found["responses"]:
            last = next(row for row in reversed(judged) if row["model"] == model and row["score"] is None)
            raise no_scores(f"{found['failures']} of {found['responses']} responses ({model}) have no score", last)
    for judge in ("", SECOND):
        controls = _controls(scores, judge)
        others = [controls[name] for name in ("shuffled", "empty") if name in controls]
        if "reference" in controls and any(o["mean_high"] >= controls["reference"]["mean_low"] for o in others):
            means = ", ".join(
                f"{name} {found['mean_score']:.3g} ({found['mean_low']:.3g} to {found['mean_high']:.3g})"
                for name, found in controls.items()
            )
            raise UserError(
                f"the {'second ' if judge else ''}judge does not separate its controls (mean scores {means}), so its "
                f"other scores mean nothing; choose another {_section(judge)}.model, or raise judge.controls if only "
                "the intervals overlap"
            )


def trust(judged: Sequence[Mapping[str, Any]], scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the trials say of a language model that judges, with a verdict in words.

    spread: the standard deviation of the scores of one response that was judged again, 0 to 100. length_correlation:
    Spearman's, of the assistant's scores with the number of characters. reordered_mean_change: the mean
    distance of the scores of responses that were judged again in reverse order. failed_share: of all its replies.
    """
    own = [row for row in judged if not row["model"].startswith(SECOND)]
    by_model = {name: {r["id"]: r for r in own if r["model"] == name and r["score"] is not None} for name in scores}
    assistant = by_model.get(ASSISTANT, {})
    repeats = [rows for name, rows in by_model.items() if name.startswith(REPEAT)]
    judged_again = [name for name in assistant if all(name in rows for rows in repeats)]
    again = [[rows[name]["score"] for rows in (assistant, *repeats)] for name in judged_again]
    found: dict[str, Any] = {"failed_share": sum(row["score"] is None for row in own) / len(own)}
    if repeats and again:
        found["repeated"] = len(again)
        found["spread"] = math.sqrt(math.fsum(statistics.variance(group) for group in again) / len(again))
    other_order = by_model.get(REORDERED, {})
    if changes := [abs(assistant[i]["score"] - other_order[i]["score"]) for i in other_order if i in assistant]:
        found["reordered"] = len(changes)
        found["reordered_changed_share"] = sum(change > 0 for change in changes) / len(changes)
        found["reordered_mean_change"] = math.fsum(changes) / len(changes)
    rows = assistant.values()
    correlation = spearman([len(row["response"]) for row in rows], [row["score"] for row in rows])
    if correlation is not None:
        found["length_correlation"] = correlation
    return found | {"verdict": _verdict(found | {"alpha": agreement(judged).get("alpha", 1.0)}, scores)}


def _verdict(found: Mapping[str, Any], scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the sentence on a judge that check_trust lets pass."""
    controls = _controls(scores)
    if not {"reference", "shuffled"} <= controls.keys():
        return "not known: no controls were judged"
    doubts = []
    if "injected" in controls and controls["injected"]["mean_low"] > controls["shuffled"]["mean_high"]:
        mean, plain = controls["injected"]["mean_score"], controls["shuffled"]["mean_score"]
        doubts.append(f"a response that demands 100 points gets {mean:.3g} instead of {plain:.3g}")
    if found.get("spread", 0.0) > MAX_SPREAD:
        doubts.append(f"its scores of one response differ by {found['spread']:.3g} (standard deviation)")
    if found.get("reordered_mean_change", 0.0) > MAX_REORDERED_CHANGE:
        change = found["reordered_mean_change"]
        doubts.append(f"its scores change by {change:.3g} on average when it is asked in another order")
    if found["failed_share"] > MAX_FAILED_SHARE:
        doubts.append(f"{100 * found['failed_share']:.3g} % of its replies are no verdict")
    if found["alpha"] < MIN_ALPHA:
        doubts.append(f"the second judge agrees with it too little (alpha {found['alpha']:.3g})")
    return "; ".join(["the controls separate", *(f"but {doubt}" for doubt in doubts)])


def _controls(scores: Mapping[str, Any], judge: str = "") -> dict[str, Any]:
    """Return the scores of the controls by name. judge: "" or SECOND."""
    prefix = judge + CONTROL
    return {name.removeprefix(prefix): found for name, found in scores.items() if name.startswith(prefix)}


def _section(model: str) -> str:
    """Return the section of params.yaml of the judge that gave a record this model."""
    return "judge.second" if model.startswith(SECOND) else "judge"


def failures(judged: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each reason why responses have no score."""
    reasons = Counter(row["reason"] or "no reply had the form of a verdict" for row in judged if row["score"] is None)
    return [f"{n} of {len(judged)} responses have no score: {reason}" for reason, n in reasons.items()]


def no_scores(trouble: str, row: Mapping[str, Any]) -> UserError:
    """Return the error for too many failures. row: the last of them."""
    reason, section = f" ({row['reason']})" if row["reason"] else "", _section(row["model"])
    return UserError(
        f"{trouble}; the last reply was {row['raw_reply'][:QUOTED_CHARACTERS]!r}{reason}; "
        f"choose another {section}.model, or raise {section}.context_tokens or {section}.max_new_tokens if a text was "
        "cut"
    )
