"""Does a commit's code build what is committed? Rebuild it from nothing and compare."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from scratchlm.compare.git import git
from scratchlm.compare.processors import Arithmetic, processor, recorded, tell_apart
from scratchlm.run.files import read_json
from scratchlm.verify.check import Copies, check_stage
from scratchlm.verify.commit import Commit, CommittedStage, chosen, read_commit
from scratchlm.verify.findings import Finding, Verification
from scratchlm.verify.rebuild import Rebuild, rebuilt

_Some = frozenset[Arithmetic]


def verify(folder: Path, revision: str, names: Sequence[str] = ()) -> Verification:
    """Rebuild `revision` of the repository around `folder`, or the named stages and what they need, and compare.

    Raises UserError with one sentence if there is no such repository, revision or stage.
    """
    commit = read_commit(folder, revision)
    stages = chosen(commit, names)
    external = {stage.name for stage in stages if stage.external}
    outside = tuple(stage.name for stage in stages if external & {stage.name, *stage.upstream})
    findings: list[Finding] = []
    with rebuilt(commit, stages) as rebuild:
        arithmetic = _arithmetic(stages, rebuild)
        machines = _machines(arithmetic.values())
        copies = Copies(commit, rebuild)
        if rebuild.failed and rebuild.failed[0] not in {stage.name for stage in stages}:
            findings.append(Finding(rebuild.failed[0], "dvc.yaml", "failed", rebuild.failed[1]))
        for stage in stages:
            causes = (found.stage for found in findings if found.changes_later_stages and found.stage in stage.upstream)
            old, new = arithmetic[stage.name]
            findings += check_stage(
                stage, rebuild, commit.cache,
                other_machine=old != new, outside=stage.name in outside, start=next(causes, ""),
            )  # fmt: skip
            findings += copies.damaged(stage)
        remarks = tuple(_remarks(commit, rebuild, copies, (old for old, _ in arithmetic.values())))
    return Verification(revision, commit.sha, machines, outside, tuple(findings), len(copies.seen), remarks)


def _arithmetic(stages: Sequence[CommittedStage], rebuild: Rebuild) -> dict[str, tuple[_Some, _Some]]:
    """Return for each stage what it and the stages that it needs record: as committed, and as rebuilt."""
    folders = rebuild.committed, rebuild.clone
    found: dict[str, tuple[_Some, _Some]] = {}
    for stage in stages:  # after those that it needs
        files = [output.path for output in stage.outputs if output.is_metric]
        files = [path for path in files if all((folder / path).exists() for folder in folders)]
        needed = [found[name] for name in stage.upstream if name in found]
        own = [recorded(read_json(folder / path) for path in files) for folder in folders]
        found[stage.name] = (own[0].union(*(old for old, _ in needed)), own[1].union(*(new for _, new in needed)))
    return found


def _machines(arithmetic: Iterable[tuple[_Some, _Some]]) -> tuple[str, str] | None:
    """Return the names of the committed arithmetic and of this machine's, if they differ in some stage."""
    different = [pair for pair in arithmetic if pair[0] != pair[1]]
    if not different:
        return None
    old, new = (frozenset().union(*sets) for sets in zip(*different, strict=True))
    committed, here = tell_apart(old, new)
    return committed, f"{here} ({processor()})"


def _remarks(commit: Commit, rebuild: Rebuild, copies: Copies, arithmetic: Iterable[_Some]) -> Iterator[str]:
    if git(commit.root, "status", "--porcelain", "--untracked-files=no"):
        yield f"Uncommitted changes are ignored: {commit.revision} is verified as committed."
    if not any(arithmetic):
        yield f"{commit.revision} records no arithmetic for these stages, so identical bits are expected from all."
    if copies.n_other:
        yield f"Skipped {copies.n_other} workspace files that belong to another build; `dvc checkout` replaces them."
