"""`scratchlm repro`: say what will run and for how long, run it, and show what came out.

DVC runs in this process, and its messages about stages are replaced by ours.
"""

import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from scratchlm.cli import pipeline
from scratchlm.cli.results import WIDTH, results
from scratchlm.run.display import one_line, say
from scratchlm.run.errors import UserError
from scratchlm.run.files import missing
from scratchlm.run.pipeline import CODE_FOLDER

FIRST = "preflight"  # with `code`, which it needs: on their results depends what else has to run
RUNNING = "Running stage '%s':"  # DVC's messages, as it logs them
INSTEAD = {
    "Stage '%s' is cached - skipping run, checking out outputs": ": taken from the cache",
    "Stage '%s' didn't change, skipping": ": skipped, since its inputs came out as before",
}


class Step(NamedTuple):
    """A stage that DVC may have to run. why: in words. seconds: of its last run in this workspace, if it is known."""

    name: str
    why: str
    seconds: float | None


def repro() -> None:
    """Run what a change affects, as `dvc repro` does. List these stages first, show the results at the end."""
    from dvc.exceptions import ReproductionError
    from dvc.lock import LockError
    from dvc.repo import Repo

    if not Path("dvc.yaml").exists():
        raise missing(Path("dvc.yaml"))
    command = typed("scratchlm", os.environ, Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    pipeline.repair()
    try:
        with Repo() as repo:
            with narrated([]):
                repo.reproduce(FIRST)
            steps = planned(repo)
            say(plan_text(steps, len(repo.index.stages)) + "\n" * bool(steps))
            with narrated([step.name for step in steps]):
                repo.reproduce()
    except ReproductionError as error:
        raise UserError(failure(error)) from None
    except LockError:
        raise UserError("another DVC command runs in this project; wait for its end, then run this again") from None
    say("")
    results("text")
    say("")
    pipeline.status()
    say(f"\n{next_text(command)}")


def planned(repo: Any) -> list[Step]:
    """The stages that `repo.reproduce()` may run, in its order: those that changed, and those that depend on them."""
    from dvc.repo.reproduce import plan_repro

    graph, changed = repo.index.graph, repo.status()
    steps: dict[str, Step] = {}
    for stage in plan_repro(graph, list(repo.index.stages)):
        name = stage.addressing
        before = [above.addressing for above in graph.successors(stage) if above.addressing in steps]
        if before or name in changed:
            outputs = [out for out in stage.outs if out.use_cache]
            is_absent = outputs and not any(out.exists or not out.changed_cache() for out in outputs)
            why = "not built here yet" if is_absent else reason(changed.get(name, []), before)
            steps[name] = Step(name, why, last_seconds(log_of(str(stage.cmd))))
    return list(steps.values())


def reason(changes: Iterable[Any], before: Collection[str]) -> str:
    """Say why a stage runs. changes: what `dvc status` lists for it. before: stages above it that run."""
    found: list[str] = []
    for change in changes:
        if isinstance(change, str):  # changed command
            found.append(change)
            continue
        for path, what in change.get("changed deps", {}).items():
            names = list(what) if isinstance(what, Mapping) else ["its code" if path.startswith(CODE_FOLDER) else path]
            found += [f"{name} changed" for name in names]
        found += [f"{path} {what}" for path, what in change.get("changed outs", {}).items()]
    others = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return found[0] + others if found else f"after {', '.join(before)}"


def log_of(command: str) -> Path:
    """The log of a stage, by its command in dvc.yaml; the null device for a stage that has none."""
    return Path(dict(pairwise(command.split())).get("--log", os.devnull))


def last_seconds(log: Path) -> float | None:
    """The seconds of the last complete run in a stage's log; None if there is none or it had resumed."""
    seconds, resumed = None, False
    with suppress(OSError, ValueError, TypeError, KeyError):  # it is only an estimate
        for record in map(json.loads, log.read_text(encoding="utf-8").splitlines()):
            resumed |= "resumed_from" in record
            if "stage" in record:
                seconds, resumed = (seconds if resumed else float(record["seconds"])), False
    return seconds


def plan_text(steps: Sequence[Step], n_stages: int) -> str:
    """The plan in lines of at most WIDTH characters; a reason that is too long ends after a whole word."""
    if not steps:
        return f"All {n_stages} stages are up to date."
    lines = [f"{len(steps)} of {n_stages} stages may have to run:"]
    longest = max(len(step.name) for step in steps)
    is_timed = any(step.seconds is not None for step in steps)
    for number, step in enumerate(steps, 1):
        seconds = "" if step.seconds is None else duration(step.seconds)
        start, why = f"{number:4}  {step.name:{longest}}  " + f"{seconds:>11}  " * is_timed, one_line(step.why)
        if len(start + why) > WIDTH:
            why = why[: WIDTH - 1 - len(start)]
            why = f"{(why.rpartition(' ')[0] or why).rstrip(' ,').removesuffix(' and')}…"
        lines.append(start + why)
    known = [step.seconds for step in steps if step.seconds is not None]
    if known:
        bound = "about" if len(known) == len(steps) else "at least"
        lines.append(f"As long as their last runs: {bound} {duration(sum(known))}.")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds in words: 8 s, 2 min 5 s, 3 h 20 min."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


@contextmanager
def narrated(names: Sequence[str]) -> Iterator[None]:
    """Within the block, say which stage runs in place of DVC's messages; warnings and errors of DVC pass.

    names: of the stages that are numbered; others stay unmentioned.
    """
    numbers = {name: number for number, name in enumerate(names, 1)}

    def narrate(record: logging.LogRecord) -> bool:
        name = record.args[0] if isinstance(record.args, tuple) and record.args else None
        if (record.msg == RUNNING or record.msg in INSTEAD) and name in numbers:
            say(f"stage {numbers[name]} of {len(numbers)}: {name}{INSTEAD.get(record.msg, '')}")
        return record.levelno >= logging.WARNING

    handlers = logging.getLogger("dvc").handlers
    for handler in handlers:
        handler.addFilter(narrate)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(narrate)


def failure(error: BaseException) -> str:
    """A sentence for a `dvc repro` that stopped: the stage itself has said why, DVC has not."""
    from dvc.stage.exceptions import StageCmdFailedError

    stopped = str(error).replace("failed to reproduce", "stopped at")
    if isinstance(error.__cause__, StageCmdFailedError):
        return f"{stopped}, which says above why; run this again to continue there"
    return f"{stopped}: {error.__cause__}; correct that and run this again"


def typed(command: str, environment: Mapping[str, str], folder: Path) -> str:
    """What a person types for a command of the environment whose scripts are in `folder`: its path, if not activated.

    `make` puts the folder on PATH, the person's shell may not have it.
    """
    if environment.get("VIRTUAL_ENV") == str(folder.parent):
        return command
    on_path = shutil.which(command, path=environment.get("PATH"))
    if "MAKELEVEL" not in environment and on_path == str(folder / command):
        return command
    return str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder) + f"/{command}"


def next_text(command: str) -> str:
    """What to do next, in lines of at most WIDTH characters where the command is not much longer than usual."""
    choices = {
        "data/report.html": "every result on one page, in a browser",
        f"{command} chat": "talk to the assistant",
        f"{command} compare HEAD": "after a change and a new run: is it better?",
    }
    longest = max(map(len, choices))
    return "\n".join(["Next:", *(f"  {what:{longest}}  {why}" for what, why in choices.items())])
