"""Refuse judgements that mean nothing: most of them failed, or the judge does not separate its controls."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from scratchlm.run.errors import UserError

QUOTED_CHARACTERS = 200


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
