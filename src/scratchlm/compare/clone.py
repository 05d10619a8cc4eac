"""A private clone of the project, in which DVC can run while the user keeps working."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dvc.repo import Repo

from scratchlm.compare.git import find_commit, git
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
    root = root.resolve()
    if git(root, "rev-parse", "--show-prefix"):
        raise UserError(f"{root} is not the top folder of its git repository; give the project a repository of its own")
    commit = find_commit(root, revision or "HEAD")
    store = None if empty_cache else root / ".scratchlm"
    if store:
        store.mkdir(exist_ok=True)
    with _stoppable(), tempfile.TemporaryDirectory(prefix="scratchlm-clone-", dir=store) as folder:
        clone = Path(folder).resolve() / "clone"
        git(root, "clone", "--quiet", "--shared", "--no-checkout", os.fspath(root), os.fspath(clone))
        if revision:
            git(clone, "checkout", "--quiet", "--detach", commit)
        else:
            _copy_workspace(root, clone)
        git(clone, "config", "user.name", "scratchlm")  # results are committed there; the user may have no git name
        git(clone, "config", "user.email", "scratchlm@localhost")
        _set_cache(root, clone, empty_cache)
        yield clone


def _copy_workspace(root: Path, clone: Path) -> None:
    for name in git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        if name and os.path.lexists(root / name):  # git lists a deleted file until the deletion is committed
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, clone / name, follow_symlinks=False)
    git(clone, "add", "--all")


def _set_cache(root: Path, clone: Path, empty: bool) -> None:
    """Write the strongest of DVC's configurations, so that no other one names another cache."""
    credentials = root / ".dvc" / "config.local"  # of a remote
    if credentials.exists() and not empty:
        shutil.copy2(credentials, clone / ".dvc")
    with Repo(os.fspath(root)) as repo, Repo(os.fspath(clone)).config.edit("local") as settings:
        settings["cache"]["dir"] = os.fspath(clone / ".dvc" / "cache") if empty else repo.cache.local_cache_dir


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
