"""Compare one stage: what is committed of it, and the local copies of that, with what was built."""

import filecmp
import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from scratchlm.compare.processors import results
from scratchlm.compare.revision import LOCK
from scratchlm.compare.text import first_few
from scratchlm.run.files import md5_of, read_json
from scratchlm.verify.commit import Commit, CommittedStage, Output
from scratchlm.verify.diff import Difference, difference
from scratchlm.verify.findings import Finding, Verdict
from scratchlm.verify.rebuild import Built, Rebuild
from scratchlm.verify.tolerances import deviations

INEXACT = {"scipy", "tensorflow", "torch"}  # the last bits of their results depend on the machine
FOLDER = ".dir"  # ends the hash of a folder, whose object lists its files
OTHER_INPUT = "built from a version that differs from the one in dvc.lock of the stage that makes it"
NOT_HERE = Difference("the hashes differ; the committed file is not in the cache here")


def check_stage(
    stage: CommittedStage, rebuild: Rebuild, cache: Path, *, other_machine: bool, outside: bool, start: str
) -> Iterator[Finding]:
    """Yield a verdict on a stage's stale inputs, on the stage if it failed, and on each of its outputs.

    cache: may have objects of the committed outputs. other_machine: the committed results of the stage, or of one that
    it needs, were computed with another arithmetic than here. outside: the results come from a server, or depend on
    such results. start: the first stage upstream with different results, or "".
    """
    finding = partial(Finding, stage.name)
    follows = f"; follows from {start}" if start else ""
    built = rebuild.stages.get(stage.name, Built({}, {}))
    other_inputs = [path for path, md5 in stage.inputs.items() if built.inputs.get(path, md5) != md5]
    record = rebuild.clone / (stage.code or "")
    packages = set(read_json(record)["packages"]) if record.is_file() else set()
    inexact = other_machine and (other_inputs or packages & INEXACT)
    to_the_bit = not (outside or inexact)
    for path, detail in stage.stale.items():
        yield finding(path, "stale", detail)
    if rebuild.failed and rebuild.failed[0] == stage.name:
        yield finding("", "failed", rebuild.failed[1])
    if to_the_bit and not start:
        yield from (finding(path, "stale", OTHER_INPUT) for path in other_inputs)
    for output in stage.outputs:
        path, rebuilt_md5 = output.path, built.outputs.get(output.path)
        if output.edited:
            yield finding(path, "edited", *_edit(path, rebuild, rebuilt_md5 is not None))
        elif output.md5 is None:
            yield finding(path, "missing", "dvc.lock does not have it")
        elif rebuilt_md5 is None:
            yield finding(path, "missing", f"was not rebuilt{follows}")
        elif rebuilt_md5 == output.md5:
            yield finding(path, "identical")
        elif to_the_bit:
            for name, found in _how_far(output, rebuilt_md5, rebuild, cache):
                yield finding(name, "different", found.text + follows, found.largest)
        elif output.is_metric:
            verdict, found = _metrics_apart(path, rebuild)
            yield finding(path, verdict, found.text + (follows if verdict == "different" else ""), found.largest)
        else:
            yield finding(path, "not compared")


