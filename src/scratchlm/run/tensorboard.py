"""Curves of a training for TensorBoard, in event files that grow while it runs.

Not torch's SummaryWriter, which imports TensorFlow if that is installed: 3 s and 600 MB for each stage. Of
tensorboardX, EventsWriter: it writes in this thread, so a full disk raises here.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from scratchlm.run.errors import UserError
from scratchlm.run.files import refuse_unwritable

TENSORBOARD_VARIABLE = "SCRATCHLM_TENSORBOARD"  # curves change no result, so it is no parameter
PROJECT_FOLDERS = {
    ".ci", ".devcontainer", ".dvc", ".git", ".github", ".gitlab", ".scratchlm", ".venv", "benchmarks", "data", "docs",
    "logs", "metrics", "profiles", "src", "stages", "tests", "tools",
}  # fmt: skip
AXES = {"step", "epoch"}  # keys of a row that are not curves

Rows = Sequence[Mapping[str, float]]


def requested_folder(stage: str, tracked: Iterable[str]) -> Path | None:
    """The folder for the event files of a stage: FOLDER/STAGE, or FOLDER/STAGE/ITEM; None if the user wants none.

    tracked: the paths that DVC tracks. Raises UserError if the folder is in one of these or in a folder of the project,
    in which nothing else may be written, is a file or a URL, or cannot be written.
    """
    given = os.environ.get(TENSORBOARD_VARIABLE)
    if not given:
        return None
    folder = Path(given, *stage.split("@")).absolute()
    real = folder.resolve()
    taken = {Path(path).resolve() for path in (*tracked, *PROJECT_FOLDERS)} & {real, *real.parents}
    file = next((path for path in (folder, *folder.parents) if path.is_file()), None)
    if taken or file or "://" in given:
        fault = f"{file} is a file" if file else "that path belongs to the project" if taken else "that is a URL"
        raise UserError(f"{TENSORBOARD_VARIABLE} is {given!r}, but {fault}; name a folder such as runs, or unset it")
    refuse_unwritable(folder)
    return folder


@contextmanager
def event_files(folder: Path | None) -> Iterator[Callable[[Rows, Rows], None]]:
    """Yield a function that takes all rows of steps and of evaluations so far, and writes those that are new.

    They become the curves `step/KEY` and `evaluation/KEY`. TensorBoard shows them in place of those from older event
    files in the folder: a resumed training first writes the rows of its checkpoint, so its curves are complete.
    folder: None to write nothing. Raises UserError if tensorboardX is not installed.
    """
    if folder is None:
        yield lambda steps, evaluations: None
        return
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary
    except ImportError:
        raise UserError(
            f"{TENSORBOARD_VARIABLE} is set, but the package tensorboardX is not installed; "
            "run `pip install --constraint requirements.lock tensorboardX`"
        ) from None
    n_written = {"step": 0, "evaluation": 0}
    folder.mkdir(parents=True, exist_ok=True)
    with closing(EventsWriter(str(folder / "events"), f".{os.getpid()}")) as writer:
        writer.write_event(Event(wall_time=time.time(), session_log=SessionLog(status=SessionLog.START)))

        def write_new(steps: Rows, evaluations: Rows) -> None:
            for kind, rows in {"step": steps, "evaluation": evaluations}.items():
                for row in rows[n_written[kind] :]:
                    curves = {f"{kind}/{key}": value for key, value in row.items() if key not in AXES}
                    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in curves.items()]
                    writer.write_event(
                        Event(wall_time=time.time(), step=int(row["step"]), summary=Summary(value=values))
                    )
                if len(rows) > n_written[kind]:
                    writer.flush()
                n_written[kind] = len(rows)

        yield write_new
