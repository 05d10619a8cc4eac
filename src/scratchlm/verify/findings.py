"""The result of verifying a revision, also as a table or as JSON."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from tabulate import tabulate

from scratchlm.verify.tolerances import stated

Verdict = Literal[
    "identical", "within tolerance", "not compared",
    "stale", "edited", "damaged", "different", "missing", "failed",
]  # fmt: skip
FINE = ("identical", "within tolerance", "not compared")


@dataclass(frozen=True)
class Finding:
    """The verdict on one file of a stage.

    stale: the stage was built from another version of it. edited: its version in git differs from what the stage
    wrote. damaged: a local copy of it does. failed: the stage itself. largest: see Difference.
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


def verification_json(result: Verification) -> str:
    """Everything, with sorted keys. JSON has no infinity, so an infinite `largest` (of a NaN) is null."""
    values = asdict(result) | {"verified": not result.faults, "start": result.start}
    for found in values["findings"]:
        if found["largest"] is not None and not math.isfinite(found["largest"]):
            found["largest"] = None
    if result.machines or result.outside:
        values["tolerances"] = stated()
    return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)


def verification_text(result: Verification) -> str:
    """One line per file, faults marked, and the conclusion."""
    rows = [("✗" if f in result.faults else "", f.stage, f.path, f.verdict, f.detail) for f in result.findings]
    table = tabulate(rows, ["", "stage", "file", "result", "difference"], tablefmt="plain", disable_numparse=True)
    return "\n".join([table, "", *_sentences(result)])


def _sentences(result: Verification) -> Iterator[str]:
    if result.machines:
        old, new = result.machines
        yield f"Identical bits are not expected here: built with {old}, rebuilt with {new}."
    if result.outside:
        yield f"Identical bits are not expected from {', '.join(result.outside)}: the results come from outside."
    if result.machines or result.outside:
        yield f"Metrics may differ by: {stated()}."
    yield from result.remarks
    yield f"Hashed {result.n_copies} copies of outputs in the local cache and workspace."
    counts = Counter(found.verdict for found in result.findings)
    yield f"{result.revision} ({result.sha[:7]}): {', '.join(f'{n} {verdict}' for verdict, n in counts.items())}."
    stages = dict.fromkeys(fault.stage for fault in result.faults)
    start = f" Results differ from stage {result.start} on." if result.start else ""
    yield f"Not verified, because of {', '.join(stages)}.{start}" if stages else "Verified."
