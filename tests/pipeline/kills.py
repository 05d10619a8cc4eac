"""Kill `dvc repro` at any moment and check what must hold afterwards. `make torture` is the long form:

python -m tests.pipeline.kills --kills 40             # of the sample, at random moments; the seed is printed
python -m tests.pipeline.kills --kills 40 --short     # with short trainings: more kills in the other stages

Each build that ended with the right bytes is added to tests/pipeline/kills.json, so that many kills come in parts.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from tqdm import tqdm

from scratchlm.run.workers import PLACE_VARIABLE
from tests.clones import FEW_STEPS, MODEL, environment, make_clone, results, run

STAGE_COMMAND = "stages."
# What DVC says of its own files if it was killed while it rewrote them and no stage had run that would guard them
NEEDS_MENDING = (
    "RWLock-file",
    "dvc.lock' is invalid",
    "dvc.lock' validation failed",
    "YAML file structure is corrupted",
)
HOWS = ("group", "dvc", "stage")
LONGEST_SECONDS = 25.0  # from a start to its kill; `dvc repro` of the sample has stages of one to fifteen seconds
# Trainings of a few seconds: long enough to be killed
SOME_STEPS = FEW_STEPS | {
    "model": MODEL, "pretrain.epochs": 0.3, "finetune_spam.epochs": 4, "finetune_instruct.epochs": 1,
}  # fmt: skip
LONGEST_SHORT_SECONDS = 8.0
LONGEST_END_SECONDS = 300.0  # from a kill to DVC's end
TALLY = Path(__file__).with_suffix(".json")


class Clone:
    """A clone whose pipeline is rebuilt and killed: `folder`/clone, with a temporary folder of its own beside it.

    `reference` has dvc.lock and all of metrics/ of an undisturbed build. `hows` are what `strike` can kill. `events`
    are counts of a subclass, beside those of torture().
    """

    hows: tuple[str, ...] = HOWS

    def __init__(self, folder: Path) -> None:
        self.path = folder / "clone"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.output = folder / "output"
        self.variables = {"SCRATCHLM_RESUME_SECONDS": "0.2", "TMPDIR": str(self.temporary)}
        self.reference: dict[str, bytes] = {}
        self.usual: set[Path] = set()
        self.events: Counter[str] = Counter()

    def build(self) -> None:
        """Build undisturbed, as the reference."""
        run(self.path, "dvc", "repro", **self.variables)
        self.reference = results(self.path)
        self.usual = set(self.temporary.iterdir())  # folders of torch's own

    def forget(self) -> None:
        """Back to a fresh clone: no output, no cache, nothing to restore from."""
        others = [self.path / name for name in (".dvc/cache", "metrics", "logs")]
        for path in [*(self.path / "data").iterdir(), *others]:
            if path.name != "sample" and path.exists():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        run(self.path, "git", "checkout", "-q", "--", ".")

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["dvc", "repro"],
            cwd=self.path,
            env=environment(self.path, **self.variables),
            stdout=self.output.open("w"),
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finish(self) -> None:
        """Let `dvc repro` finish; assert that the results are those of an undisturbed build."""
        dvc = self.start()
        if dvc.wait():
            self.repair_after(dvc)
            run(self.path, "dvc", "repro", **self.variables)
        assert results(self.path) == self.reference
        wait_for(lambda: not self.processes(), "a process is left over")
        assert self.stale_temporary_files() == []

    def repair_after(self, dvc: subprocess.Popen[str]) -> None:
        """`scratchlm repair`, as `make repro` calls it each time; asserts that DVC failed because of its own files."""
        said = self.output.read_text()
        assert any(words in said for words in NEEDS_MENDING), f"dvc repro failed by itself:\n{said[-3000:]}"
        run(self.path, "scratchlm", "repair")

    def processes(self) -> list[psutil.Process]:
        """Every process that runs in the clone, watchdogs included."""
        return [process for process in psutil.process_iter() if self._is_here(process)]

    def stage(self) -> psutil.Process | None:
        """The process of the running stage, if there is one."""
        return next((process for process in self._of_stage() if not _is_worker(process)), None)

    def workers(self) -> list[psutil.Process]:
        """The running stage's other processes that train or answer."""
        return [process for process in self._of_stage() if _is_worker(process)]

    def strike(self, dvc: subprocess.Popen[str], how: str) -> None:
        """Send SIGKILL to DVC's process group, to DVC or to the stage, once one runs."""
        if how == "group":
            os.killpg(dvc.pid, signal.SIGKILL)
        elif how == "dvc":
            dvc.kill()
        else:
            wait_for(lambda: self.stage() is not None or dvc.poll() is not None, "no stage runs")
            if stage := self.stage():
                stage.kill()

    def stale_temporary_files(self) -> list[str]:
        """Temporary files and checkpoints in the clone (DVC's cache included) and in the temporary folder."""
        ends = (".tmp", ".old", ".part")
        in_clone = [p for p in self.path.rglob("*") if p.name.endswith(ends) and ".git" not in p.parts]
        states = [p for p in (self.path / ".scratchlm" / "resume").rglob("*") if p.is_file()]
        return [str(path) for path in [*in_clone, *states, *(set(self.temporary.iterdir()) - self.usual)]]

    def resumed(self) -> Counter[str]:
        """How often each stage resumed from a checkpoint, by its log."""
        logs = (self.path / "logs").glob("*.jsonl")
        return Counter(log.stem for log in logs for line in log.open() if "resumed_from" in json.loads(line))

    def _of_stage(self) -> list[psutil.Process]:
        return [p for p in self.processes() if _arguments(p)[1:2] == ["-m"] and _is_stage(_arguments(p))]

    def _is_here(self, process: psutil.Process) -> bool:
        try:
            return process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == self.path
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False


