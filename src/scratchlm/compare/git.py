"""git and DVC as commands, in this repository or in a clone of it."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from scratchlm.run.errors import UserError

# What binds git to one repository where git called us, as in a hook
BINDING = ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX")
KEPT_BYTES = 1 << 16  # of the output's end, where a failing stage says why
SECONDS_TO_STOP = 10


def git(folder: Path, *words: str) -> str:
    """What git prints in `folder`. Raises UserError with git's last line if it fails."""
    done = subprocess.run(["git", *words], cwd=folder, env=_neutral_environment(), capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"git {words[0]} failed in {folder}: {last_line(done.stderr)}")
    return done.stdout.strip()


def find_commit(root: Path, revision: str) -> str:
    """The commit's hash. Raises UserError if git has no such revision."""
    try:
        return git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except UserError:
        raise UserError(
            f"{revision!r} is no revision of {root}; name a branch, tag or commit that git has here, after git fetch"
        ) from None


def run_dvc(clone: Path, *words: str, **variables: str) -> tuple[int, str]:
    """The exit status of a dvc command that may take hours, and the end of what it and the stages said.

    That goes to standard error as it comes. The command is this Python's dvc, its stages run with this Python and
    the clone's library. It has a process group of its own: if this process is interrupted, all that it started ends.
    """
    environment = _neutral_environment()
    for name, first in {"PATH": Path(sys.executable).parent, "PYTHONPATH": clone / "src"}.items():
        environment[name] = os.pathsep.join([str(first), *filter(None, [environment.get(name)])])
    if (mirror := environment.get("SCRATCHLM_MIRROR")) and Path(mirror).is_dir():
        environment["SCRATCHLM_MIRROR"] = str(Path(mirror).resolve())  # it may be relative to the folder of the call
    kept = b""
    with subprocess.Popen(
        [sys.executable, "-m", "dvc", *words], cwd=clone, env=environment | variables, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout
        try:
            while chunk := process.stdout.read1(KEPT_BYTES):  # type: ignore[attr-defined]
                sys.stderr.buffer.write(chunk)
                sys.stderr.flush()
                kept = (kept + chunk)[-KEPT_BYTES:]
            status = process.wait()
        finally:
            if process.poll() is None:
                _end(process)
    return status, kept.decode("utf-8", errors="replace")


def last_line(text: str) -> str:
    """The last line that holds anything."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "without a word")


def _end(process: "subprocess.Popen[bytes]") -> None:
    os.killpg(process.pid, signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(SECONDS_TO_STOP)
    with suppress(ProcessLookupError):  # nobody is left
        os.killpg(process.pid, signal.SIGKILL)


def _neutral_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in BINDING}
