"""A private copy of the project, in which DVC may run while the user goes on working."""

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
def snapshot(root: Path, revision: str | None = None) -> Iterator[Path]:
    """Yield a clone of the project at `root`: of a revision, or of the workspace as it stands.

    The workspace's clone holds every file that git does not ignore, uncommitted ones too. Clones share the project's
    DVC cache; their data comes by `dvc checkout` or `dvc repro`. They lie in .scratchlm, on the file system of the
    project, and are gone when the block ends, also by a signal.
    `dvc exp run --temp` is no substitute: it rewrites the user's files for a moment, and takes a new copy for each run.
    Raises UserError if `root` is not the top of a git repository, or the revision is not in it.
    """
    root = root.resolve()
    if git(root, "rev-parse", "--show-prefix"):
        raise UserError(f"{root} is a folder inside a git repository, not its top; clone the project by itself")
    commit = find_commit(root, revision or "HEAD")
    store = root / ".scratchlm"
    store.mkdir(exist_ok=True)
    with _stoppable(), tempfile.TemporaryDirectory(prefix="snapshot-", dir=store) as folder:
        copy = Path(folder) / root.name
        git(root, "clone", "--quiet", "--shared", "--no-checkout", os.fspath(root), os.fspath(copy))
        if revision:
            git(copy, "checkout", "--quiet", "--detach", commit)
        else:
            for name in git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
                if name and os.path.lexists(root / name):  # a deleted file is listed until its deletion is committed
                    (copy / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(root / name, copy / name, follow_symlinks=False)
            git(copy, "add", "--all")
        git(copy, "config", "user.name", "scratchlm")  # results become commits there, and not everybody has a name
        git(copy, "config", "user.email", "scratchlm@localhost")
        local_settings = root / ".dvc" / "config.local"  # the keys to a remote
        if local_settings.exists():
            shutil.copy2(local_settings, copy / ".dvc")
        with Repo(os.fspath(root)) as repo, Repo(os.fspath(copy)).config.edit("local") as settings:
            settings["cache"]["dir"] = repo.cache.local_cache_dir
        yield copy


@contextmanager
def _stoppable() -> Iterator[None]:
    """A request to end and a closed terminal interrupt as Ctrl-C does: the block cleans up behind itself."""
    signals = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
