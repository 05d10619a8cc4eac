"""git and DVC as commands, in this repository or in a clone of it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from scratchlm.run.errors import UserError
from scratchlm.run.tensorboard import TENSORBOARD_VARIABLE

# These tie git to one repository, for example inside a hook
BINDING = ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX")
# Where downloads come from and what they are checked with: paths, and addresses for which pip also takes paths
PATHS = ("SCRATCHLM_MIRROR", "PIP_CERT", "PIP_CLIENT_CERT", "PIP_CONFIG_FILE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
ADDRESSES = ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")
KEPT_BYTES = 1 << 16  # of the end of the output, where a failing stage prints the reason
SECONDS_TO_STOP = 10
# Lines of `dvc exp run` that mislead outside of its clone, such as those on results "applied to your workspace"
OF_THE_CLONE = (b"Experiment results have been applied", b"Ran experiment(s): ", b"Updating lock file ", b"> python ")


def git(folder: Path, *words: str) -> str:
    """Return what git prints in `folder`, without running the user's hooks. Raises UserError with git's reason."""
    command = ["git", "-c", f"core.hooksPath={os.devnull}", *words]
    try:
        done = subprocess.run(
            command, cwd=folder, env=_neutral_environment(), capture_output=True, encoding="utf-8",
            errors="surrogateescape",
        )  # fmt: skip
    except FileNotFoundError as error:
        if error.filename != command[0]:
            raise
        raise UserError("git is not on PATH; install it, or add its folder to PATH") from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["no output"]
        first = next((n for n, line in enumerate(lines) if line.startswith(("fatal:", "error:"))), len(lines) - 1)
        reason = " ".join(lines[first:])
        if "not a git repository" in reason:
            raise UserError(f"{folder.resolve()} is in no git repository; run scratchlm in a clone of the project")
        raise UserError(f"git {words[0]} failed in {folder.resolve()}: {reason}")
    return done.stdout.strip()


def fetch_refs(root: Path, clone: Path, *refs: str) -> None:
    """Copy commits and refs, each as `source:target`, from a clone. No other ref or tag of `root` changes."""
    words = ("fetch", "--quiet", "--no-write-fetch-head", "--no-tags", "--no-prune", "--no-auto-gc")
    git(root, *words, os.fspath(clone), *refs)


def find_commit(folder: Path, revision: str) -> str:
    """Return the hash of a commit: of a branch, tag or commit, or of a DVC experiment.

    Raises UserError if the repository has no such revision.
    """
    shallow = git(folder, "rev-parse", "--is-shallow-repository") == "true"  # says what is wrong with the repository
    with suppress(UserError):
        return git(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    experiments = git(folder, "for-each-ref", "--format=%(objectname) %(refname:lstrip=-1)", "refs/exps")
    found = [line.split()[0] for line in experiments.splitlines() if line.split()[1] == revision]
    if len(found) == 1:
        return found[0]
    if not git(folder, "rev-list", "--max-count=1", "--all"):
        raise UserError(f"{folder.resolve()} has no commit yet; run `git add -A` and `git commit` first")
    raise UserError(
        f"{revision!r} is not a revision of this repository; name a branch, tag, commit or experiment "
        "(`git branch --all` lists the branches, `git fetch` gets new ones)"
        + ("; this clone is shallow, and `git fetch --unshallow` gets its history" if shallow else "")
    )


def committed_files(folder: Path, commit: str, *paths: str) -> list[str]:
    """Return the files and folders of a commit among these paths, or in one that ends in a slash."""
    return [name for name in git(folder, "ls-tree", "--name-only", "-z", commit, *paths).split("\0") if name]


def changed_files(folder: Path, *paths: str) -> list[str]:
    """Return the files among these paths that differ from HEAD, new ones included that git does not ignore."""
    changed = git(folder, "diff", "--name-only", "-z", "HEAD", "--", *paths)
    new = git(folder, "ls-files", "--others", "--exclude-standard", "-z", "--", *paths)
    return [name for name in (changed + new).split("\0") if name]


def unpack_commit(folder: Path, commit: str, paths: Sequence[str], target: Path) -> None:
    """Copy the files and folders at these paths of a commit to `target`, without those that it lacks."""
    if found := committed_files(folder, commit, *paths):
        with TemporaryDirectory() as scratch:
            archive = Path(scratch, "commit.zip")
            git(folder, "archive", f"--output={archive}", commit, *found)
            shutil.unpack_archive(archive, target)


@contextmanager
def dvc_processes() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Yield a function that starts a DVC command in a clone: its process, with what it prints in `stdout`.

    The function takes the clone, the command's words, and variables of its environment. The command uses this Python's
    dvc, and the stages use this Python and the clone's library. When the block ends, commands that still run are
    stopped with their whole process groups.
    """
    processes = []

    def start(clone: Path, *words: str, **variables: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "dvc", *words], cwd=clone, env=clone_environment(clone) | variables,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        processes.append(process)
        return process

    try:
        yield start
    finally:
        _stop([process for process in processes if process.poll() is None])


