"""How every stage script starts: named options in, one sentence out when the user must act."""

import argparse
import gc
import inspect
import os
import resource
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from scratchlm.artifacts import append_log, leftovers
from scratchlm.guard import alone, guard_lock_file, stay_below_dvc
from scratchlm.pipeline import identity, read_stages, refuse_other_packages
from scratchlm.resume import Resume, forget_finished


def run(main: Callable[..., None]) -> None:
    """Call `main` with one path per parameter, taken from the option of the same name.

    A parameter `model_folder: Path` is the required option --model-folder. Every stage takes --log, a
    JSON-lines file for what is not a result: here seconds and peak memory, and what `main` adds if it asks for it.
    A parameter `resume: Resume` is the option --resume, a folder for the state of an unfinished run.
    A ValueError that this project raised ends the process with its sentence and status 1;
    anything else is a defect and keeps its traceback.
    """
    address = os.environ.get("DVC_STAGE")  # set by DVC, such as load_gpt2@nano
    stage = address or Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(
        prog=f"python -m stages.{Path(sys.argv[0]).stem}", description=inspect.getmodule(main).__doc__
    )
    names = list(inspect.signature(main).parameters)
    for name in dict.fromkeys([*names, "log"]):
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, required=True)
    options = vars(parser.parse_args())
    log = options["log"] if "log" in names else options.pop("log")
    start = time.perf_counter()
    resume = Resume()
    try:
        with alone(log, stage) if address else nullcontext():
            if address:
                resume = _begin_under_dvc(address, options, log)
            if "resume" in options:
                options["resume"] = resume
            main(**options)
            resume.done()
    except ValueError as error:
        if not meant_for_the_user(error):
            raise
        sys.exit(f"{stage}: {error}")
    except KeyboardInterrupt:
        begins = f"goes on from {resume.kept}" if resume.kept else "runs this stage again"
        sys.exit(f"{stage}: interrupted; nothing half-written was left, `dvc repro` {begins}")
    own_and_children = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)  # load_gpt2 has TensorFlow in a child
    unit = 1 if sys.platform == "darwin" else 1024
    peak = max(resource.getrusage(who).ru_maxrss for who in own_and_children) * unit
    append_log(log, {"stage": stage, "seconds": time.perf_counter() - start, "peak_memory_bytes": peak})
    gc.freeze()  # else the interpreter, on its way out, searches all of torch for cycles: half a second


def meant_for_the_user(error: ValueError) -> bool:
    """Whether the raising line stands in this project (in a library it is a defect, not advice)."""
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
    return raised_in.parent.name == "stages" or Path(__file__).resolve().parent in raised_in.parents


def _begin_under_dvc(stage: str, options: dict[str, Any], log: Path) -> Resume:
    """What only a stage that DVC started does: it has a definition in dvc.yaml, and a parent that may be killed.

    Raises ValueError if the definition is no longer the one that DVC read: the stage would be taken for another run.
    """
    guard_lock_file(stay_below_dvc())
    stages = read_stages()
    forget_finished(stage, stages)
    for target in options.values():
        for left in leftovers(target):  # of a killed run of this stage
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()
    definition = stages.get(stage)
    if definition is None or definition["cmd"].split()[3:] != sys.argv[1:]:  # python -m stages.NAME, options
        raise ValueError("dvc.yaml or params.yaml has changed since DVC began; run `dvc repro` again")
    refuse_other_packages(definition)
    return Resume(options["resume"], identity(definition), stage, log) if "resume" in options else Resume()
