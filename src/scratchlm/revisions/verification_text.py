"""A verification as a table for people, or as JSON for programs."""

import json
from collections import Counter
from dataclasses import asdict

from scratchlm.revisions.findings import Verification
from scratchlm.revisions.tolerances import stated

HEADINGS = ("stage", "file", "result", "how far")


def as_json(result: Verification) -> str:
    """Everything, with sorted keys."""
    values = asdict(result) | {"verified": not result.faults}
    if result.machines:
        values["tolerances"] = stated()
    return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False)


def as_text(result: Verification) -> str:
    """One line per output, faults marked, and what comes of it."""
    rows = [HEADINGS, *((f.stage, f.path, f.verdict, f.detail) for f in result.findings)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    marks = [" ", *("✗" if finding in result.faults else " " for finding in result.findings)]
    table = [
        f"{mark} "
        + "  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[3]]).rstrip()
        for mark, row in zip(marks, rows, strict=True)
    ]
    return "\n".join([*table, "", *result.remarks, *_arithmetic(result), *_conclusion(result)])


def _arithmetic(result: Verification) -> list[str]:
    if not result.machines:
        return []
    old, new = result.machines
    return [
        f"Identical bits are not expected here: it was built with the arithmetic {old}, this machine has {new}.",
        f"Metrics may differ by: {stated()}.",
    ]


def _conclusion(result: Verification) -> list[str]:
    counts = Counter(finding.verdict for finding in result.findings)
    counted = ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
    lines = [
        f"{result.n_copies} copies in the cache and the workspace here were hashed again.",
        f"{result.revision} ({result.sha[:7]}): {counted}.",
    ]
    if result.faults:
        first = result.faults[0]
        lines.append(f"Not verified: the first fault is in stage {first.stage}.")
    else:
        lines.append("Verified.")
    return lines
