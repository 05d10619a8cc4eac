"""What differs between two revisions besides their results: parameters, packages, data and code, as they were built."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from scratchlm.compare.revision import MissingArtifact, Revision
from scratchlm.report.tables import flattened
from scratchlm.run.pipeline import CODE_FOLDER

LOCK = "dvc.lock"
PARAMETERS = "params.yaml"


class Change(NamedTuple):
    """old, new: None where a revision lacks it. stages: those that use it, where that is told."""

    name: str
    old: Any
    new: Any
    stages: tuple[str, ...] = ()


class Changes(NamedTuple):
    """What is not the same in two builds."""

    parameters: list[Change]
    packages: list[Change]
    data: list[Change]
    code: list[Change]


class Build(NamedTuple):
    """What dvc.lock says was built at a revision, as far as metrics come from it.

    parameters, packages: flat. code: file -> sha256; a stage's command is under `command of STAGE`.
    users: file -> stages. outs: what those stages made -> md5. behind: stages not built from the parameters and code,
    or not into the metrics, that the revision holds.
    """

    parameters: dict[str, Any]
    packages: dict[str, Any]
    code: dict[str, str]
    users: dict[str, tuple[str, ...]]
    outs: dict[str, str]
    behind: list[str]


def read_build(revision: Revision) -> Build:
    """The stages that make metrics, from dvc.lock. Raises UserError if the revision has none."""
    locked = (revision.yaml(LOCK) or {}).get("stages", {})
    now = revision.yaml(PARAMETERS)
    hashes: dict[str, str | None] = {}
    build = Build({}, {}, {}, {}, {}, [])
    for stage in revision.stages():
        entry = locked.get(stage)
        if entry is None:
            build.behind.append(stage)
            continue
        metrics = _hashes(entry.get("outs", []), "metrics/")
        if not metrics:
            continue
        code = _code(revision, entry)
        parameters = entry.get("params", {}).get(PARAMETERS, {})
        build.parameters.update(flattened(parameters))
        build.packages.update(code["packages"])
        build.code.update(code["files"])
        build.outs.update(_hashes(entry["outs"], ""))
        build.code[f"command of {stage}"] = " ".join(str(entry.get("cmd")).split())
        for name in (*code["files"], f"command of {stage}"):
            build.users[name] = (*build.users.get(name, ()), stage)
        known = {path: digest for path, digest in code["files"].items() if not path.startswith(CODE_FOLDER)}
        for path in known.keys() - hashes:
            hashes[path] = _digest(revision, path, "sha256")
        values = [(_at(now, key), value) for key, value in parameters.items()]
        values += [(hashes[path], digest) for path, digest in known.items()]
        values += [(_digest(revision, path, "md5"), md5) for path, md5 in metrics.items()]
        if any(is_now != was for is_now, was in values):
            build.behind.append(stage)
    return build


def changes(first: Build, second: Build, sources: tuple[Mapping[str, Any], Mapping[str, Any]]) -> Changes:
    """What differs from the first to the second. sources: what metrics/download.json of each holds."""
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
    """Files and packages of a stage, as the stage `code` wrote them down.

    Of a build whose record is nowhere to be had, the record's own hash takes the place of the files.
    """
    record = next((dep for dep in entry.get("deps", []) if dep["path"].startswith(CODE_FOLDER)), None)
    if record is None:
        return {"files": {}, "packages": {}}
    try:
        return revision.json(record["path"])
    except MissingArtifact:
        return {"files": {record["path"]: record["md5"]}, "packages": {}}


def _hashes(entries: Iterable[Mapping[str, Any]], start: str) -> dict[str, str]:
    """path -> md5 of the entries of dvc.lock whose path starts so."""
    return {entry["path"]: entry.get("md5", "") for entry in entries if entry["path"].startswith(start)}


def _at(values: Any, key: str) -> Any:
    """The value at a dotted key, None if there is none."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _digest(revision: Revision, path: str, algorithm: str) -> str | None:
    try:
        return hashlib.new(algorithm, revision.read(path), usedforsecurity=False).hexdigest()
    except MissingArtifact:
        return None
