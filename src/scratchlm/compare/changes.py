"""The differences between two builds besides their results: parameters, packages, data and code."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

from scratchlm.compare.revision import LOCK, PARAMETERS, MissingArtifact, Revision, recorded_hashes
from scratchlm.run.code import locked_versions
from scratchlm.run.nested import flattened, value_at
from scratchlm.run.pipeline import CODE_FOLDER

PACKAGES = "requirements.lock"
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


class Build(NamedTuple):
    """The inputs and the code from which a revision's metrics were built, according to dvc.lock.

    parameters, packages: flat. files: source file -> sha256. records: path -> md5 of the record that the stage `code`
    wrote of each stage. lost: records that cannot be read; packages and files lack theirs. commands: `command of STAGE`
    -> its words. users: stages by the name of a file, a record or a command. outs: output -> md5. sources:
    `SOURCE/FILE` -> sha256; {} if they cannot be read. behind: stages whose parameters, packages, code or metrics have
    changed in the revision since they were built.
    """

    parameters: dict[str, Any]
    packages: dict[str, Any]
    files: dict[str, str]
    records: dict[str, str]
    lost: list[str]
    commands: dict[str, str]
    users: dict[str, tuple[str, ...]]
    outs: dict[str, str]
    sources: dict[str, str]
    behind: list[str]


def read_build(revision: Revision) -> Build:
    """Read the stages that make metrics, and `download`.

    Raises UserError if the revision lacks dvc.lock or another such file.
    """
    locked = (revision.yaml(LOCK) or {}).get("stages", {})
    now = revision.yaml(PARAMETERS)
    pinned = locked_versions(revision.read(PACKAGES).decode("utf-8"))

    @cache
    def digest(path: str, algorithm: str) -> str | None:
        try:
            return hashlib.new(algorithm, revision.read(path), usedforsecurity=False).hexdigest()
        except MissingArtifact:
            return None

    build = Build({}, {}, {}, {}, [], {}, {}, {}, {}, [])
    for stage in revision.stages():
        entry = locked.get(stage)
        if entry is None:
            build.behind.append(stage)
            continue
        outs = recorded_hashes(entry.get("outs"))
        metrics = {path: md5 for path, md5 in outs.items() if path.startswith("metrics/")}
        downloaded = [path for path in SOURCES if path in outs]  # at most one
        if not metrics and not downloaded:
            continue
        for path in downloaded:
            with suppress(MissingArtifact):
                build.sources.update(_files(revision.json(path)))
        inputs = recorded_hashes(entry.get("deps"))
        records = {path: md5 for path, md5 in inputs.items() if path.startswith(CODE_FOLDER)}
        code: dict[str, dict[str, str]] = {"files": {}, "packages": {}}
        for record in records:  # at most one
            try:
                code = revision.json(record)
            except MissingArtifact:
                build.lost.append(record)
        parameters = entry.get("params", {}).get(PARAMETERS, {})
        command = {f"command of {stage}": " ".join(str(entry.get("cmd")).split())}
        build.parameters.update(flattened(parameters))
        build.packages.update(code["packages"])
        build.files.update(code["files"])
        build.records.update(records)
        build.commands.update(command)
        build.outs.update(outs)
        for name in (*code["files"], *records, *command):
            build.users[name] = (*build.users.get(name, ()), stage)
        values = [(value_at(now, key), value) for key, value in parameters.items()]
        values += [(pinned.get(name), version) for name, version in code["packages"].items()]
        values += [(digest(path, "sha256"), sha256) for path, sha256 in code["files"].items()]
        written = metrics | {path: md5 for path, md5 in records.items() if path not in build.lost}
        values += [(digest(path, "md5"), md5) for path, md5 in written.items()]
        if any(is_now != was for is_now, was in values):
            build.behind.append(stage)
    return build


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


def _files(sources: Mapping[str, Any]) -> dict[str, str]:
    return {f"{source}/{name}": sha for source, entry in sources.items() for name, sha in entry["sha256"].items()}
