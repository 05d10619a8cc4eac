"""The start of every stage script: named options in, one sentence out when the user must act."""

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

from scratchlm.run.arrow_startup import do_without_pandas
from scratchlm.run.code import refuse_foreign_library, refuse_other_code, refuse_path
from scratchlm.run.context import Run
from scratchlm.run.errors import UserError, boundary
from scratchlm.run.files import read_json, refuse_unwritable, stale_temporary_files
from scratchlm.run.nested import value_at
from scratchlm.run.pipeline import cache_key, code_record, read_stages, tracked_paths
from scratchlm.run.progress import in_words
from scratchlm.run.resume import Checkpoint, delete_finished, interval_seconds
from scratchlm.run.tensorboard import requested_folder
from scratchlm.run.watchdog import only_process, stay_below_dvc, watch_lock_file
from scratchlm.run.workers import end_with_stage, requested_workers, timeout_seconds, worker_place


def start(main: Callable[..., None], *shown: str) -> None:
    """Call `main(run, ...)` with one path per keyword parameter, taken from the option of the same name.

    A parameter `model_folder: Path` is the required option --model-folder. Every stage takes --log, a JSON-lines file
    for values that are not results: seconds, peak memory, and what `main` records. --resume is the folder of its
    checkpoint, for a stage that saves one. An error ends the process as `boundary` says.
    shown: the metrics, as `val.loss`, in the line at the end.
    """
    address = os.environ.get("DVC_STAGE")  # set by DVC, such as load_gpt2@nano
    script = Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(prog=f"python -m stages.{script}", description=inspect.getmodule(main).__doc__)
    for name, parameter in inspect.signature(main).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            parser.add_argument(f"--{name.replace('_', '-')}", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--resume", type=Path)
    paths = vars(parser.parse_args())
    log, resume = paths.pop("log"), paths.pop("resume")
    run = Run(stage=address or script, log=log)
    do_without_pandas()
    begin = time.perf_counter()
    with boundary(run.stage, lambda: _interrupted(run)):
        for variable in (requested_workers, timeout_seconds, interval_seconds):
            variable()  # a mistake in it is said now rather than after hours
        if worker_place():
            end_with_stage()
            run.log = None
            if address:
                _refuse_other_definition(run.stage, read_stages())
            main(run, **paths)  # as far as the shared work, which ends this process
        with only_process(log, run.stage) if address else nullcontext():
            if address:
                run.checkpoint = _begin_under_dvc(run, [*paths.values(), log], resume)
            for path in [*paths.values(), log]:
                refuse_unwritable(path)  # now rather than after hours of training
            main(run, **paths)
            run.checkpoint.finish()
        own_and_children = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)  # load_gpt2 has TensorFlow in a child
        unit = 1 if sys.platform == "darwin" else 1024
        peak = max(resource.getrusage(who).ru_maxrss for who in own_and_children) * unit
        seconds = time.perf_counter() - begin
        run.record({"stage": run.stage, "seconds": seconds, "peak_memory_bytes": peak})
        metrics = read_json(paths["metrics"]) if shown else {}
        known = {name: value for name in shown if (value := value_at(metrics, name, None)) is not None}
        run.say(", ".join(filter(None, [f"{seconds:.1f} s", in_words(known)])))
    gc.freeze()  # else the interpreter, while it exits, searches all of torch for cycles: half a second


def _interrupted(run: Run) -> str:
    position = run.checkpoint.position
    remedy = f"Run `dvc repro` to resume from {position}" if position else "`dvc repro` runs this stage again"
    return f"interrupted; no partial output was left. {remedy}"


def _begin_under_dvc(run: Run, targets: list[Path], resume: Path | None) -> Checkpoint:
    """Prepare a stage that DVC started: it has a definition in dvc.yaml, and a parent that may be killed.

    Raises UserError if the definition is no longer the one that DVC read, or if the code that runs is not this
    project's: the result would be recorded under another.
    """
    refuse_path(Path())
    refuse_foreign_library(Path())
    watch_lock_file(stay_below_dvc())
    stages = read_stages()
    delete_finished(run.stage, stages)
    for target in targets:
        for path in stale_temporary_files(target):  # of a killed run of this stage
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    definition = _refuse_other_definition(run.stage, stages)
    run.events = requested_folder(run.stage, tracked_paths(stages))
    return Checkpoint(resume, cache_key(definition), run.stage, run.log) if resume else Checkpoint()


def _refuse_other_definition(stage: str, stages: dict[str, Any]) -> dict[str, Any]:
    """Return the stage's definition. Raises UserError if that or the code are not those that DVC read."""
    definition = stages.get(stage)
    if definition is None or definition["cmd"].split()[3:] != sys.argv[1:]:  # python -m stages.NAME, options
        raise UserError("dvc.yaml or params.yaml has changed since `dvc repro` read it; run `dvc repro` again")
    if record := code_record(definition):
        refuse_other_code(record)
    return definition
