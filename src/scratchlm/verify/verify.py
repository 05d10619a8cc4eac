"""Does a commit's code build what is committed? Rebuild it from nothing and compare."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from scratchlm.compare.git import git
from scratchlm.run.files import read_json
from scratchlm.verify.check import ARITHMETIC, Copies, check_stage
from scratchlm.verify.commit import Commit, CommittedStage, chosen, read_commit
from scratchlm.verify.findings import Finding, Verification
from scratchlm.verify.rebuild import Rebuild, rebuilt


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
        machines = _machines(stages, rebuild)
        copies = Copies(commit, rebuild)
        if rebuild.failed and rebuild.failed[0] not in {stage.name for stage in stages}:
            findings.append(Finding(rebuild.failed[0], "dvc.yaml", "failed", rebuild.failed[1]))
        for stage in stages:
            causes = (found.stage for found in findings if found.changes_later_stages and found.stage in stage.upstream)
            findings += check_stage(
                stage, rebuild, commit.cache,
                other_machine=machines is not None, outside=stage.name in outside, start=next(causes, ""),
            )  # fmt: skip
            findings += copies.damaged(stage)
        remarks = tuple(_remarks(commit, rebuild, copies))
    return Verification(revision, commit.sha, machines, outside, tuple(findings), len(copies.seen), remarks)


def _machines(stages: Sequence[CommittedStage], rebuild: Rebuild) -> tuple[str, str] | None:
    """Return the machine that built the commit and this one, if their arithmetic differs."""
    files = [folder / ARITHMETIC for folder in (rebuild.committed, rebuild.clone)]
    edited = any(output.edited for stage in stages for output in stage.outputs if output.path == ARITHMETIC)
    if edited or not all(file.exists() for file in files):
        return None
    old, new = (f"{found['kernels']} ({found['arithmetic']})" for found in map(read_json, files))
    return None if old == new else (old, new)


def _remarks(commit: Commit, rebuild: Rebuild, copies: Copies) -> Iterator[str]:
    if git(commit.root, "status", "--porcelain", "--untracked-files=no"):
        yield f"Uncommitted changes are ignored: {commit.revision} is verified as committed."
    if not (rebuild.committed / ARITHMETIC).exists():
        yield f"{commit.revision} has no {ARITHMETIC}, so results of other arithmetic count as different."
    if copies.n_other:
        yield f"Skipped {copies.n_other} workspace files that belong to another build; `dvc checkout` replaces them."
