"""What an unfinished stage keeps, so that after a kill it goes on where it was and ends with the same bytes."""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from scratchlm.run.errors import UserError
from scratchlm.run.files import append_log, flush, read_table, sha256_of, write_table

STATES = Path(".scratchlm/resume")
DONE = "done"  # in a folder of states: the stage ended, but DVC may not have recorded it yet
INTERVAL_VARIABLE = "SCRATCHLM_RESUME_SECONDS"  # when a state is kept changes no result, so it is no parameter
INTERVAL_SECONDS = 30.0
LARGEST_SHARE = 0.02  # of the running time may go into keeping states
ASSUMED_BYTES_PER_SECOND = 3e8  # of the first state, before one was timed

Write = Callable[[Path], None]


class Resume:
    """The states of one stage: files `<identity of the run>-<sha256 of the content>` in a folder of its own.

    A state is one file, which appears whole or not at all; it is used only under the identity that it was
    kept under, and only if its content is what its name says.
    """

    def __init__(
        self, folder: Path | None = None, identity: str = "", stage: str = "", log: Path | None = None
    ) -> None:
        """Without a folder nothing is ever kept: for a stage that DVC did not start, whose inputs nobody knows."""
        self._folder, self._identity, self._stage, self._log = folder, identity, stage, log
        self._interval = _interval_seconds() if folder else 0.0
        self._start = self._last = time.perf_counter()
        self._spent = 0.0
        self._cost: float | None = None
        self.kept: str | None = None  # where the newest state stands, in words

    def only_under(self, condition: Any) -> None:
        """Also tell runs apart by something that DVC does not know, such as the model behind a judge."""
        self._identity = hashlib.sha256(
            f"{self._identity} {json.dumps(condition, sort_keys=True)}".encode()
        ).hexdigest()

    def load(self) -> Path | None:
        """The newest sound state of this very run, if there is one.

        Others of it go. Those of other runs stay until this one ends: the user may go back to what they belong to.
        """
        found, foreign = None, False
        if self._folder:
            (self._folder / DONE).unlink(missing_ok=True)  # DVC has no result, else it would not run the stage
        files = sorted(self._folder.glob("*-*"), key=lambda p: p.stat().st_mtime_ns) if self._folder else []
        for path in reversed(files):
            run, _, digest = path.name.partition("-")
            if run != self._identity:
                foreign = True
            elif found is None and sha256_of(path) == digest:
                found = path
            else:
                path.unlink()
                if found is None:
                    self._say(f"the state in {path} is damaged and is not used")
        if foreign and found is None:
            self._say("what an unfinished run kept belongs to other inputs, parameters or code and is not used")
        return found

    def resumed(self, position: str | None) -> None:
        """Say and log from where the stage goes on."""
        self.kept = position
        self._say(f"goes on from {position}, where an unfinished run was")
        if self._log:
            append_log(self._log, {"resumed_from": position})

    def records(self, n_wanted: int) -> list[dict[str, Any]]:
        """The rows that an unfinished run kept of `n_wanted`, to which the run adds; see keeping_records."""
        kept = self.load()
        rows = read_table(kept) if kept else []
        if rows:
            self.resumed(f"row {len(rows)} of {n_wanted}")
        return rows

    def keeping_records(
        self, rows: list[dict[str, Any]], schema: pa.Schema
    ) -> AbstractContextManager[Callable[[], None]]:
        """`keeping` for a growing list of rows."""
        return self.keeping(lambda path: write_table(path, rows, schema), lambda: f"row {len(rows)}")

    @contextmanager
    def keeping(
        self, write: Write, position: Callable[[], str | None], size_bytes: int = 0
    ) -> Iterator[Callable[[], None]]:
        """Yields a function to call where a state could be kept: it does so every SCRATCHLM_RESUME_SECONDS.

        write: puts the whole state into a file. position: where it stands, in words; None while it is not whole.
        size_bytes: about how large it is. A state is also kept when the block is interrupted or must be given up
        with a sentence for the user; nothing is lost then.
        """

        def keep_if_due() -> None:
            now = time.perf_counter()
            cost = size_bytes / ASSUMED_BYTES_PER_SECOND if self._cost is None else self._cost
            affordable = self._spent + cost <= LARGEST_SHARE * (now - self._start)
            if self._folder and now - self._last >= self._interval and affordable:
                self._keep(write, position())

        try:
            yield keep_if_due
        except (KeyboardInterrupt, UserError):
            self._keep(write, position())
            raise

    def done(self) -> None:
        """The stage has ended well: its states go when the next stage starts, for by then DVC has its results."""
        if self._folder and self._folder.exists():
            (self._folder / DONE).touch()

    def _keep(self, write: Write, position: str | None) -> None:
        if not self._folder or position is None:
            return
        start = time.perf_counter()
        self._folder.mkdir(parents=True, exist_ok=True)
        older = list(self._folder.glob(f"{self._identity}-*"))
        temporary = self._folder / "unfinished"
        write(temporary)
        flush(temporary)
        newest = temporary.replace(self._folder / f"{self._identity}-{sha256_of(temporary)}")
        for path in older:
            if path != newest:
                path.unlink()
        self.kept = position
        self._last = time.perf_counter()
        self._cost = self._last - start
        self._spent += self._cost

    def _say(self, sentence: str) -> None:
        print(f"{self._stage}: {sentence}", file=sys.stderr, flush=True)


def forget_finished(stage: str, stages: Iterable[str]) -> None:
    """Remove the states of every other stage that is done, or that is none of `stages` any more."""
    own, known = stage.replace("@", "-"), {name.replace("@", "-") for name in stages}
    for folder in STATES.glob("*"):
        if folder.name != own and (folder.name not in known or (folder / DONE).exists()):
            shutil.rmtree(folder, ignore_errors=True)


def _interval_seconds() -> float:
    given = os.environ.get(INTERVAL_VARIABLE, str(INTERVAL_SECONDS))
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UserError(
            f"{INTERVAL_VARIABLE} is {given!r}, but only a number of seconds from 0 is allowed; set it so, or unset it"
        )
    return seconds
