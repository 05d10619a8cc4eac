"""A commit built again from nothing: a clean clone, an empty cache, one `dvc repro`."""

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scratchlm.compare.git import git, run_dvc
from scratchlm.run.files import write_text
from scratchlm.run.params import load_yaml
from scratchlm.verify.commit import Commit, Stage

LOCK = "dvc.lock"
FAILED = r"ERROR: failed to reproduce '([^']+)': (.*?(?:, exited with (-?\d+))?)$"
PROGRESS = r"\d%\|"


@dataclass(frozen=True)
class Built:
    """What a new dvc.lock records of one stage, hashes by path."""

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class Rebuild:
    """A clone after its `dvc repro`.

    committed: a folder with dvc.lock and the outputs that are in git, as the commit has them. stages: what was built.
    failed: the stage that could not be built and its sentence, or None.
    """

    clone: Path
    committed: Path
    stages: Mapping[str, Built]
    failed: tuple[str, str] | None

    @property
    def cache(self) -> Path:
        return self.clone / ".dvc" / "cache" / "files" / "md5"


@contextmanager
def rebuilt(commit: Commit, stages: Sequence[Stage]) -> Iterator[Rebuild]:
    """Build `stages`, which must hold whatever they need, in a temporary folder that goes when the block ends.

    What DVC and the stages print goes to stderr as it comes.
    """
    with tempfile.TemporaryDirectory(prefix="scratchlm-verify-") as name:
        folder = Path(name).resolve()
        clone, committed = folder / "clone", folder / "committed"
        git(commit.root, "clone", "--quiet", "--no-checkout", str(commit.root), str(clone))
        git(clone, "checkout", "--quiet", "--detach", commit.sha)
        # The strongest of DVC's configurations: whatever cache the others name, this clone starts with an empty one
        write_text(clone / ".dvc" / "config.local", "[cache]\n    dir = cache\n")
        in_git = [output.path for stage in stages for output in stage.outputs if not output.cached]
        for path in (path for path in (LOCK, *in_git) if (clone / path).is_file()):
            (committed / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(clone / path, committed / path)
        lock = clone / LOCK
        lock.unlink(missing_ok=True)  # so that everything is built, and the new one holds what was built now
        names = [stage.name for stage in stages]
        status, end = run_dvc(clone, "repro", *names, DVC_SITE_CACHE_DIR=str(folder / "site"))
        built = load_yaml(lock)["stages"] if lock.exists() else {}
        yield Rebuild(
            clone=clone,
            committed=committed,
            stages={
                name: Built(_hashes(entry.get("deps")), _hashes(entry.get("outs"))) for name, entry in built.items()
            },
            failed=failure_in(end) if status else None,
        )


def failure_in(end: str) -> tuple[str, str]:
    """From the end of what DVC printed: the stage that failed and the last thing that it said, or DVC's reason."""
    lines = [text for line in end.splitlines() if (text := line.strip())]
    errors = [(n, found) for n, line in enumerate(lines) if (found := re.match(FAILED, line))]
    if not errors:
        return "", lines[-1] if lines else "dvc repro failed without a word"
    place, found = errors[-1]
    stage, reason, status = found.groups()
    if status is None:
        return stage, reason
    said = lines[place - 1] if place else ""
    spoke = int(status) > 0 and said and not said.startswith("> ") and not re.search(PROGRESS, said)
    return stage, said if spoke else f"exited with {status}"


def _hashes(entries: Sequence[Mapping[str, str]] | None) -> dict[str, str]:
    return {entry["path"]: entry["md5"] for entry in entries or ()}
