"""A verification as a table or as JSON."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict

from tabulate import tabulate

from scratchlm.verify.findings import Verification
from scratchlm.verify.tolerances import stated

HEADINGS = ("", "stage", "file", "result", "difference")


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
    table = tabulate(rows, HEADINGS, tablefmt="plain", disable_numparse=True)
    return "\n".join([table, "", *_tolerances(result), *result.remarks, *_conclusion(result)])


def _tolerances(result: Verification) -> Iterator[str]:
    if result.machines:
        old, new = result.machines
        yield f"Identical bits are not expected here: built with {old}, rebuilt with {new}."
    if result.outside:
        yield f"Identical bits are not expected from {', '.join(result.outside)}: the results come from a server."
    if result.machines or result.outside:
        yield f"Metrics may differ by: {stated()}."


def _conclusion(result: Verification) -> Iterator[str]:
    yield f"Hashed {result.n_copies} copies of outputs in the local cache and workspace."
    counts = Counter(found.verdict for found in result.findings)
    yield f"{result.revision} ({result.sha[:7]}): {', '.join(f'{n} {verdict}' for verdict, n in counts.items())}."
    stages = dict.fromkeys(fault.stage for fault in result.faults)
    start = f" Results differ from stage {result.start} on." if result.start else ""
    yield f"Not verified, because of {', '.join(stages)}.{start}" if stages else "Verified."
