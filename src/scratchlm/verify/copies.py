"""The local copies of outputs: objects in DVC's cache, and files in the workspace."""

import filecmp
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from scratchlm.compare.revision import LOCK
from scratchlm.verify.commit import Commit, CommittedStage, Output
from scratchlm.verify.diff import Difference, difference
from scratchlm.verify.findings import Finding
from scratchlm.verify.rebuild import Rebuild

FOLDER = ".dir"  # ends the hash of a folder, whose object lists its files


def intact(cache: Path, md5: str) -> Path | None:
    """Return the object with this hash, if the cache has it and its content has this hash."""
    path = _object(cache, md5)
    return path if path.is_file() and _md5(path) == md5.removesuffix(FOLDER) else None


def members(md5: str, caches: Sequence[Path]) -> dict[str, str] | None:
    """Return the hash of each file of an output by its path within it, "" for a single file; None if not in a cache."""
    if not md5.endswith(FOLDER):
        return {"": md5}
    listing = next((path for cache in caches if (path := intact(cache, md5))), None)
    if listing is None:
        return None
    return {entry["relpath"]: entry["md5"] for entry in json.loads(listing.read_text(encoding="utf-8"))}


def name_of(output: Output, member: str) -> str:
    """Return the path of an output's file in the repository."""
    return f"{output.path}/{member}" if member else output.path


class Copies:
    """Hashes each local copy of a commit's outputs once.

    n_checked: how many were hashed. n_other: files of the workspace that are an intact output of another build, as
    after `git switch` without `dvc checkout`.
    """

    def __init__(self, commit: Commit, rebuild: Rebuild) -> None:
        self._commit, self._rebuild = commit, rebuild
        self._seen: set[Path] = set()
        self.n_other = 0
        here, committed = commit.root / LOCK, rebuild.committed / LOCK
        both = here.exists() and committed.exists()
        self._workspace_too = both and filecmp.cmp(here, committed, shallow=False)

    @property
    def n_checked(self) -> int:
        return len(self._seen)

    def damaged(self, stage: CommittedStage) -> Iterator[Finding]:
        """Yield the copies of the stage's outputs with a wrong hash, and how they differ from the rebuilt ones."""
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

    def _check(self, stage: CommittedStage, name: str, md5: str, copy: Path) -> Iterator[Finding]:
        if copy in self._seen or not copy.is_file():
            return
        self._seen.add(copy)
        if (found_md5 := _md5(copy)) == md5.removesuffix(FOLDER):
            return
        if copy == self._commit.root / name and intact(self._commit.cache, found_md5):
            self.n_other += 1
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
