"""A judge measured by a person's scores of a sample: do the two agree, and what would the person's mean be?"""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import covariance, fmean, variance
from typing import Any, NamedTuple

from scratchlm.judge.agreement import spearman
from scratchlm.judge.rating import Ratings, key_of
from scratchlm.tasks.intervals import CONFIDENCE


class Estimate(NamedTuple):
    """A mean with its 95 % interval, which one score does not have."""

    mean: float
    interval: tuple[float, float] | None


class Anchored(NamedTuple):
    """The judge of a variant's responses, measured by a person's scores of some of them.

    judge, person: mean scores, of all responses and of the rated ones. difference: judge less person, on the rated
    ones. corrected: what the person's mean over all responses would be.
    """

    rated: int
    judge: float
    person: float
    difference: Estimate
    spearman: float | None
    corrected: Estimate


def anchored(judged: Iterable[Mapping[str, Any]], ratings: Ratings) -> Anchored | None:
    """judged: the records of one variant, of JUDGEMENT_SCHEMA. None if no response has a score of both."""
    scored = [row for row in judged if row["score"] is not None]
    pairs = [(row["score"], score) for row in scored if (score := ratings.get(key_of(row))) is not None]
    if not pairs:
        return None
    by_judge, by_person = zip(*pairs, strict=True)
    every = [row["score"] for row in scored]
    gaps = [one - other for one, other in pairs]
    spread = math.sqrt(variance(gaps) / len(gaps)) if len(gaps) > 1 else None
    return Anchored(
        rated=len(pairs),
        judge=fmean(every),
        person=fmean(by_person),
        difference=_estimate(fmean(gaps), spread, len(gaps)),
        spearman=spearman(by_judge, by_person),
        corrected=corrected_mean(every, by_judge, by_person),
    )


def corrected_mean(every: Sequence[float], by_judge: Sequence[float], by_person: Sequence[float]) -> Estimate:
    """Return the judge's mean plus the mean of (person less judge) on the rated sample: prediction-powered inference.

    every: the judge's scores of all N responses. by_judge, by_person: the scores of both of the n rated ones, a random
    sample of the N. The mean is unbiased whatever the judge does; a judge that is wrong costs width only. With J for
    the judge's scores and D for the corrections, the variance is var(J) / N + var(D) / n + 2 cov(J, D) / N: the last
    term is there because the rated responses are among all responses.
    Source: Angelopoulos et al. 2023, Prediction-Powered Inference, Science 382, where the two samples are disjoint.
    """
    corrections = [person - judge for judge, person in zip(by_judge, by_person, strict=True)]
    mean, n = fmean(every) + fmean(corrections), len(corrections)
    if n < 2:
        return Estimate(mean, None)
    shared = variance(every) + 2 * covariance(by_judge, corrections)
    return _estimate(mean, math.sqrt(max(0.0, shared / len(every) + variance(corrections) / n)), n)


def _estimate(mean: float, deviation: float | None, n: int) -> Estimate:
    """Student's t, because a person rates few responses. deviation: the standard error."""
    if deviation is None:
        return Estimate(mean, None)
    from scipy import stats  # takes half a second, and only this command needs it

    arm = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * deviation
    return Estimate(mean, (mean - arm, mean + arm))
