"""How every stage script starts: named options in, one sentence out when the user must act."""

import argparse
import gc
import inspect
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from scratchlm.run.code import refuse_other_code
from scratchlm.run.errors import UserError
from scratchlm.run.files import append_log, leftovers
from scratchlm.run.pipeline import code_record, identity, read_stages
from scratchlm.run.resume import Resume, forget_finished
from scratchlm.run.watchdog import alone, guard_lock_file, stay_below_dvc


def run(main: Callable[..., None]) -> None:
    """Call `main` with one path per parameter, taken from the option of the same name.

    A parameter `model_folder: Path` is the required option --model-folder. Every stage takes --log, a
    JSON-lines file for what is not a result: here seconds and peak memory, and what `main` adds if it asks for it.
    A parameter `resume: Resume` is the option --resume, a folder for the state of an unfinished run.
    A UserError ends the process with its sentence and status 1;
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
    except UserError as error:
        sys.exit(f"{stage}: {error}")
    except KeyboardInterrupt:
        begins = f"goes on from {resume.kept}" if resume.kept else "runs this stage again"
        sys.exit(f"{stage}: interrupted; nothing half-written was left, `dvc repro` {begins}")
    own_and_children = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)  # load_gpt2 has TensorFlow in a child
    unit = 1 if sys.platform == "darwin" else 1024
    peak = max(resource.getrusage(who).ru_maxrss for who in own_and_children) * unit
    append_log(log, {"stage": stage, "seconds": time.perf_counter() - start, "peak_memory_bytes": peak})
    gc.freeze()  # else the interpreter, on its way out, searches all of torch for cycles: half a second


def _begin_under_dvc(stage: str, options: dict[str, Any], log: Path) -> Resume:
    """What only a stage that DVC started does: it has a definition in dvc.yaml, and a parent that may be killed.

    Raises UserError if the definition is no longer the one that DVC read: the stage would be taken for another run.
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
        raise UserError("dvc.yaml or params.yaml has changed since DVC began; run `dvc repro` again")
    if record := code_record(definition):
        refuse_other_code(record)
    return Resume(options["resume"], identity(definition), stage, log) if "resume" in options else Resume()
