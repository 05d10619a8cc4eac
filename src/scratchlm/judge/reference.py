"""The reference judge: compare a response with the reference answer, without a model."""

from collections.abc import Mapping
from typing import Any

from scratchlm.judge.overlap import normalise, token_f1
from scratchlm.judge.protocol import MAX_SCORE, Judgement


class ReferenceJudge:
    """100 for the reference answer, up to what `normalise` ignores; else 50 times the token overlap (F1).

    It underrates correct answers in other words: a deterministic yardstick, not a language model.
    Source of the overlap: Rajpurkar et al. 2016, section 6.1.
    """

    # version: of what counts as the same text; scores of two versions are not comparable
    identity: dict[str, Any] = {"backend": "reference", "version": 2}
    n_at_once = 1

    def score(self, entry: Mapping[str, str], response: str, repeat: int = 0) -> Judgement:
        wanted, given = normalise(entry["output"]), normalise(response)
        if wanted == given:
            return Judgement(float(MAX_SCORE), "same as the reference answer", "")
        overlap = token_f1(wanted.split(), given.split())
        return Judgement(round(MAX_SCORE / 2 * overlap, 2), f"token overlap {overlap:.2f}, not the same", "")
