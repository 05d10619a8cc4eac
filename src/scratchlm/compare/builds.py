"""Build revisions in private clones, and keep the builds of each by the arithmetic that computed them.

Surprising: where dvc.lock names outputs that are nowhere, as after a clone on another class of processor, `dvc repro`
computes them without asking its run cache, which has what was computed here. So such outputs are first dropped from
dvc.lock. The run cache ignores the arithmetic, so only runs with the wanted one are lent to the clone.
"""

import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.utils.serialize import modify_yaml

from scratchlm.compare.clone import private_clone, write_config
from scratchlm.compare.git import fetch_refs, find_commit, git, must_run_dvc, run_dvc
from scratchlm.compare.processors import Arithmetic, arithmetic_here, processor, recorded
from scratchlm.compare.revision import LOCK, PARAMETERS, RESULTS, WORKSPACE, Revision, recorded_hashes
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_json
from scratchlm.run.params import load_yaml

REFS = "refs/scratchlm/builds"  # git deletes no commit that has a ref
CACHE = Path(".dvc", "cache")  # of the clone


class _Results(NamedTuple):
    """settings: the device and the precision in params.yaml, which may differ on purpose. here: see arithmetic_here."""

    settings: tuple[object, object]
    arithmetic: frozenset[Arithmetic]
    here: str | None


def build(root: Path, revisions: Sequence[str]) -> None:
    """Build revisions, so that `compare` finds the results of each and can compare them.

    What the cache or the default remote has is not computed again, unless the results of the revisions come from
    different processors: those of other processors are then built again on this one. `workspace` is not built; the
    others get its arithmetic. The output of DVC and the stages goes to standard error.
    Raises UserError if a revision does not exist or a stage fails.
    """
    commits = {name: find_commit(root, name) for name in revisions if name != WORKSPACE}
    results = {name: _build(root, name, commit, anywhere=True) for name, commit in commits.items()}
    if WORKSPACE in revisions:
        results[WORKSPACE] = _results(root, None)
    for name, commit in commits.items():
        found = results[name]
        comparable = {other.arithmetic for other in results.values() if other.settings == found.settings}
        is_foreign = any(each.fingerprint != found.here for each in found.arithmetic)  # of another processor
        if len(comparable) > 1 and is_foreign:
            _build(root, name, commit, anywhere=False)


def kept_builds(root: Path, commit: str) -> list[list[str]]:
    """Return the builds of a commit that were kept here, the newest first: [commit, processor's name] of each.

    Such a commit has the results, on top of the revision.
    """
    words = ("--sort=-committerdate", "--format=%(objectname) %(subject)", f"{REFS}/{commit}/")
    return [line.split(" ", 1) for line in git(root, "for-each-ref", *words).splitlines()]


def keep(root: Path, clone: Path, commit: str) -> None:
    """Keep the results in a clone as a build of `commit`, unless they are the committed ones."""
    git(clone, "add", "--all", "--", *RESULTS)
    if not git(clone, "status", "--porcelain", "--", *RESULTS):
        return
    git(clone, "commit", "--quiet", "--message", processor(), "--", *RESULTS)
    fingerprints = sorted(each.fingerprint for each in recorded(Revision(WORKSPACE, clone).metrics().values()))
    ref = f"{REFS}/{commit}/{'-'.join(fingerprints) or 'unrecorded'}"
    fetch_refs(root, clone, f"+HEAD:{ref}")


def prefer_run_cache(folder: Path) -> bool:
    """Let DVC ask its run cache for outputs that only dvc.lock has; return whether there are any.

    Does nothing if there is no run cache, or a default remote, which may have them: `dvc repro --pull` asks that.
    A project that DVC cannot read is left to `dvc repro`, which says why.
    """
    with suppress(DvcException, UserError), Repo(os.fspath(folder)) as repo:
        has_runs = Path(repo.cache.local_cache_dir, "runs").is_dir()
        return has_runs and not repo.config["core"].get("remote") and drop_missing(folder)
    return False


