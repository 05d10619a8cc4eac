"""The differences between two builds besides their results: parameters, packages, data and code."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, NamedTuple

from scratchlm.compare.revision import LOCK, PARAMETERS, MissingArtifact, Revision, recorded_hashes
from scratchlm.run.code import locked_versions
from scratchlm.run.nested import flattened, value_at
from scratchlm.run.pipeline import CODE_FOLDER

PACKAGES = "requirements.lock"
METRICS = "metrics/"
SOURCES = ("data/sources.json", "metrics/download.json")  # the second: of older builds


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


@dataclass(frozen=True)
class Recorded:
    """What dvc.lock records of one stage or of several, and the code behind it.

    parameters: by dotted key; of one stage, a value may be a section. records: path -> md5 of the record that the
    stage `code` wrote of a stage. lost: those that cannot be read; packages (name -> version) and files (source file ->
    sha256) lack what they say. commands: `command of STAGE` -> its words. outs: output -> md5.
    """

    parameters: dict[str, Any]
    records: dict[str, str]
    lost: dict[str, str]
    packages: dict[str, str]
    files: dict[str, str]
    commands: dict[str, str]
    outs: dict[str, str]


@dataclass(frozen=True)
class Build(Recorded):
    """The inputs and the code from which a revision's metrics were built.

    users: stages by the name of a file, a record or a command. sources: `SOURCE/FILE` -> sha256; {} if they cannot be
    read. behind: stages whose parameters, packages, code or metrics have changed in the revision since they were built.
    """

    users: dict[str, tuple[str, ...]]
    sources: dict[str, str]
    behind: list[str]


def read_build(revision: Revision) -> Build:
    """Read the stages that make metrics, and `download`.

    Raises UserError if the revision lacks dvc.lock or another such file.
    """
    locked = (revision.yaml(LOCK) or {}).get("stages", {})
    names = revision.stages()
    stages = {
        name: _read_stage(revision, name, locked[name])
        for name in names
        if any(path.startswith((METRICS, *SOURCES)) for path in recorded_hashes(locked.get(name, {}).get("outs")))
    }
    users: dict[str, tuple[str, ...]] = {}
    for stage, found in stages.items():
        for name in (*found.files, *found.records, *found.commands):
            users[name] = (*users.get(name, ()), stage)
    together: dict[str, dict[str, Any]] = {
        field.name: {key: value for stage in stages.values() for key, value in getattr(stage, field.name).items()}
        for field in fields(Recorded)
    }
    together["parameters"] = flattened(together["parameters"])
    changed = _changed(revision, stages)
    behind = [name for name in names if name not in locked or name in changed]
    return Build(**together, users=users, sources=_read_sources(revision, together["outs"]), behind=behind)


def _read_stage(revision: Revision, name: str, entry: Mapping[str, Any]) -> Recorded:
    """The record of a stage. entry: of the stage in dvc.lock."""
    inputs, outs = (recorded_hashes(entry.get(key)) for key in ("deps", "outs"))
    records = {path: md5 for path, md5 in inputs.items() if path.startswith(CODE_FOLDER)}  # at most one
    code: dict[str, dict[str, str]] = {"files": {}, "packages": {}}
    lost = {}
    for path, md5 in records.items():
        try:
            code = revision.json(path)
        except MissingArtifact:
            lost[path] = md5
    parameters = entry.get("params", {}).get(PARAMETERS, {})
    command = {f"command of {name}": " ".join(str(entry.get("cmd")).split())}
    return Recorded(parameters, records, lost, code["packages"], code["files"], command, outs)


def _read_sources(revision: Revision, outs: Mapping[str, str]) -> dict[str, str]:
    for path in (path for path in SOURCES if path in outs):  # at most one
        with suppress(MissingArtifact):
            sources = revision.json(path).items()
            return {f"{source}/{name}": sha for source, entry in sources for name, sha in entry["sha256"].items()}
    return {}


def _changed(revision: Revision, stages: Mapping[str, Recorded]) -> list[str]:
    """The stages whose parameters, packages, code or metrics in the revision are not those that dvc.lock records."""
    parameters = revision.yaml(PARAMETERS)
    versions = locked_versions(revision.read(PACKAGES).decode("utf-8"))

    @cache
    def digest(path: str, algorithm: str) -> str | None:
        try:
            return hashlib.new(algorithm, revision.read(path), usedforsecurity=False).hexdigest()
        except MissingArtifact:
            return None

    def differs(stage: Recorded) -> bool:
        metrics = {path: md5 for path, md5 in stage.outs.items() if path.startswith(METRICS)}
        readable = {path: md5 for path, md5 in stage.records.items() if path not in stage.lost}
        return (
            any(value_at(parameters, key) != value for key, value in stage.parameters.items())
            or any(versions.get(name) != version for name, version in stage.packages.items())
            or any(digest(path, "sha256") != sha256 for path, sha256 in stage.files.items())
            or any(digest(path, "md5") != md5 for path, md5 in (metrics | readable).items())
        )

    return [name for name, stage in stages.items() if differs(stage)]


def changes(first: Build, second: Build) -> Changes:
    """List the differences from the first to the second.

    Where a record of the code is lost, the records' own hashes say which stages' code or packages differ. Where a list
    of the sources is lost, the hashes of the two lists say only whether any source differs.
    """
    lost = first.lost or second.lost

    def users(name: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*first.users.get(name, ()), *second.users.get(name, ()))))

    code = [{**(build.records if lost else build.files), **build.commands} for build in (first, second)]
    data = [build.sources for build in (first, second)]
    if not all(data):
        data = [{SOURCES[0]: next(filter(None, map(build.outs.get, SOURCES)), "")} for build in (first, second)]
    return Changes(
        differing(first.parameters, second.parameters),
        [] if lost else differing(first.packages, second.packages),
        differing(*data),
        [change._replace(stages=users(change.name)) for change in differing(*code)],
    )


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Change]:
    """List the keys with different values; a key that one of the two lacks has None there."""
    names = dict.fromkeys((*first, *second))
    return [Change(name, first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)]
