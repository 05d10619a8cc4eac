"""Is what is committed what its code builds? A commit rebuilt from nothing and compared with itself."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from scratchlm.artifacts import read_json
from scratchlm.revisions.committed import Commit, Output, Stage, chosen, git, read_commit
from scratchlm.revisions.copies import Copies, intact, members, name_of
from scratchlm.revisions.differences import Difference, difference, first_few
from scratchlm.revisions.findings import Finding, Verification
from scratchlm.revisions.rebuild import Rebuild, rebuilt
from scratchlm.revisions.tolerances import deviations

ARITHMETIC = "metrics/preflight.json"  # what the first stage says of the machine that builds
INEXACT = {"scipy", "tensorflow", "torch"}  # packages whose results have last bits that depend on the machine
ASTRAY = ("stale", "failed", "different", "missing")  # what a later stage's difference can follow from
NOT_HERE = Difference("the hashes differ; the committed file is not in the cache here")


def verify(folder: Path, revision: str, names: Sequence[str] = ()) -> Verification:
    """Rebuild `revision` of the repository around `folder`, or the named stages of it, and compare.

    Raises ValueError with one sentence if there is no such repository, revision or stage.
    """
    commit = read_commit(folder, revision)
    stages = chosen(commit, names)
    external = {stage.name for stage in stages if stage.external}
    findings: list[Finding] = []
    with rebuilt(commit, stages) as rebuild:
        machines = _machines(stages, rebuild)
        copies = Copies(commit, rebuild)
        for stage in stages:
            astray = [found.stage for found in findings if found.verdict in ASTRAY and found.stage in stage.upstream]
            inexact = machines is not None and bool(stage.packages & INEXACT)
            outside = bool(external & {stage.name, *stage.upstream})
            findings += _Comparison(commit, rebuild, stage, machines, inexact, outside, astray).findings()
            findings += copies.damaged(stage)
        remarks = tuple(_remarks(commit, rebuild))
    return Verification(revision, commit.sha, machines, tuple(findings), copies.n_checked, remarks)


def _machines(stages: Sequence[Stage], rebuild: Rebuild) -> tuple[str, str] | None:
    """The machine that built what is committed and this one, if their arithmetic differs."""
    committed, here = (folder / ARITHMETIC for folder in (rebuild.committed, rebuild.clone))
    edited = any(output.edited for stage in stages for output in stage.outputs if output.path == ARITHMETIC)
    if edited or not (committed.exists() and here.exists()):
        return None
    old, new = (" ".join(map(str, read_json(path).values())) for path in (committed, here))
    return None if old == new else (old, new)


def _remarks(commit: Commit, rebuild: Rebuild) -> Iterator[str]:
    if git(commit.root, "status", "--porcelain", "--untracked-files=no"):
        yield f"Uncommitted changes are not looked at: {commit.revision} is verified as it is committed."
    if not (rebuild.committed / ARITHMETIC).exists():
        yield f"{commit.revision} has no {ARITHMETIC}, so that other arithmetic looks like a mistake."


class _Comparison:
    """One stage: what dvc.lock records of it and what was built."""

    def __init__(
        self, commit: Commit, rebuild: Rebuild, stage: Stage, machines: tuple[str, str] | None,
        inexact: bool, outside: bool, astray: Sequence[str],
    ) -> None:  # fmt: skip
        self._commit, self._rebuild, self._stage, self._machines = commit, rebuild, stage, machines
        self._built = rebuild.stages.get(stage.name)
        self._follows = f"; follows from {astray[0]}" if astray else ""
        self._other_inputs = [
            path
            for path, md5 in (self._built.inputs if self._built else {}).items()
            if md5 != stage.inputs.get(path) and path not in stage.stale
        ]
        self._exact = not (outside or inexact or (machines and self._other_inputs))

    def findings(self) -> Iterator[Finding]:
        name, failed = self._stage.name, self._rebuild.failed
        for path, detail in self._stage.stale.items():
            yield Finding(name, path, "stale", detail)
        if failed and failed[0] == name:
            yield Finding(name, "", "failed", failed[1])
        if self._exact and not self._follows:
            for path in self._other_inputs:
                yield Finding(name, path, "stale", "built from another than dvc.lock has of the stage that makes it")
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
        elif path == ARITHMETIC and self._machines:
            yield Finding(name, path, "not compared", "the machines differ")
        elif self._exact:
            for member, found in self._how_far(output, output.md5, rebuilt_md5):
                yield Finding(name, name_of(output, member), "different", found.text + self._follows, found.largest)
        elif output.is_metric:
            yield self._within_tolerance(path)
        else:
            yield Finding(name, path, "not compared")

    def _edit(self, path: str) -> Difference:
        committed, new = self._rebuild.committed / path, self._rebuild.clone / path
        if not committed.exists():
            return Difference("is in dvc.lock and not in git")
        found = difference(committed, new, path) if self._built else None
        if found is None:
            return Difference("is not what dvc.lock records")
        return Difference(f"is not what dvc.lock records: {found.text} when rebuilt", found.largest)

    def _within_tolerance(self, path: str) -> Finding:
        found = deviations(*(read_json(folder / path) for folder in (self._rebuild.committed, self._rebuild.clone)))
        beyond = [deviation for deviation in found if not deviation.within]
        named = [f"{d.key} {d.committed} → {d.rebuilt} (may differ by {d.allowed:.3g})" for d in beyond or found]
        largest = max((deviation.distance for deviation in found), default=None)
        if beyond:
            return Finding(self._stage.name, path, "different", first_few(named) + self._follows, largest)
        return Finding(self._stage.name, path, "within tolerance", first_few(named), largest)

    def _how_far(self, output: Output, md5: str, rebuilt_md5: str) -> Iterator[tuple[str, Difference]]:
        """Each differing file of an output, by its path within it."""
        if not output.cached:
            committed, new = self._rebuild.committed / output.path, self._rebuild.clone / output.path
            yield "", difference(committed, new, output.path) or NOT_HERE
            return
        here, theirs = self._commit.cache, self._rebuild.cache
        old, new_files = members(md5, [here, theirs]), members(rebuilt_md5, [theirs])
        if old is None or new_files is None:
            yield "", NOT_HERE
            return
        for member in sorted(set(old) | set(new_files)):
            if member not in old or member not in new_files:
                yield member, Difference(f"is only {'committed' if member in old else 'rebuilt'}")
            elif old[member] != new_files[member]:
                kept, built = intact(here, old[member]), intact(theirs, new_files[member])
                found = difference(kept, built, name_of(output, member)) if kept and built else None
                yield member, found or NOT_HERE