def kill(clone: Clone, dvc: subprocess.Popen[str], how: str) -> None:
    """Have the clone kill what `how` names and wait until DVC has ended; assert that no process survives."""
    clone.strike(dvc, how)
    dvc.wait(LONGEST_END_SECONDS)
    wait_for(lambda: not clone.processes(), "a process survives the kill", seconds=20)


def wait_for(what: Callable[[], bool], trouble: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, trouble
        time.sleep(0.02)


def torture(clone: Clone, n_kills: int, seed: int, longest_seconds: float) -> Iterator[Counter[str]]:
    """Kill n_kills times at random moments, build after build; every build must end as if undisturbed.

    Yields what happened in each build: `kills`, `kills in STAGE`, `repairs` of DVC's files, and `resumed STAGE` where
    training was resumed.
    """
    draw = random.Random(seed)
    with tqdm(total=n_kills, desc="kills", unit="kill") as bar:
        while bar.n < n_kills:
            clone.forget()
            happened: Counter[str] = Counter()
            while bar.n < n_kills:
                dvc = clone.start()
                how = draw.choice(clone.hows)
                try:
                    dvc.wait(draw.uniform(0, longest_seconds))
                except subprocess.TimeoutExpired:
                    stage = clone.stage()
                    during = _arguments(stage)[2:3] if stage else []
                    kill(clone, dvc, how)
                    happened.update(["kills", "kills in " + (during[0] if during else "DVC itself")])
                    bar.update()
                    continue
                if dvc.returncode == 0:
                    break
                clone.repair_after(dvc)
                happened["repairs"] += 1
            clone.finish()
            resumed = {f"resumed {stage}": times for stage, times in clone.resumed().items()}
            yield happened + Counter(resumed) + clone.events
            clone.events.clear()


def add_up(kills: Iterator[Counter[str]], tally: Path) -> None:
    """Add each build that torture() yields to a JSON file of totals."""
    for happened in kills:
        tqdm.write(f"a build with {happened['kills']} kills: the same bytes")
        before = json.loads(tally.read_text()) if tally.exists() else {}
        total = Counter(before) + happened + Counter(builds=1)
        tally.write_text(json.dumps(dict(sorted(total.items())), indent=2) + "\n")
    print(f"{tally.name}: {total['kills']} kills in {total['builds']} builds; every build has the same bytes")


@contextmanager
def working_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="scratchlm-torture-") as folder:
        try:
            yield Path(folder).resolve()
        except BaseException:
            print((Path(folder) / "output").read_text()[-3000:], flush=True)
            raise


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def _is_worker(process: psutil.Process) -> bool:
    try:
        return PLACE_VARIABLE in process.environ()
    except psutil.NoSuchProcess:
        return False


def _is_stage(arguments: list[str]) -> bool:
    return len(arguments) > 2 and arguments[2].startswith(STAGE_COMMAND)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--short", action="store_true", help="short trainings, in float32")
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    with working_folder() as folder:
        make_clone(folder / "clone", SOME_STEPS if options.short else None)
        clone = Clone(folder)
        clone.build()
        longest = LONGEST_SHORT_SECONDS if options.short else LONGEST_SECONDS
        add_up(torture(clone, options.kills, options.seed, longest), TALLY)


if __name__ == "__main__":
    main()
