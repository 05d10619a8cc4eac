"""What differs between two builds besides their results: parameters, packages, data and code."""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from scratchlm.compare.revision import LOCK, PARAMETERS, MissingArtifact, Revision, recorded_hashes
from scratchlm.run.code import locked_versions
from scratchlm.run.nested import flattened, value_at
from scratchlm.run.pipeline import CODE_FOLDER

PACKAGES = "requirements.lock"


class Change(NamedTuple):
    """old, new: None where a revision lacks it. stages: the stages that use it, of code only."""

    name: str
    old: Any
    new: Any
    stages: tuple[str, ...] = ()


class Changes(NamedTuple):
    """The differences between two builds, by kind."""

    parameters: list[Change]
    packages: list[Change]
    data: list[Change]
    code: list[Change]


class Build(NamedTuple):
    """What a revision's metrics were built from and with, according to dvc.lock.

    parameters, packages: flat. code: file -> sha256; a stage's command is under `command of STAGE`.
    users: file -> stages. outs: output -> md5. behind: stages whose parameters, packages, code or metrics have changed
    in the revision since they were built.
    """

    parameters: dict[str, Any]
    packages: dict[str, Any]
    code: dict[str, str]
    users: dict[str, tuple[str, ...]]
    outs: dict[str, str]
    behind: list[str]


def read_build(revision: Revision) -> Build:
    """Read the stages that make metrics. Raises UserError if the revision lacks dvc.lock or another such file."""
    locked = (revision.yaml(LOCK) or {}).get("stages", {})
    now = revision.yaml(PARAMETERS)
    pinned = locked_versions(revision.read(PACKAGES).decode("utf-8"))
    digests: dict[str, str | None] = {}
    build = Build({}, {}, {}, {}, {}, [])
    for stage in revision.stages():
        entry = locked.get(stage)
        if entry is None:
            build.behind.append(stage)
            continue
        outs = recorded_hashes(entry.get("outs"))
        metrics = {path: md5 for path, md5 in outs.items() if path.startswith("metrics/")}
        if not metrics:
            continue
        code = _code(revision, entry)
        parameters = entry.get("params", {}).get(PARAMETERS, {})
        build.parameters.update(flattened(parameters))
        build.packages.update(code["packages"])
        build.code.update(code["files"])
        build.outs.update(outs)
        build.code[f"command of {stage}"] = " ".join(str(entry.get("cmd")).split())
        for name in (*code["files"], f"command of {stage}"):
            build.users[name] = (*build.users.get(name, ()), stage)
        files = {path: digest for path, digest in code["files"].items() if not path.startswith(CODE_FOLDER)}
        for path in files.keys() - digests:
            digests[path] = _digest(revision, path, "sha256")
        values = [(value_at(now, key), value) for key, value in parameters.items()]
        values += [(pinned.get(name), version) for name, version in code["packages"].items()]
        values += [(digests[path], digest) for path, digest in files.items()]
        values += [(_digest(revision, path, "md5"), md5) for path, md5 in metrics.items()]
        if any(is_now != was for is_now, was in values):
            build.behind.append(stage)
    return build


def changes(first: Build, second: Build, sources: tuple[Mapping[str, Any], Mapping[str, Any]]) -> Changes:
    """List the differences from the first to the second. sources: the content of metrics/download.json of each."""
    users = [first.users, second.users]
    return Changes(
        _different(first.parameters, second.parameters),
        _different(first.packages, second.packages),
        _different(*(_files(source) for source in sources)),
        [
            change._replace(stages=tuple(dict.fromkeys(stage for used in users for stage in used.get(change.name, ()))))
            for change in _different(first.code, second.code)
        ],
    )


def _different(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Change]:
    names = dict.fromkeys((*first, *second))
    return [Change(name, first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)]


def _files(sources: Mapping[str, Any]) -> dict[str, str]:
    return {f"{source}/{name}": sha for source, entry in sources.items() for name, sha in entry["sha256"].items()}


def _code(revision: Revision, entry: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Files and packages of a stage, as the stage `code` recorded them.

    If that record is not available, its own hash takes the place of the files.
    """
    record = next(
        ((p, md5) for p, md5 in recorded_hashes(entry.get("deps")).items() if p.startswith(CODE_FOLDER)), None
    )
    if record is None:
        return {"files": {}, "packages": {}}
    try:
        return revision.json(record[0])
    except MissingArtifact:
        return {"files": dict([record]), "packages": {}}


def _digest(revision: Revision, path: str, algorithm: str) -> str | None:
    try:
        return hashlib.new(algorithm, revision.read(path), usedforsecurity=False).hexdigest()
    except MissingArtifact:
        return None
