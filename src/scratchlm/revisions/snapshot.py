"""A private copy of the project, in which DVC may run while the user goes on working."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dvc.repo import Repo

SECONDS_TO_STOP = 10


@contextmanager
def snapshot(root: Path, revision: str | None = None) -> Iterator[Path]:
    """Yield a clone of the project at `root`: of a revision, or of the workspace as it stands.

    The workspace's clone holds every file that git does not ignore, uncommitted ones too. Clones share the project's
    DVC cache; their data comes by `dvc checkout` or `dvc repro`. They lie in .scratchlm, on the file system of the
    project, and are gone when the block ends, also by a signal.
    `dvc exp run --temp` is no substitute: it rewrites the user's files for a moment, and takes a new copy for each run.
    Raises ValueError if `root` is not the top of a git repository, or the revision is not in it.
    """
    root = root.resolve()
    if git(root, "rev-parse", "--show-prefix"):
        raise ValueError(f"{root} is a folder inside a git repository, not its top; clone the project by itself")
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


def find_commit(root: Path, revision: str) -> str:
    """The commit's hash. Raises ValueError if git has no such revision."""
    try:
        return git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except ValueError:
        raise ValueError(
            f"{root} has no commit {revision}; name a branch, tag or commit that git has here, after git fetch"
        ) from None


def git(folder: Path, *words: str) -> str:
    """What git prints. Raises ValueError with git's last line if it fails."""
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"git {words[0]} failed in {folder}: {_last_line(done.stderr)}")
    return done.stdout.strip()


def dvc(copy: Path, *words: str) -> str:
    """What a quick dvc command in the copy prints. Raises ValueError with its last line if it fails."""
    done = subprocess.run(_dvc_command(*words), cwd=copy, env=_environment(copy), capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"dvc {words[0]} failed: {_last_line(done.stderr)}")
    return done.stdout


def run_dvc(copy: Path, *words: str) -> int:
    """The exit status of a dvc command that may take hours; what it and the stages say goes to standard error.

    An interruption ends the command's processes before it goes on.
    """
    # In a session of their own, so that one signal reaches dvc and the stage, from whatever the interruption came
    with subprocess.Popen(
        _dvc_command(*words),
        cwd=copy,
        env=_environment(copy),
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        start_new_session=True,
    ) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS_TO_STOP)
            with suppress(ProcessLookupError):  # nobody is left
                os.killpg(process.pid, signal.SIGKILL)
            raise


def _dvc_command(*words: str) -> list[str]:
    """dvc of this Python, whether or not its environment is activated."""
    return [sys.executable, "-m", "dvc", *words]


def _environment(copy: Path) -> dict[str, str]:
    """The environment of a command in the copy: `python` is this Python, and the copy's library comes first."""
    path = os.pathsep.join([os.fspath(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    library = os.pathsep.join(filter(None, [os.fspath(copy / "src"), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PATH": path, "PYTHONPATH": library}


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "without a word")


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
