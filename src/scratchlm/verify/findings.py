"""The result of verifying a revision."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal[
    "identical", "within tolerance", "not compared",
    "stale", "edited", "damaged", "different", "missing", "failed",
]  # fmt: skip
FINE = ("identical", "within tolerance", "not compared")


@dataclass(frozen=True)
class Finding:
    """The verdict on one file of a stage.

    stale: the stage was built from another version of it. edited: its version in git differs from what the stage
    wrote. damaged: so does a local copy of it. failed: the stage itself. largest: see Difference.
    """

    stage: str
    path: str
    verdict: Verdict
    detail: str = ""
    largest: float | None = None

    @property
    def changes_later_stages(self) -> bool:
        """Whether later stages give different results because of this."""
        return self.verdict in ("different", "missing", "failed")


@dataclass(frozen=True)
class Verification:
    """machines: the committed one and this one, if their arithmetic differs; None if every bit must be the same.

    outside: stages whose results come from a server, or depend on such results; they are compared with a tolerance.
    findings: in the order of the graph, so that the consequences of a fault come after it.
    n_copies: how many files of the local cache and workspace were hashed. remarks: sentences for the reader.
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
        """The findings that are not fine: empty if the revision is what its code builds."""
        return [finding for finding in self.findings if finding.verdict not in FINE]

    @property
    def start(self) -> str | None:
        """The first stage with different results."""
        return next((finding.stage for finding in self.findings if finding.changes_later_stages), None)
