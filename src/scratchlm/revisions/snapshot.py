"""A private copy of the workspace as it stands, in which DVC may run while the user goes on working."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dvc.repo import Repo

from scratchlm.artifacts import write_text


@contextmanager
def snapshot(root: Path) -> Iterator[Path]:
    """Yield a clone of the project at `root` that holds every file that git does not ignore, uncommitted ones too.

    It shares the project's DVC cache; its data comes by `dvc checkout`. It lies in
    .scratchlm, on the file system of the project, and is gone when the block ends, however it ends.
    `dvc exp run --temp` is no substitute: it rewrites the user's files for a moment, and takes a new copy for each run.
    Raises ValueError if `root` is not the top of a git repository with a commit.
    """
    if git(root, "rev-parse", "--show-prefix").strip():
        raise ValueError(f"{root} is a folder inside a git repository; experiments need it at the top: clone it alone")
    git(root, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    root = root.resolve()
    store = root / ".scratchlm"
    store.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="snapshot-", dir=store) as folder:
        copy = Path(folder) / root.name
        git(root, "clone", "--quiet", "--shared", "--no-checkout", os.fspath(root), os.fspath(copy))
        for name in git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
            if name and os.path.lexists(root / name):  # a deleted file is listed until the deletion is committed
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, copy / name, follow_symlinks=False)
        git(copy, "add", "--all")
        git(copy, "config", "user.name", "scratchlm")  # an experiment is a commit, and not everybody has a name
        git(copy, "config", "user.email", "scratchlm@localhost")
        with Repo(os.fspath(root)) as repo:
            write_text(copy / ".dvc" / "config.local", f"[cache]\n    dir = {repo.cache.local_cache_dir}\n")
        yield copy


def dvc(copy: Path, *words: str) -> str:
    """What a quick dvc command in the copy prints. Raises ValueError with its last line if it fails."""
    done = subprocess.run(dvc_command(*words), cwd=copy, env=environment(copy), capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"dvc {words[0]} failed: {_last_line(done.stderr)}")
    return done.stdout


def dvc_command(*words: str) -> list[str]:
    """dvc of this Python, whether or not its environment is activated."""
    return [sys.executable, "-m", "dvc", *words]


def environment(copy: Path) -> dict[str, str]:
    """The environment of a command in the copy: `python` is this Python, and the copy's library comes first."""
    path = os.pathsep.join([os.fspath(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    library = os.pathsep.join(filter(None, [os.fspath(copy / "src"), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PATH": path, "PYTHONPATH": library}


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(
            f"{folder}: git {words[0]} failed: {_last_line(done.stderr) or 'no commit yet, make one first'}"
        )
    return done.stdout


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")
