"""The checkpoint of an unfinished stage: after a kill it resumes where it was and ends with the same bytes."""

import hashlib
import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from scratchlm.run.environment import LONGEST_SECONDS, requested
from scratchlm.run.errors import UserError, explained
from scratchlm.run.files import append_log, flush, naming, read_table, sha256_of, temporary_folder, write_table

CHECKPOINTS = Path(".scratchlm/resume")
SAVED = r"[0-9a-f]{64}-[0-9a-f]{64}|done|unfinished"  # all that is ever deleted, and the folders of parts
PARTS = r"[0-9a-f]{64}"
DONE = "done"  # in a stage's folder: the stage ended, but DVC may not have recorded it yet
INTERVAL_VARIABLE = "SCRATCHLM_RESUME_SECONDS"  # when a checkpoint is saved changes no result, so it is no parameter
INTERVAL_SECONDS = 30.0
PAUSE_PER_COST = 50  # a save is due at the earliest 50 times as long after the last one as that took: 2 % of the time
ASSUMED_BYTES_PER_SECOND = 3e8  # of the first save, before one was timed

Write = Callable[[Path], None]


class Checkpoint:
    """The file that one stage saves: `<cache key of the run>-<sha256 of the content>` in a folder of its own.

    The file appears whole or not at all. It is used only under the cache key that it was saved under, and only if its
    content has the hash in its name.
    """

    def __init__(
        self, folder: Path | None = None, cache_key: str = "", stage: str = "", log: Path | None = None
    ) -> None:
        """Without a folder nothing is saved: for a stage that DVC did not start, whose inputs are not known."""
        self._folder, self._cache_key, self._stage, self._log = folder, cache_key, stage, log
        self._interval = interval_seconds() if folder else 0.0
        self._last = time.perf_counter()
        self._cost: float | None = None
        self.position: str | None = None  # of the newest file, in words

    def require(self, condition: Any) -> None:
        """Also tell runs apart by something that DVC does not compare, such as the model that a judge uses."""
        both = f"{self._cache_key} {json.dumps(condition, sort_keys=True)}"
        self._cache_key = hashlib.sha256(both.encode()).hexdigest()

    def load(self) -> Path | None:
        """The newest sound file of this very run, if there is one.

        Its other files are deleted. Those of other runs stay until this one ends: the user may switch back to them.
        """
        if not self._folder:
            return None
        (self._folder / DONE).unlink(missing_ok=True)  # DVC has no result, else it would not run the stage
        found, foreign = None, False
        for path in sorted(self._folder.glob("*-*"), key=lambda p: p.stat().st_mtime_ns, reverse=True):
            cache_key, _, digest = path.name.partition("-")
            if cache_key != self._cache_key:
                foreign = True
            elif found is None and sha256_of(path) == digest:
                found = path
            else:
                path.unlink()
                if found is None:
                    self._say(f"ignoring the checkpoint {path}: it is damaged")
        if foreign and found is None:
            self._say("ignoring the checkpoint of an unfinished run: its inputs, parameters or code were different")
        return found

    def resumed(self, position: str | None) -> None:
        """Print and log where the stage resumes."""
        self.position = position
        self._say(f"resuming from {position}")
        if self._log:
            append_log(self._log, {"resumed_from": position})

    def load_rows(self, n_wanted: int) -> list[dict[str, Any]]:
        """The rows that an unfinished run saved of `n_wanted`; see saving_rows."""
        path = self.load()
        rows = read_table(path) if path else []
        if rows:
            self.resumed(f"row {len(rows)} of {n_wanted}")
        return rows

    def saving_rows(self, rows: list[dict[str, Any]], schema: pa.Schema) -> AbstractContextManager[Callable[[], None]]:
        """`saving` for a growing list of rows."""
        return self.saving(lambda path: write_table(path, rows, schema), lambda: f"row {len(rows)}")

    @contextmanager
    def saving(
        self, write: Write, position: Callable[[], str | None], size_bytes: int = 0
    ) -> Iterator[Callable[[], None]]:
        """Yield a function to call where a checkpoint could be saved: it saves one if that is due.

        write: puts everything into a file. position: the position in words, or None if nothing consistent can be
        written. size_bytes: the approximate size of the file. A checkpoint is also saved when the block is interrupted
        or raises a UserError.
        """

        def save_if_due() -> None:
            cost = size_bytes / ASSUMED_BYTES_PER_SECOND if self._cost is None else self._cost
            pause = max(self._interval, PAUSE_PER_COST * cost)
            if self._folder and time.perf_counter() - self._last >= pause:
                self._save(write, position())

        try:
            yield save_if_due
        except (KeyboardInterrupt, UserError):
            try:
                self._save(write, position())
            except OSError as refusal:
                self._say(f"no checkpoint was saved: {explained(refusal)}")
            raise

    @contextmanager
    def parts(self, beside: Path) -> Iterator[Path]:
        """Yield the folder of this very run for parts of its result, which are kept if the run is interrupted.

        Each part must appear in it whole or not at all, and tell whether it is sound. Without a folder for checkpoints,
        it is a temporary one `beside` a path.
        """
        if not self._folder:
            with temporary_folder(beside) as scratch:
                yield scratch
            return
        (self._folder / DONE).unlink(missing_ok=True)
        folder = self._folder / self._cache_key
        if not folder.exists() and any(re.fullmatch(PARTS, path.name) for path in self._folder.glob("*")):
            self._say("ignoring the parts of an unfinished run: its inputs, parameters or code were different")
        folder.mkdir(parents=True, exist_ok=True)
        yield folder

    def finish(self) -> None:
        """The stage has succeeded: its files are deleted when the next stage starts and DVC has the results."""
        if self._folder and self._folder.exists():
            (self._folder / DONE).touch()

    def _save(self, write: Write, position: str | None) -> None:
        if not self._folder or position is None:
            return
        start = time.perf_counter()
        self._folder.mkdir(parents=True, exist_ok=True)
        older = list(self._folder.glob(f"{self._cache_key}-*"))
        temporary = self._folder / "unfinished"
        with naming(temporary):
            write(temporary)
            flush(temporary)
        newest = temporary.replace(self._folder / f"{self._cache_key}-{sha256_of(temporary)}")
        for path in older:
            if path != newest:
                path.unlink()
        self.position = position
        self._last = time.perf_counter()
        self._cost = self._last - start

    def _say(self, sentence: str) -> None:
        print(f"{self._stage}: {sentence}", file=sys.stderr, flush=True)


def delete_finished(stage: str, stages: Iterable[str]) -> None:
    """Delete the checkpoints of every other stage that has ended, or that is no longer one of `stages`."""
    own, known = stage.replace("@", "-"), {name.replace("@", "-") for name in stages}
    for folder in CHECKPOINTS.glob("*"):
        if folder.name != own and (folder.name not in known or (folder / DONE).exists()):
            for path in folder.glob("*"):
                if re.fullmatch(PARTS, path.name) and not path.is_symlink():
                    shutil.rmtree(path)
                elif re.fullmatch(SAVED, path.name):
                    path.unlink()
            with suppress(OSError):  # it holds something else, or is no folder
                folder.rmdir()


def interval_seconds() -> float:
    """The seconds between two checkpoints of a stage. Raises UserError unless they are 0 to LONGEST_SECONDS."""
    return requested(INTERVAL_VARIABLE, LONGEST_SECONDS, INTERVAL_SECONDS, 0)
