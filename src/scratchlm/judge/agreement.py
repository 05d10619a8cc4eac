"""How far do two judges agree on the same responses?"""

import math
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from scratchlm.judge.protocol import CONTROL, SECOND


def agreement(judged: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how the first and the second judge agree on the responses that both gave a score; {} without a second.

    items: their number. alpha, spearman: of krippendorff_alpha and spearman, where they are defined. Controls are left
    out: they are so easy that two bad judges agree on them.
    """
    if not any(row["model"].startswith(SECOND) for row in judged):
        return {}
    scores = {(row["model"], row["id"]): row["score"] for row in judged if row["score"] is not None}
    shared = [
        (score, scores[SECOND + model, name])
        for (model, name), score in scores.items()
        if (SECOND + model, name) in scores and not model.startswith(CONTROL)
    ]
    ranks = spearman(*zip(*shared, strict=True)) if shared else None
    found = {"items": len(shared), "alpha": krippendorff_alpha(shared), "spearman": ranks}
    return {name: value for name, value in found.items() if value is not None}


def krippendorff_alpha(items: Sequence[Sequence[float]]) -> float | None:
    """Return Krippendorff's α for values on an interval scale: 1 is agreement, 0 what chance would give.

    items: the scores that each item got, one or more; an item with one is left out. None where nothing varies.
    The disagreement within the items over that within all scores: for squared differences, both are variances.
    Source: Krippendorff 2011, Computing Krippendorff's Alpha-Reliability, section D.
    """
    compared = [item for item in items if len(item) > 1]
    scores = [score for item in compared for score in item]
    expected = statistics.variance(scores) if scores else 0.0
    if not expected:
        return None
    return 1 - math.fsum(len(item) * statistics.variance(item) for item in compared) / (len(scores) * expected)


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
