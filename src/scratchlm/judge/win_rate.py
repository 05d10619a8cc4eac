"""Win rates of a system over a baseline: plain, and corrected for the length of the responses."""

import math
from collections.abc import Sequence

from scratchlm.tasks.intervals import QUANTILE, paired_share_interval

PRIOR_SCALE = 2.5  # standard deviation of the length's weight, which keeps it finite. Gelman et al. 2008
LONGEST_STEP, MAX_STEPS, PRECISION = 1.0, 200, 1e-12  # of Newton's method


def win_rate(wins: Sequence[float]) -> tuple[float, float, float]:
    """Return the share of wins, half of the ties included, with its 95 % interval.

    wins: 1 for a win, 0.5 for a tie, 0 for a loss. Each is a pair of correct and wrong, so the interval is that of
    paired proportions: Bonett and Price 2012.
    """
    low, high = paired_share_interval(wins.count(1.0), wins.count(0.0), len(wins))
    return math.fsum(wins) / len(wins), max((1 + low) / 2, 0.0), min((1 + high) / 2, 1.0)


def length_controlled_win_rate(wins: Sequence[float], differences: Sequence[float]) -> tuple[float, float, float]:
    """Return the win rate that the system would have if its responses were as long as the baseline's; 95 % interval.

    A logistic regression of the wins: ln(p / (1 - p)) = system + weight · tanh(difference / spread), where spread is
    the root mean square of the differences. The result is p at a difference of 0. A win and a loss are added there, as
    in Bonett and Price 2012: without them, a system that always wins would have an infinite logit. The interval comes
    from the sandwich estimator, which is right for ties, too (Huber 1967).
    wins: as in win_rate. differences: length of the response less that of the baseline, in any unit.
    Source: Dubois et al. 2024, Length-Controlled AlpacaEval, section 3, without its term for the difficulty of each
    instruction, which takes the answers of many systems to estimate.
    """
    spread = math.sqrt(math.fsum(d * d for d in differences) / len(differences)) or 1.0
    lengths = [math.tanh(d / spread) for d in differences] + [0.0, 0.0]
    won = [*wins, 1.0, 0.0]
    system = weight = 0.0
    for _ in range(MAX_STEPS):
        residuals, curvature = _derivatives(system, weight, lengths, won)
        slope = math.fsum(r * x for r, x in zip(residuals, lengths, strict=True)) - weight / PRIOR_SCALE**2
        step = _solved(curvature, math.fsum(residuals), slope)
        size = math.hypot(*step)
        scale = min(1.0, LONGEST_STEP / size) if size else 0.0
        system, weight = system + scale * step[0], weight + scale * step[1]
        if size < PRECISION:
            break
    residuals, curvature = _derivatives(system, weight, lengths, won)
    influences = (_solved(curvature, r, r * x)[0] for r, x in zip(residuals, lengths, strict=True))
    arm = QUANTILE * math.sqrt(math.fsum(influence**2 for influence in influences))
    return _logistic(system), _logistic(system - arm), _logistic(system + arm)


def _derivatives(
    system: float, weight: float, lengths: Sequence[float], won: Sequence[float]
) -> tuple[list[float], tuple[float, float, float]]:
    """Return each example's residual, and the curvature of the penalised likelihood: (a, b, c) of [[a, b], [b, c]]."""
    expected = [_logistic(system + weight * x) for x in lengths]
    weighted = [(p * (1 - p), x) for p, x in zip(expected, lengths, strict=True)]
    a, b, c = (
        math.fsum(w for w, _ in weighted),
        math.fsum(w * x for w, x in weighted),
        math.fsum(w * x * x for w, x in weighted),
    )
    return [y - p for y, p in zip(won, expected, strict=True)], (a, b, c + 1 / PRIOR_SCALE**2)


def _solved(matrix: tuple[float, float, float], first: float, second: float) -> tuple[float, float]:
    """Return the solution of a symmetric system of two equations."""
    a, b, c = matrix
    determinant = a * c - b * b
    return (c * first - b * second) / determinant, (a * second - b * first) / determinant


def _logistic(x: float) -> float:
    return 0.5 + 0.5 * math.tanh(x / 2)  # does not overflow
