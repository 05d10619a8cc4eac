"""Compare one stage: what is committed of it with what was built."""

import math
from collections.abc import Iterator
from pathlib import Path

from scratchlm.compare.text import first_few
from scratchlm.run.files import read_json
from scratchlm.verify.commit import CommittedStage, Output
from scratchlm.verify.copies import intact, members, name_of
from scratchlm.verify.diff import Difference, difference
from scratchlm.verify.findings import Finding
from scratchlm.verify.rebuild import Rebuild
from scratchlm.verify.tolerances import deviations

ARITHMETIC = "metrics/preflight.json"  # identifies the arithmetic of the machine that builds
INEXACT = {"scipy", "tensorflow", "torch"}  # the last bits of their results depend on the machine
NOT_HERE = Difference("the hashes differ; the committed file is not in the cache here")


class StageCheck:
    """Compares one stage.

    cache: may have objects of the committed outputs. other_machine: the arithmetic here differs from that of the
    machine that built. outside: the results come from a server, or depend on such results. start: the first stage
    upstream with different results, or "".
    """

    def __init__(
        self, stage: CommittedStage, rebuild: Rebuild, cache: Path, *, other_machine: bool, outside: bool, start: str
    ) -> None:
        self._stage, self._rebuild, self._cache, self._other_machine = stage, rebuild, cache, other_machine
        self._built = rebuild.stages.get(stage.name)
        self._follows = f"; follows from {start}" if start else ""
        inputs = self._built.inputs if self._built else {}
        self._other_inputs = [path for path, md5 in stage.inputs.items() if inputs.get(path, md5) != md5]
        inexact = other_machine and (self._packages() & INEXACT or self._other_inputs)
        self._to_the_bit = not (outside or inexact)

    def _packages(self) -> set[str]:
        record = self._rebuild.clone / (self._stage.code or "")
        return set(read_json(record)["packages"]) if record.is_file() else set()

    def findings(self) -> Iterator[Finding]:
        """Yield a verdict on its stale inputs, on the stage if it failed, and on each of its outputs."""
        name, failed = self._stage.name, self._rebuild.failed
        for path, detail in self._stage.stale.items():
            yield Finding(name, path, "stale", detail)
        if failed and failed[0] == name:
            yield Finding(name, "", "failed", failed[1])
        if self._to_the_bit and not self._follows:
            for path in self._other_inputs:
                yield Finding(
                    name,
                    path,
                    "stale",
                    "built from a version that differs from the one in dvc.lock of the stage that makes it",
                )
        for output in self._stage.outputs:
            yield from self._compared(output)

    def _compared(self, output: Output) -> Iterator[Finding]:
        name, path = self._stage.name, output.path
        rebuilt_md5 = self._built.outputs.get(path) if self._built else None
        if output.edited:
            edit = self._edit(path)
            yield Finding(name, path, "edited", edit.text, edit.largest)
        elif output.md5 is None:
            yield Finding(name, path, "missing", "dvc.lock does not have it")
        elif rebuilt_md5 is None:
            yield Finding(name, path, "missing", f"was not rebuilt{self._follows}")
        elif rebuilt_md5 == output.md5:
            yield Finding(name, path, "identical")
        elif self._to_the_bit:
            for member, found in self._how_far(output, output.md5, rebuilt_md5):
                yield Finding(name, name_of(output, member), "different", found.text + self._follows, found.largest)
        elif output.is_metric and path != ARITHMETIC:
            yield self._within_tolerance(path)
        else:
            yield Finding(name, path, "not compared")

    def _edit(self, path: str) -> Difference:
        if not (self._rebuild.committed / path).exists():
            return Difference("is in dvc.lock, but not in git")
        found = self._in_git(path) if self._built else None
        if found is None:
            return Difference("differs from what dvc.lock records")
        return Difference(f"differs from what dvc.lock records: {found.text} when rebuilt", found.largest)

    def _in_git(self, path: str) -> Difference | None:
        return difference(self._rebuild.committed / path, self._rebuild.clone / path, path)

    def _within_tolerance(self, path: str) -> Finding:
        found = deviations(*(read_json(folder / path) for folder in (self._rebuild.committed, self._rebuild.clone)))
        beyond = [deviation for deviation in found if not deviation.within]
        named = [f"{d.key} {d.committed} → {d.rebuilt} (may differ by {d.allowed:.3g})" for d in beyond or found]
        largest = max((deviation.distance for deviation in found if deviation.distance < math.inf), default=None)
        if beyond:
            return Finding(self._stage.name, path, "different", first_few(named) + self._follows, largest)
        return Finding(self._stage.name, path, "within tolerance", first_few(named), largest)

    def _how_far(self, output: Output, md5: str, rebuilt_md5: str) -> Iterator[tuple[str, Difference]]:
        """Yield each differing file of an output by its path within it."""
        if not output.cached:
            yield "", self._in_git(output.path) or NOT_HERE
            return
        old, built = members(md5, [self._cache, self._rebuild.cache]), members(rebuilt_md5, [self._rebuild.cache])
        if old is None or built is None:
            yield "", NOT_HERE
            return
        for member in sorted(set(old) | set(built)):
            if member not in old or member not in built:
                yield member, Difference(f"is only {'committed' if member in old else 'rebuilt'}")
            elif old[member] != built[member]:
                kept, new = intact(self._cache, old[member]), intact(self._rebuild.cache, built[member])
                found = difference(kept, new, name_of(output, member)) if kept and new else None
                yield member, found or NOT_HERE
