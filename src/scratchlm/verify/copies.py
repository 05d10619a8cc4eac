"""The copies of outputs that are kept here: objects of DVC's cache, and the files of the workspace."""

import filecmp
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from scratchlm.verify.commit import Commit, Output, Stage
from scratchlm.verify.diff import Difference, difference
from scratchlm.verify.findings import Finding
from scratchlm.verify.rebuild import LOCK, Rebuild

FOLDER = ".dir"  # ends the hash of a folder, whose object lists its files


def intact(cache: Path, md5: str) -> Path | None:
    """The object with this hash, if the cache has it and its content is what its name says."""
    path = _object(cache, md5)
    return path if path.is_file() and _md5(path) == md5.removesuffix(FOLDER) else None


def members(md5: str, caches: Sequence[Path]) -> dict[str, str] | None:
    """The hash of each file of an output by its path within it, "" if it is one file; None if no cache can tell."""
    if not md5.endswith(FOLDER):
        return {"": md5}
    listing = next((path for cache in caches if (path := intact(cache, md5))), None)
    if listing is None:
        return None
    return {entry["relpath"]: entry["md5"] for entry in json.loads(listing.read_text(encoding="utf-8"))}


def name_of(output: Output, member: str) -> str:
    """The path of an output's file in the repository."""
    return f"{output.path}/{member}" if member else output.path


class Copies:
    """Hashes again, once, each copy of what a commit's dvc.lock names. n_checked: how many it has hashed."""

    def __init__(self, commit: Commit, rebuild: Rebuild) -> None:
        self._commit, self._rebuild = commit, rebuild
        self._seen: set[Path] = set()
        here, committed = commit.root / LOCK, rebuild.committed / LOCK
        both = here.exists() and committed.exists()
        self._workspace_too = both and filecmp.cmp(here, committed, shallow=False)

    @property
    def n_checked(self) -> int:
        return len(self._seen)

    def damaged(self, stage: Stage) -> Iterator[Finding]:
        """The copies of the stage's outputs that are not what they should be, and how far from the rebuilt ones."""
        for output in stage.outputs:
            if not output.cached or output.md5 is None:
                continue
            if output.md5.endswith(FOLDER):
                yield from self._check(stage, output.path, output.md5, _object(self._commit.cache, output.md5))
            for member, md5 in (members(output.md5, [self._rebuild.cache, self._commit.cache]) or {}).items():
                name = name_of(output, member)
                yield from self._check(stage, name, md5, _object(self._commit.cache, md5))
                if self._workspace_too:
                    yield from self._check(stage, name, md5, self._commit.root / name)

    def _check(self, stage: Stage, name: str, md5: str, copy: Path) -> Iterator[Finding]:
        if copy in self._seen or not copy.is_file():
            return
        self._seen.add(copy)
        if _md5(copy) == md5.removesuffix(FOLDER):
            return
        whole = intact(self._rebuild.cache, md5)
        found = (difference(whole, copy, name) if whole else None) or Difference("the rebuild has no such file")
        place = copy.relative_to(self._commit.root) if copy.is_relative_to(self._commit.root) else copy
        yield Finding(stage.name, name, "damaged", f"{place}: {found.text}", found.largest)


def _object(cache: Path, md5: str) -> Path:
    return cache / md5[:2] / md5[2:]


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
