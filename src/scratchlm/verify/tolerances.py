"""Tolerances for metrics where the arithmetic differs: another processor class, another device, a judge's server.

The last bits of every sum then differ, and training amplifies them. LOG.md has measurements.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from scratchlm.run.nested import leaves
from scratchlm.verify.diff import differing, gap


class Tolerance(NamedTuple):
    """The limit for metrics whose last key, or `confusion` above it, matches `pattern`: the largest of the three.

    relative: a proportion of the committed value. of_examples: a proportion of the counted examples.
    """

    name: str
    pattern: str
    absolute: float
    relative: float = 0.0
    of_examples: float = 0.0

    def allowed(self, committed: float, n_examples: float) -> float:
        """Return the largest difference that passes."""
        return max(self.absolute, self.relative * abs(committed), self.of_examples * n_examples)

    def __str__(self) -> str:
        proportions = {"of the value": self.relative, "of all examples": self.of_examples}
        others = (f" or {100 * x:g} % {of}" for of, x in proportions.items() if x)
        return f"{self.name} {self.absolute:g}{''.join(others)}"


TOLERANCES = (
    Tolerance("losses", r".*loss|perplexity|bits_per_byte", 0.005, relative=0.02),
    Tolerance(
        "proportions",
        r"accuracy(_low|_high)?|(macro_)?(precision|recall|f1)|auroc|calibration_error|.*_share|.*win_rate(_low|_high)?",
        0.03,
    ),
    Tolerance("agreement", r"alpha|spearman|length_correlation", 0.05),
    Tolerance("rewards", r"(.*_)?reward(_before)?|gain(_low|_high)?|margin|kl_per_token", 0.05, relative=0.05),
    Tolerance("scores of 100", r"mean_(score|low|high)|spread|reordered_mean_change", 3),
    Tolerance(
        "counted answers",
        r"exact_matches|finished|failures|wins|ties|losses|inconsistent|items|confusion",
        1,
        of_examples=0.03,
    ),
)
EXACT = "everything else (counts of data, hashes, names) must be the same"


class Deviation(NamedTuple):
    """A metric that differs. allowed: 0 where it must be the same."""

    key: str
    committed: Any
    rebuilt: Any
    distance: float
    allowed: float

    @property
    def within(self) -> bool:
        return self.distance <= self.allowed


def deviations(committed: Any, rebuilt: Any) -> list[Deviation]:
    """Return every value that differs between two metrics files, as read from JSON; those out of tolerance first."""
    old, new = dict(leaves(committed)), dict(leaves(rebuilt))
    found = []
    for key in differing(old, new):
        distance = gap(old.get(key), new.get(key))
        tolerance = next((t for t in TOLERANCES if re.fullmatch(t.pattern, _parts(key)[1])), None)
        allowed = 0.0
        if distance is None:
            distance = math.inf
        elif tolerance:
            allowed = tolerance.allowed(float(old[key]), _examples(old, key))
        found.append(Deviation(key, old.get(key), new.get(key), distance, allowed))
    return sorted(found, key=lambda deviation: deviation.within)


def stated() -> str:
    """Return the tolerances in one line."""
    return "; ".join([*map(str, TOLERANCES), EXACT])


def _examples(metrics: Mapping[str, Any], key: str) -> float:
    """Return the number of examples for a count: the `responses` beside it, or the sum of the counts beside it."""
    section = _parts(key)[0]
    counts = [value for name, value in metrics.items() if _parts(name)[0] == section and isinstance(value, int)]
    return metrics.get(f"{section}.responses".removeprefix("."), sum(counts))


def _parts(key: str) -> tuple[str, str]:
    """The section of a metric and its last key; the names of classes, which may have dots, are no keys."""
    section, found, _ = key.partition(".confusion.")
    return (f"{section}.confusion", "confusion") if found else (key.rpartition(".")[0], key.rpartition(".")[2])
