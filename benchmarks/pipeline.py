"""Time `dvc repro` of the sample from nothing, and the start of each stage until its work begins.

Run as `python -m benchmarks.pipeline --repeats 3`. There is no baseline, so the targets are in seconds. Each build is
of the last commit, in a clean clone with an empty cache: in turns as committed, in precision exact, and in float32.
Writes benchmarks/results/stage_start.json and repro_sample.json.
"""

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate
from tqdm import tqdm

from benchmarks.harness import REPOSITORY, RESULTS, about, summary
from scratchlm.compare.clone import private_clone
from scratchlm.compare.git import run_dvc
from scratchlm.run.device import available_cores
from scratchlm.run.files import write_json
from scratchlm.run.params import load_yaml
from scratchlm.verify.rebuild import failure_in

Seconds = Mapping[str, float]  # by name of what was timed


class Measurement(NamedTuple):
    """The largest acceptable medians: of each timed item, and of the ratio of the first to the second in a round."""

    measure: Callable[[], Seconds]
    target_seconds: float
    target_ratio: float | None = None


def stage_start() -> Seconds:
    """From the start of each stage's process until its imports are done."""
    found = {}
    for stage in load_yaml(REPOSITORY / "dvc.yaml")["stages"]:
        program = f"import time, stages.{stage}; print(time.time())"
        start = time.time()
        done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE, check=True)
        found[stage] = float(done.stdout) - start
    return found


def repro_sample() -> Seconds:
    """The whole build in each precision."""
    found = {}
    for precision in ("exact", "float32"):
        with private_clone(REPOSITORY, "HEAD", empty_cache=True) as clone:
            params = clone / "params.yaml"
            set_param(params, "precision", precision)
            if precision == "float32":
                set_param(params, "threads", str(available_cores()))
            (clone / "dvc.lock").unlink()
            start = time.perf_counter()
            status, end = run_dvc(clone, "repro", DVC_SITE_CACHE_DIR=str(clone.with_name("site")))
            found[precision] = time.perf_counter() - start
        if status:
            raise RuntimeError(
                f"{': '.join(failure_in(end))}; only a successful build is measured; fix the stage first"
            )
    return found


def set_param(path: Path, name: str, value: str) -> None:
    path.write_text(re.sub(rf"(?m)^{name}: \S+", f"{name}: {value}", path.read_text()))


MEASUREMENTS = {"stage_start": Measurement(stage_start, 2.5), "repro_sample": Measurement(repro_sample, 120.0, 2.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", choices=list(MEASUREMENTS), action="append", help="measure only this (repeatable)")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    origin = about("benchmarks.pipeline", available_cores())
    for name in options.row or MEASUREMENTS:
        measure, target_seconds, target_ratio = MEASUREMENTS[name]
        rounds = [measure() for _ in tqdm(range(options.repeats), desc=name, unit="round")]
        found = summed_up(rounds, target_seconds)
        print(f"\n{table(name, found)}\n")
        what = {"row": name, "repeats": options.repeats, "target_seconds": target_seconds, "seconds": found}
        if target_ratio:
            one, other = found
            ratio = summary([seconds[one] / seconds[other] for seconds in rounds])
            what["ratio"] = {**ratio, "target": target_ratio, "met": ratio["median"] <= target_ratio}
            print(f"{one} takes {ratio['median']:.2f} times as long as {other}; the target is {target_ratio:g}\n")
        write_json(RESULTS / f"{name}.json", origin | what)


def summed_up(rounds: Sequence[Seconds], target_seconds: float) -> dict[str, dict[str, Any]]:
    """Median, lowest and highest of each timed item, and whether the median reaches the target."""
    summaries = {what: summary([seconds[what] for seconds in rounds]) for what in rounds[0]}
    return {what: {**found, "met": found["median"] <= target_seconds} for what, found in summaries.items()}


def table(name: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        [what, *(f"{it[key]:.2f}" for key in ("median", "lowest", "highest")), "met" if it["met"] else "not met"]
        for what, it in found.items()
    ]
    return tabulate(lines, [name, "seconds", "lowest", "highest", "target"], disable_numparse=True)


if __name__ == "__main__":
    main()