def drop_missing(folder: Path, foreign: Iterable[str] = ()) -> bool:
    """Drop from dvc.lock the outputs that are neither in the project nor in its cache; return whether there are any.

    DVC then takes them from its run cache, or computes them. foreign: stages whose outputs are dropped, too.
    """
    lock = folder / LOCK
    if not lock.exists():
        return False
    with Repo(os.fspath(folder)) as repo:
        entries = load_yaml(lock)["stages"]
        known = [stage for stage in repo.index.stages if entries.get(stage.name, {}).get("outs")]
        gone = {stage.name for stage in known if not stage.outs_cached() and any(out.status() for out in stage.outs)}
    gone |= {name for name in foreign if name in entries}
    if gone:
        with modify_yaml(os.fspath(lock)) as content:
            for name in gone:
                content["stages"][name].pop("outs", None)
    return bool(gone)


def _build(root: Path, revision: str, commit: str, *, anywhere: bool) -> _Results:
    """Build one revision and keep the build. anywhere: accept results that another processor computed."""
    print(f"building {revision} ({commit[:7]})", file=sys.stderr, flush=True)
    with private_clone(root, commit) as clone:
        here = arithmetic_here(clone)
        cache = _lend_cache(clone, here)
        _check_out(clone, None if anywhere else here)
        try:
            must_run_dvc(clone, f"{revision} cannot be built", "repro")
        finally:  # also what was computed before a stage failed
            shutil.copytree(clone / CACHE / "runs", cache / "runs", dirs_exist_ok=True)
        keep(root, clone, commit)
        return _results(clone, here)


def _lend_cache(clone: Path, here: str | None) -> Path:
    """Lend the clone the objects of the project's cache and its runs with the arithmetic `here`; return that cache."""
    with Repo(os.fspath(clone)) as repo:
        cache = Path(repo.cache.local_cache_dir)
    own = clone / CACHE
    for folder in (cache / "files", own / "runs"):
        folder.mkdir(parents=True, exist_ok=True)
    (own / "files").symlink_to(cache / "files")
    for run in (path for path in cache.glob("runs/??/*/*") if not path.suffix):  # others are DVC's temporary files
        if here is None or all(each.fingerprint == here for each in _arithmetic_of(run, cache)):
            target = own / run.relative_to(cache)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(run, target)  # with its time: DVC takes the newest
    write_config(clone, cache=own)
    return cache


def _arithmetic_of(run: Path, cache: Path) -> frozenset[Arithmetic]:
    """Return what an entry of the run cache records in its metrics: nothing for a stage that does not compute."""
    outs = recorded_hashes(load_yaml(run).get("outs")).items()
    hashes = [md5 for path, md5 in outs if path.startswith("metrics/") and path.endswith(".json")]
    copies = [cache / "files" / "md5" / md5[:2] / md5[2:] for md5 in hashes]
    return recorded(read_json(copy) for copy in copies if copy.is_file())


def _check_out(clone: Path, wanted: str | None) -> None:
    """Get what cache and remote have of the results in dvc.lock. wanted: only with this arithmetic, and with none."""
    with Repo(os.fspath(clone)) as repo:
        has_remote = bool(repo.config["core"].get("remote"))
    if has_remote:
        run_dvc(clone, "fetch")  # fails if the remote lacks something, after it got the rest
    foreign = [
        file.replace("/", "@")
        for file, content in Revision(WORKSPACE, clone).metrics().items()
        if wanted and any(each.fingerprint != wanted for each in recorded([content]))
    ]
    drop_missing(clone, foreign)
    with Repo(os.fspath(clone)) as repo:
        repo.checkout(allow_missing=True)


def _results(folder: Path, here: str | None) -> _Results:
    found = Revision(WORKSPACE, folder)
    params = found.yaml(PARAMETERS)
    return _Results((params.get("device"), params.get("precision")), recorded(found.metrics().values()), here)
