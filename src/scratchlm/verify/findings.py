"""What verifying a revision gives."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal[
    "identical", "within tolerance", "not compared",
    "stale", "edited", "damaged", "different", "missing", "failed",
]  # fmt: skip
FINE = ("identical", "within tolerance", "not compared")


@dataclass(frozen=True)
class Finding:
    """What was found out about one file of a stage.

    stale: the stage was built from another version of it. edited: in git it is not what the stage wrote.
    damaged: a copy of it that is kept here is not. failed: the stage itself. largest: see Difference.
    """

    stage: str
    path: str
    verdict: Verdict
    detail: str = ""
    largest: float | None = None

    @property
    def is_other_result(self) -> bool:
        """Whether later stages, given this, give other results too."""
        return self.verdict in ("different", "missing", "failed")


@dataclass(frozen=True)
class Verification:
    """machines: the committed one and this one, where their arithmetic differs; None where bits must be the same.

    outside: stages whose results come from a server or follow from such, and are compared with a tolerance.
    findings: in the order of the graph, so that what follows from a fault stands behind it.
    n_copies: how many files of the cache and the workspace here were hashed again. remarks: what a reader should know.
    """

    revision: str
    sha: str
    machines: tuple[str, str] | None
    outside: tuple[str, ...]
    findings: tuple[Finding, ...]
    n_copies: int
    remarks: tuple[str, ...]

    @property
    def faults(self) -> list[Finding]:
        """Empty if the revision is what its code builds."""
        return [finding for finding in self.findings if finding.verdict not in FINE]

    @property
    def start(self) -> str | None:
        """The first stage whose results differ."""
        return next((finding.stage for finding in self.findings if finding.is_other_result), None)
