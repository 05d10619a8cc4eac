"""A private clone of the project, in which DVC can run while the user keeps working."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from configobj import ConfigObj
from dvc.config_schema import RelPath
from dvc.repo import Repo

from scratchlm.compare.git import find_commit, git
from scratchlm.run.code import refuse_path
from scratchlm.run.errors import UserError


@contextmanager
def private_clone(root: Path, revision: str | None = None, *, empty_cache: bool = False) -> Iterator[Path]:
    """Yield a clone of the project at `root`: of a revision, or of the workspace with its uncommitted changes.

    The workspace's clone has every file that git does not ignore. `dvc checkout` or `dvc repro` gets the data.
    empty_cache: give the clone a cache of its own, and no remote credentials; it is then in the system's folder for
    temporary files. Otherwise it uses the project's cache and is in .scratchlm, on the same file system.
    The clone is deleted when the block ends, also after SIGTERM or SIGHUP, which act like Ctrl-C within the block.
    `dvc exp run --temp` does not replace this: it rewrites the user's files for a moment, and copies them in each run.
    Raises UserError if `root` is not the top folder of a git repository, or the revision does not exist.
    """
    refuse_path(root)
    root = root.resolve()
    if os.pathsep in str(root):
        raise UserError(f"the project's path {root} holds {os.pathsep!r}, which PYTHONPATH cannot; rename that folder")
    if git(root, "rev-parse", "--show-prefix"):
        raise UserError(f"{root} is not the top folder of its git repository; give the project a repository of its own")
    commit = find_commit(root, revision or "HEAD")
    store = None if empty_cache else root / ".scratchlm"
    if store:
        store.mkdir(exist_ok=True)
    with _stoppable(), tempfile.TemporaryDirectory(prefix="scratchlm-clone-", dir=store) as folder:
        clone = Path(folder).resolve() / "clone"
        as_stored = ("--config", "core.autocrlf=false")  # old revisions have no .gitattributes
        git(root, "clone", "--quiet", "--shared", "--no-checkout", *as_stored, os.fspath(root), os.fspath(clone))
        if revision:
            git(clone, "checkout", "--quiet", "--detach", commit)
        else:
            _copy_workspace(root, clone)
        git(clone, "config", "user.name", "scratchlm")  # results are committed there; the user may have no git name
        git(clone, "config", "user.email", "scratchlm@localhost")
        _configure(root, clone, empty_cache)
        yield clone


def _copy_workspace(root: Path, clone: Path) -> None:
    for name in git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        if name and os.path.lexists(root / name):  # git lists a deleted file until the deletion is committed
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, clone / name, follow_symlinks=False)
    git(clone, "add", "--all")


def _configure(root: Path, clone: Path, empty: bool) -> None:
    """Let DVC use in the clone the cache and the remotes of the project, or an empty cache and no credentials."""
    credentials = root / ".dvc" / "config.local"  # of a remote
    if empty:
        write_config(clone, cache=clone / ".dvc" / "cache")
        return
    if credentials.exists():
        shutil.copy2(credentials, clone / ".dvc")
    with Repo(os.fspath(root)) as repo:
        urls = {name: remote.get("url") for name, remote in repo.config["remote"].items()}
        here = {name: url for name, url in urls.items() if isinstance(url, RelPath)}  # relative to the project's folder
        write_config(clone, cache=Path(repo.cache.local_cache_dir), remotes=here)


def write_config(clone: Path, cache: Path, remotes: Mapping[str, str] | None = None) -> None:
    """Set the folder of the cache and of local remotes in the strongest of DVC's configurations.

    DVC's own function to write it refuses a path that is not ASCII, though DVC reads it as UTF-8.
    """
    path = clone / ".dvc" / "config.local"
    settings = ConfigObj(os.fspath(path), encoding="utf-8", interpolation=False)
    settings.setdefault("cache", {})["dir"] = os.fspath(cache)
    for name, folder in (remotes or {}).items():
        settings.setdefault(f'remote "{name}"', {})["url"] = str(folder)
    settings.write()


@contextmanager
def _stoppable() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise KeyboardInterrupt, so that `finally` clauses run."""
    signals = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
