"""A commit's record of its build: dvc.yaml, dvc.lock and the files in git, read without a checkout."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import networkx
from dvc.dependency import Dependency, ParamsDependency
from dvc.output import Output as DvcOutput
from dvc.stage import PipelineStage

from scratchlm.compare.revision import LOCK, WORKSPACE, Revision
from scratchlm.compare.text import first_few
from scratchlm.run.errors import UserError
from scratchlm.run.nested import leaves
from scratchlm.run.pipeline import CODE_FOLDER
from scratchlm.verify.diff import differing


class Output(NamedTuple):
    """One output of a stage. md5: from dvc.lock, with .dir for a folder; None if dvc.lock lacks the output.

    cached: in DVC's cache, otherwise in git. edited: in git, and it differs from what dvc.lock recorded.
    """

    path: str
    md5: str | None
    cached: bool
    is_metric: bool
    edited: bool


class CommittedStage(NamedTuple):
    """One stage of dvc.yaml with its record in dvc.lock.

    upstream: every stage that it needs, directly or through others.
    inputs: the recorded hash of each output of another stage that it was built from.
    stale: by file, how the commit differs from what the stage was built from. code: its record from the stage `code`.
    external: its result comes from outside (`meta` in dvc.yaml names the parameter that decides, and its values).
    """

    name: str
    upstream: frozenset[str]
    outputs: tuple[Output, ...]
    inputs: Mapping[str, str]
    stale: Mapping[str, str]
    code: str | None
    external: bool


class Commit(NamedTuple):
    """stages: in the order in which DVC builds them. cache: the folder of the objects in the local cache."""

    root: Path
    revision: str
    sha: str
    stages: tuple[CommittedStage, ...]
    cache: Path


def read_commit(folder: Path, revision: str) -> Commit:
    """Read `revision` of the repository around `folder`.

    Raises UserError with one sentence if there is no such repository or revision, no pipeline in it, or
    nothing built.
    """
    if revision == WORKSPACE:
        raise UserError(f"only a commit can be verified, and {WORKSPACE} is not one; commit, then verify HEAD")
    found = Revision(revision, folder)
    assert found.commit
    with found.pipeline() as index:
        graph = index.graph  # its edges lead from a stage to the stages that it needs
        outputs = [output for stage in graph for output in stage.outs]
        stages = tuple(
            _stage(stage, frozenset(needed.name for needed in networkx.descendants(graph, stage)), outputs)
            for stage in networkx.dfs_postorder_nodes(graph)
        )
    if not stages:
        raise UserError(f"{revision} has no stages; name a revision with a dvc.yaml")
    if not any(output.md5 for stage in stages for output in stage.outputs):
        raise UserError(f"{revision} has no results to verify, since no stage is in its dvc.lock; build and commit it")
    return Commit(found.root, revision, found.commit, stages, found.cache)


def chosen(commit: Commit, names: Sequence[str]) -> tuple[CommittedStage, ...]:
    """Return the named stages and all that they need, in order; all stages if none is named.

    `load_gpt2` means each of its items, such as load_gpt2@nano. Raises UserError naming an unknown stage.
    """
    wanted: set[str] = set()
    for name in names:
        found = [stage for stage in commit.stages if name in (stage.name, stage.name.partition("@")[0])]
        if not found:
            known = ", ".join(stage.name for stage in commit.stages)
            raise UserError(f"{commit.revision} has no stage {name!r}; name one of {known}")
        wanted = wanted.union(*({stage.name, *stage.upstream} for stage in found))
    return tuple(stage for stage in commit.stages if not names or stage.name in wanted)


def _stage(stage: PipelineStage, upstream: frozenset[str], all_outputs: Sequence[DvcOutput]) -> CommittedStage:
    parameters = [dep for dep in stage.deps if isinstance(dep, ParamsDependency)]
    files = [dep for dep in stage.deps if not isinstance(dep, ParamsDependency)]
    built = [dep for dep in files if any(_overlap(dep.fs_path, output.fs_path) for output in all_outputs)]
    outs = (Output(o.def_path, o.hash_info.value, o.use_cache, o.is_metric, _is_edited(o)) for o in stage.outs)
    return CommittedStage(
        name=stage.name,
        upstream=upstream,
        outputs=tuple(outs),
        inputs={dep.def_path: dep.hash_info.value for dep in built if dep.hash_info},
        stale=dict(_stale(stage, parameters, [dep for dep in files if dep not in built or not dep.hash_info])),
        code=next((dep.def_path for dep in files if dep.def_path.startswith(CODE_FOLDER)), None),
        external=_is_external(stage, parameters),
    )


def _stale(
    stage: PipelineStage, parameters: Sequence[ParamsDependency], files: Sequence[Dependency]
) -> Iterator[tuple[str, str]]:
    """Yield the files whose content differs from what dvc.lock says the stage was built from, and how."""
    if not any(output.hash_info for output in stage.outs):
        yield LOCK, "does not have this stage: it was never built"
        return
    if stage.cmd_changed:
        yield "dvc.yaml", "has a different command than the one it was built with"
    for dep in parameters:
        old, new = dict(leaves(dep.hash_info.value or {})), dict(leaves(dep.read_params()))
        changes = [
            f"built with {key} {old.get(key, 'unset')}, {dep.def_path} says {new.get(key, 'nothing')}"
            for key in differing(old, new)
        ]
        if changes:
            yield dep.def_path, first_few(changes)
    for dep in files:
        if not dep.hash_info:
            yield dep.def_path, "was not an input when it was built"
        elif dep.workspace_status():
            yield dep.def_path, "has changed since it was built" if dep.exists else "is no longer in git"


def _is_edited(out: DvcOutput) -> bool:
    return not out.use_cache and bool(out.hash_info) and bool(out.workspace_status())


def _is_external(stage: PipelineStage, parameters: Sequence[ParamsDependency]) -> bool:
    conditions = (stage.meta or {}).get("external")
    if not isinstance(conditions, Mapping):
        return False
    values: dict[str, Any] = {key: value for dep in parameters for key, value in leaves(dep.read_params())}
    return all(values.get(key) in (value if isinstance(value, list) else [value]) for key, value in conditions.items())


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")
