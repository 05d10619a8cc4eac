"""Curves of a training for TensorBoard, in event files that grow while it runs.

torch's SummaryWriter would import TensorFlow, where that is installed: 3 s and 600 MB for each stage. tensorboardX does
without; of it, the part that writes in this thread, so that a full disk is an error here.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from scratchlm.run.errors import UserError
from scratchlm.run.files import refuse_unwritable

VARIABLE = "SCRATCHLM_TENSORBOARD"  # who watches changes no result, so it is no parameter
AXES = {"step", "epoch"}  # keys of a row that are no curve

Rows = Sequence[Mapping[str, float]]


def requested_folder(stage: str, tracked: Iterable[str]) -> Path | None:
    """The folder for the event files of a stage: FOLDER/STAGE, or FOLDER/STAGE/ITEM; None if the user wants none.

    tracked: the paths of all stages, in which nothing else may be written. Raises UserError for a wrong folder.
    """
    given = os.environ.get(VARIABLE)
    if not given:
        return None
    folder = Path(given, *stage.split("@")).absolute()
    real = folder.resolve()
    taken = {Path(path).resolve() for path in tracked} & {real, *real.parents}
    file = next((path for path in (folder, *folder.parents) if path.is_file()), None)
    if taken or file or "://" in given:
        fault = f"{file} is a file" if file else "DVC tracks what is there" if taken else "that is no folder"
        raise UserError(f"{VARIABLE} is {given!r}, but {fault}; name a folder such as runs, or unset it")
    refuse_unwritable(folder)
    return folder


@contextmanager
def event_files(folder: Path | None) -> Iterator[Callable[[Rows, Rows], None]]:
    """Yield a function that takes all rows of the steps and of the evaluations so far, and writes the new ones.

    They become the curves `step/KEY` and `evaluation/KEY`. In TensorBoard they replace those of earlier event files in
    the folder, so that a resumed training, which begins with the rows of its checkpoint, has them whole. Without a
    folder nothing is written. Raises UserError if tensorboardX is not installed.
    """
    if folder is None:
        yield lambda steps, evaluations: None
        return
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary
    except ImportError:
        install = "run `pip install --constraint requirements.lock tensorboardX`"
        raise UserError(f"{VARIABLE} is set, but the package tensorboardX is not installed; {install}") from None
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