def run_dvc(clone: Path, *words: str, **variables: str) -> tuple[int, str]:
    """Run a DVC command, possibly for hours; return its exit status and the end of its output.

    The output also goes to standard error as it comes. If this process is interrupted, the command is stopped.
    """
    kept = b""
    with dvc_processes() as start:
        process = start(clone, *words, **variables)
        assert process.stdout
        while chunk := process.stdout.read1(KEPT_BYTES):  # type: ignore[attr-defined]
            sys.stderr.buffer.write(chunk)
            sys.stderr.flush()
            kept = (kept + chunk)[-KEPT_BYTES:]
        process.stdout.close()
        status = process.wait()
    return status, kept.decode("utf-8", errors="replace")


def clone_environment(clone: Path) -> dict[str, str]:
    """The environment of a command in a clone; paths that are relative to this process's folder become absolute."""
    environment = _neutral_environment()
    environment.pop(TENSORBOARD_VARIABLE, None)  # or a clone would write among the user's own curves
    for name, first in {"PATH": Path(sys.executable).parent, "PYTHONPATH": clone / "src"}.items():
        environment[name] = os.pathsep.join([str(first), *filter(None, [environment.get(name)])])
    for name in filter(environment.get, PATHS):
        if os.path.lexists(environment[name]):  # false, where Path.exists raises, for an address that is too long
            environment[name] = str(Path(environment[name]).resolve())
    for name in filter(environment.get, ADDRESSES):  # pip splits them at white space, which an absolute path may hold
        words = environment[name].split()
        environment[name] = " ".join(Path(word).resolve().as_uri() if os.path.lexists(word) else word for word in words)
    return environment


def must_run_dvc(clone: Path, failure: str, *words: str) -> None:
    """Run a DVC command as run_dvc does. Raises UserError that names the `failure` if it fails."""
    if run_dvc(clone, *words)[0]:
        raise UserError(f"{failure}; correct the error printed above, then run this again")


def run_each(
    clones: Sequence[Path], unit: str, commands: Mapping[int, Sequence[str]]
) -> Generator[tuple[int, Path, int], None, None]:
    """Run DVC commands, one at a time in each clone. After a failure, start no more.

    commands: the words of each by its number, at least as many as clones; they start in this order. unit: what the
    numbers are, such as seed. Each line that a command prints goes to standard error, after unit and number.
    Yield the number, the clone and the exit status of each as it ends. The clone gets its next command when the caller
    asks for more, so its files can be read until then. Close the generator to stop the commands.
    """
    waiting = [*commands.items()]
    running: dict[Future[int], tuple[int, Path]] = {}
    with ThreadPoolExecutor(len(clones)) as pool, dvc_processes() as start:

        def begin(clone: Path) -> None:
            number, words = waiting.pop(0)
            running[pool.submit(_show, f"{unit} {number}: ", start(clone, *words))] = number, clone

        for clone in clones:
            begin(clone)
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                number, clone = running.pop(future)
                if future.result():
                    waiting.clear()
                yield number, clone, future.result()
                if waiting:
                    begin(clone)


def _show(prefix: str, process: subprocess.Popen[bytes]) -> int:
    """Copy whole lines that are neither blank nor about the clone; return the exit status.

    Lines of several processes do not mix.
    """
    assert process.stdout
    with process.stdout as lines:
        for line in lines:
            if not line.strip() or line.startswith(OF_THE_CLONE):
                continue
            sys.stderr.buffer.write(prefix.encode() + line)
            sys.stderr.flush()
    return process.wait()


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Interrupt the process groups, and kill what is left after SECONDS_TO_STOP, or at once on Ctrl-C."""
    for process in processes:
        _signal_group(process, signal.SIGINT)
    deadline = time.monotonic() + SECONDS_TO_STOP
    try:
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            _signal_group(process, signal.SIGKILL)


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):  # all have exited
        os.killpg(process.pid, number)


def _neutral_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in BINDING}
