"""How every stage script starts: named options in, one sentence out when the user must act."""

import argparse
import inspect
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from scratchlm.artifacts import append_log


def run(main: Callable[..., None]) -> None:
    """Call `main` with one path per parameter, taken from the option of the same name.

    A parameter `model_folder: Path` is the required option --model-folder. Every stage takes --log, a
    JSON-lines file for what is not a result: here seconds and peak memory, and what `main` adds if it asks for it.
    A ValueError that this project raised ends the process with its sentence and status 1;
    anything else is a defect and keeps its traceback.
    """
    stage = Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(prog=f"python -m stages.{stage}", description=inspect.getmodule(main).__doc__)
    names = list(inspect.signature(main).parameters)
    for name in dict.fromkeys([*names, "log"]):
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, required=True)
    options = vars(parser.parse_args())
    log = options["log"] if "log" in names else options.pop("log")
    start = time.perf_counter()
    try:
        main(**options)
    except ValueError as error:
        if not meant_for_the_user(error):
            raise
        sys.exit(f"{stage}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{stage}: interrupted; nothing half-written was left, `dvc repro` continues here")
    own_and_children = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)  # load_gpt2 has TensorFlow in a child
    unit = 1 if sys.platform == "darwin" else 1024
    peak = max(resource.getrusage(who).ru_maxrss for who in own_and_children) * unit
    append_log(log, {"stage": stage, "seconds": time.perf_counter() - start, "peak_memory_bytes": peak})


def meant_for_the_user(error: ValueError) -> bool:
    """Whether the raising line stands in this project (in a library it is a defect, not advice)."""
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
    return raised_in.parent.name == "stages" or Path(__file__).resolve().parent in raised_in.parents
