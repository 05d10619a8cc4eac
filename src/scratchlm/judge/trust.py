"""Can the judge be trusted? Judgements that mean nothing are refused, and the others come with a verdict."""

import math
import statistics
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from scratchlm.run.errors import UserError
from scratchlm.tasks.variants import ASSISTANT

QUOTED_CHARACTERS = 200
MAX_SPREAD, MAX_FAILED_SHARE = 10.0, 0.05  # above them, the verdict is doubtful


def check_trust(judged: Sequence[Mapping[str, Any]], scores: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare the scores by model (of judge_scores) with what they must be.

    Raises UserError if half of a model's responses or more have no score, or if the interval of the mean score of the
    reference answers overlaps that of the shuffled or of the empty ones.
    """
    for model, found in scores.items():
        if 2 * found["failures"] >= found["responses"]:
            last = next(row for row in reversed(judged) if row["model"] == model and row["score"] is None)
            raise no_scores(f"{found['failures']} of {found['responses']} responses ({model}) have no score", last)
    reference = scores.get("control_reference")
    others = [scores[name] for name in ("control_shuffled", "control_empty") if name in scores]
    if reference and any(other["mean_high"] >= reference["mean_low"] for other in others):
        means = ", ".join(
            f"{name.removeprefix('control_')} {found['mean_score']:.3g} "
            f"({found['mean_low']:.3g} to {found['mean_high']:.3g})"
            for name, found in scores.items()
            if name.startswith("control_")
        )
        raise UserError(
            f"the judge does not separate its controls (mean scores {means}), so its other scores mean nothing; choose "
            "another judge.model, or raise judge.controls if only the intervals overlap"
        )


def trust(judged: Sequence[Mapping[str, Any]], scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the trials say of a language model that judges, with a verdict in words.

    spread: the standard deviation of the scores of one response that was judged again, 0 to 100. length_correlation:
    Spearman's, of the assistant's scores with the number of characters. failed_share: of all replies.
    """
    by_model = {name: {r["id"]: r for r in judged if r["model"] == name and r["score"] is not None} for name in scores}
    assistant = by_model.get(ASSISTANT, {})
    repeats = [rows for name, rows in by_model.items() if name.startswith("repeat_")]
    judged_again = [name for name in assistant if all(name in rows for rows in repeats)]
    again = [[rows[name]["score"] for rows in (assistant, *repeats)] for name in judged_again]
    found: dict[str, Any] = {"failed_share": sum(row["score"] is None for row in judged) / len(judged)}
    if repeats and again:
        found["repeated"] = len(again)
        found["spread"] = math.sqrt(math.fsum(statistics.variance(group) for group in again) / len(again))
    rows = assistant.values()
    correlation = spearman([len(row["response"]) for row in rows], [row["score"] for row in rows])
    if correlation is not None:
        found["length_correlation"] = correlation
    return found | {"verdict": _verdict(found, scores)}


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the correlation of the ranks, tied values sharing theirs; None where one side has no variation.

    Source: Spearman 1904.
    """
    ranks = [_ranks(values) for values in (first, second)]
    middle = (len(first) + 1) / 2
    a, b = ([rank - middle for rank in side] for side in ranks)
    scale = math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / scale if scale else None


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [(bisect_left(ordered, value) + bisect_right(ordered, value) + 1) / 2 for value in values]


def _verdict(found: Mapping[str, Any], scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the sentence on a judge that check_trust lets pass."""
    controls = {name.removeprefix("control_"): s for name, s in scores.items() if name.startswith("control_")}
    if not {"reference", "shuffled"} <= controls.keys():
        return "not known: no controls were judged"
    doubts = []
    if "injected" in controls and controls["injected"]["mean_low"] > controls["shuffled"]["mean_high"]:
        mean, plain = controls["injected"]["mean_score"], controls["shuffled"]["mean_score"]
        doubts.append(f"a response that demands 100 points gets {mean:.3g} instead of {plain:.3g}")
    if found.get("spread", 0.0) > MAX_SPREAD:
        doubts.append(f"its scores of one response differ by {found['spread']:.3g} (standard deviation)")
    if found["failed_share"] > MAX_FAILED_SHARE:
        doubts.append(f"{100 * found['failed_share']:.3g} % of its replies are no verdict")
    return "; ".join(["the controls separate", *(f"but {doubt}" for doubt in doubts)])


def failures(judged: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each reason why responses have no score."""
    reasons = Counter(row["reason"] or "no reply had the form of a verdict" for row in judged if row["score"] is None)
    return [f"{n} of {len(judged)} responses have no score: {reason}" for reason, n in reasons.items()]


def no_scores(trouble: str, row: Mapping[str, Any]) -> UserError:
    """Return the error for too many failures. row: the last of them."""
    reason = f" ({row['reason']})" if row["reason"] else ""
    return UserError(
        f"{trouble}; the last reply was {row['raw_reply'][:QUOTED_CHARACTERS]!r}{reason}; "
        "choose another judge.model, or raise judge.context_tokens or judge.max_new_tokens if a text was cut"
    )