class Copies:
    """Hashes each local copy of a commit's outputs once: objects in DVC's cache, and files in the workspace.

    seen: what was hashed. n_other: files of the workspace that are an intact output of another build, as after
    `git switch` without `dvc checkout`.
    """

    def __init__(self, commit: Commit, rebuild: Rebuild) -> None:
        self._commit, self._rebuild = commit, rebuild
        self.seen: set[Path] = set()
        self.n_other = 0
        here, committed = commit.root / LOCK, rebuild.committed / LOCK
        both = here.exists() and committed.exists()
        self._workspace_too = both and filecmp.cmp(here, committed, shallow=False)

    def damaged(self, stage: CommittedStage) -> Iterator[Finding]:
        """Yield the copies of the stage's outputs with a wrong hash, and how they differ from the rebuilt ones."""
        cache = self._commit.cache
        for output in stage.outputs:
            if not output.cached or output.md5 is None:
                continue
            if output.md5.endswith(FOLDER):
                yield from self._check(stage, output.path, output.md5, _object(cache, output.md5))
            for name, md5 in (members(output.path, output.md5, self._rebuild.cache, cache) or {}).items():
                yield from self._check(stage, name, md5, _object(cache, md5))
                if self._workspace_too:
                    yield from self._check(stage, name, md5, self._commit.root / name)

    def _check(self, stage: CommittedStage, name: str, md5: str, copy: Path) -> Iterator[Finding]:
        if copy in self.seen or not copy.is_file():
            return
        self.seen.add(copy)
        if (found_md5 := md5_of(copy)) == md5.removesuffix(FOLDER):
            return
        if copy == self._commit.root / name and intact(self._commit.cache, found_md5):
            self.n_other += 1
            return
        whole = intact(self._rebuild.cache, md5)
        found = (difference(whole, copy, name) if whole else None) or Difference("the rebuild has no such file")
        path = copy.relative_to(self._commit.root) if copy.is_relative_to(self._commit.root) else copy
        yield Finding(stage.name, name, "damaged", f"{path}: {found.text}", found.largest)


def intact(cache: Path, md5: str) -> Path | None:
    """Return the object with this hash, if the cache has it and its content has this hash."""
    path = _object(cache, md5)
    return path if path.is_file() and md5_of(path) == md5.removesuffix(FOLDER) else None


def members(path: str, md5: str, *caches: Path) -> dict[str, str] | None:
    """Return the hash of each file of an output by its path; None if it is a folder whose object is in no cache."""
    if not md5.endswith(FOLDER):
        return {path: md5}
    listing = next((found for cache in caches if (found := intact(cache, md5))), None)
    if listing is None:
        return None
    return {f"{path}/{entry['relpath']}": entry["md5"] for entry in json.loads(listing.read_text(encoding="utf-8"))}


def _edit(path: str, rebuild: Rebuild, is_rebuilt: bool) -> Difference:
    if not (rebuild.committed / path).exists():
        return Difference("is in dvc.lock, but not in git")
    found = difference(rebuild.committed / path, rebuild.clone / path, path) if is_rebuilt else None
    if found is None:
        return Difference("differs from what dvc.lock records")
    return Difference(f"differs from what dvc.lock records: {found.text} when rebuilt", found.largest)


def _metrics_apart(path: str, rebuild: Rebuild) -> tuple[Verdict, Difference]:
    """Return the verdict on a metrics file, and what differs: beyond the tolerances, or else within them."""
    found = deviations(*(results(read_json(folder / path)) for folder in (rebuild.committed, rebuild.clone)))
    beyond = [deviation for deviation in found if not deviation.within]
    named = [f"{d.key} {d.committed} → {d.rebuilt} (may differ by {d.allowed:.3g})" for d in beyond or found]
    largest = max((deviation.distance for deviation in found if deviation.distance < math.inf), default=None)
    return "different" if beyond else "within tolerance", Difference(first_few(named) or "the same values", largest)


def _how_far(output: Output, rebuilt_md5: str, rebuild: Rebuild, cache: Path) -> Iterator[tuple[str, Difference]]:
    """Yield the path of each differing file of an output, and how it differs."""
    path, md5 = output.path, output.md5 or ""
    if not output.cached:
        yield path, difference(rebuild.committed / path, rebuild.clone / path, path) or NOT_HERE
        return
    old, built = members(path, md5, cache, rebuild.cache), members(path, rebuilt_md5, rebuild.cache)
    if old is None or built is None:
        yield path, NOT_HERE
        return
    for name in sorted({*old, *built}):
        if name not in old or name not in built:
            yield name, Difference(f"is only {'committed' if name in old else 'rebuilt'}")
        elif old[name] != built[name]:
            kept, new = intact(cache, old[name]), intact(rebuild.cache, built[name])
            yield name, (difference(kept, new, name) if kept and new else None) or NOT_HERE


def _object(cache: Path, md5: str) -> Path:
    return cache / md5[:2] / md5[2:]
