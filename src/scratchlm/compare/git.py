"""git and DVC as commands, in this repository or in a clone of it."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from scratchlm.run.errors import UserError

# These tie git to one repository, for example inside a hook
BINDING = ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX")
KEPT_BYTES = 1 << 16  # of the end of the output, where a failing stage prints the reason
SECONDS_TO_STOP = 10


def git(folder: Path, *words: str) -> str:
    """Return what git prints in `folder`. Raises UserError with git's last line if it fails."""
    done = subprocess.run(["git", *words], cwd=folder, env=_neutral_environment(), capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no output"]
        raise UserError(f"git {words[0]} failed in {folder}: {lines[-1]}")
    return done.stdout.strip()


def find_commit(folder: Path, revision: str) -> str:
    """Return the hash of a commit: of a branch, tag or commit, or of a DVC experiment.

    Raises UserError if the repository has no such revision.
    """
    with suppress(UserError):
        return git(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    with suppress(UserError):
        experiments = git(folder, "for-each-ref", "--format=%(objectname) %(refname:lstrip=-1)", "refs/exps")
        found = [line.split()[0] for line in experiments.splitlines() if line.split()[1] == revision]
        if len(found) == 1:
            return found[0]
    raise UserError(
        f"{revision!r} is not a revision of this repository; name a branch, tag, commit or experiment "
        "(`git branch --all` lists the branches, `git fetch` gets new ones)"
    )


def run_dvc(clone: Path, *words: str, **variables: str) -> tuple[int, str]:
    """Run a DVC command, possibly for hours; return its exit status and the end of its output.

    The output also goes to standard error as it comes. The command uses this Python's dvc, and the stages use this
    Python and the clone's library. If this process is interrupted, the command's whole process group is stopped.
    """
    environment = _neutral_environment()
    for name, first in {"PATH": Path(sys.executable).parent, "PYTHONPATH": clone / "src"}.items():
        environment[name] = os.pathsep.join([str(first), *filter(None, [environment.get(name)])])
    if (mirror := environment.get("SCRATCHLM_MIRROR")) and Path(mirror).is_dir():
        environment["SCRATCHLM_MIRROR"] = str(Path(mirror).resolve())  # a relative one is relative to this process
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
                os.killpg(process.pid, signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(SECONDS_TO_STOP)
                with suppress(ProcessLookupError):  # all have exited
                    os.killpg(process.pid, signal.SIGKILL)
    return status, kept.decode("utf-8", errors="replace")


def must_run_dvc(clone: Path, failure: str, *words: str) -> None:
    """Run a DVC command as run_dvc does. Raises UserError that names the `failure` if it fails."""
    if run_dvc(clone, *words)[0]:
        raise UserError(f"{failure}; correct the error printed above, then run this again")


def _neutral_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in BINDING}
