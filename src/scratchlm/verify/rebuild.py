"""Build a commit again from nothing: a clean clone, an empty cache, one `dvc repro`."""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from scratchlm.compare.clone import private_clone
from scratchlm.compare.git import run_dvc
from scratchlm.compare.revision import LOCK, recorded_hashes
from scratchlm.run.params import load_yaml
from scratchlm.verify.commit import Commit, CommittedStage

FAILED = r"ERROR: failed to reproduce '([^']+)': (.*?(?:, exited with (-?\d+))?)$"
PROGRESS = r"\d%\|"


class Built(NamedTuple):
    """The new dvc.lock's record of one stage: hashes by path."""

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


class Rebuild(NamedTuple):
    """A clone after its `dvc repro`.

    committed: a folder with the commit's dvc.lock and those of its outputs that are in git. stages: what was built.
    failed: the stage that failed and its message, or None.
    """

    clone: Path
    committed: Path
    stages: Mapping[str, Built]
    failed: tuple[str, str] | None

    @property
    def cache(self) -> Path:
        return self.clone / ".dvc" / "cache" / "files" / "md5"


@contextmanager
def rebuilt(commit: Commit, stages: Sequence[CommittedStage]) -> Iterator[Rebuild]:
    """Build `stages`, which must include all stages that they need, in a clone that is deleted when the block ends.

    The output of DVC and the stages goes to standard error as it comes.
    """
    with private_clone(commit.root, commit.sha, empty_cache=True) as clone:
        committed, lock = clone.with_name("committed"), clone / LOCK
        in_git = [output.path for stage in stages for output in stage.outputs if not output.cached]
        for path in (path for path in (LOCK, *in_git) if (clone / path).is_file()):
            (committed / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(clone / path, committed / path)
        lock.unlink(missing_ok=True)  # so that DVC builds everything, and the new one has only what was built now
        names = [stage.name for stage in stages]
        status, end = run_dvc(clone, "repro", *names, DVC_SITE_CACHE_DIR=str(clone.with_name("site")))
        new = load_yaml(lock)["stages"] if lock.exists() else {}
        built = {
            name: Built(*(recorded_hashes(stage.get(key)) for key in ("deps", "outs"))) for name, stage in new.items()
        }
        yield Rebuild(clone, committed, built, failure_in(end) if status else None)


def failure_in(end: str) -> tuple[str, str]:
    """Find the failed stage and its last message, or DVC's reason, in the end of DVC's output."""
    lines = [text for line in end.splitlines() if (text := line.strip())]
    errors = [(n, found) for n, line in enumerate(lines) if (found := re.match(FAILED, line))]
    if not errors:
        return "", lines[-1] if lines else "dvc repro failed with no output"
    index, found = errors[-1]
    stage, reason, status = found.groups()
    if status is None:
        return stage, reason
    said = lines[index - 1] if index else ""
    has_message = int(status) > 0 and said and not said.startswith("> ") and not re.search(PROGRESS, said)
    return stage, said if has_message else f"exited with {status}"
