"""Rerun one stage with other seeds, in a private clone of the workspace: how far do its metrics vary by chance?"""

import math
import os
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any, NamedTuple

from dvc.dependency import ParamsDependency
from dvc.repo import Repo
from dvc.repo.experiments.refs import ExpRefInfo

from scratchlm.compare.clone import private_clone
from scratchlm.compare.git import fetch_refs, git, must_run_dvc
from scratchlm.compare.revision import PARAMETERS, WORKSPACE, Revision
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_json
from scratchlm.run.nested import leaves
from scratchlm.run.params import Section, Seed, read_params
from scratchlm.tasks.intervals import CONFIDENCE

SEED = "seed"
MOST_RUNS = 1000
END_OF_SEEDS = 2**31  # as in Seed
CODE = "code"  # the stage that detects edits of the code
CONSTANT_OUTPUT = "preflight"  # every edit of params.yaml makes it stale, but its marker is always the same


class Spread(NamedTuple):
    """One metric over n runs. deviation: the sample standard deviation, with n - 1 in its denominator.

    minimum_detectable_difference: two single runs must differ by more to be told apart. The difference of two runs
    that differ in their seed alone has √2 times the standard deviation of one run. With a deviation estimated from n
    values, 95 % of such differences are below t(n - 1) · √2 · deviation. Source: Student 1908.
    """

    values: tuple[float, ...]
    mean: float
    deviation: float
    low: float
    high: float
    minimum_detectable_difference: float


class _SeedParams(Section):
    seed: Seed


def run_seeds(root: Path, stage: str, n: int, *, keep: bool = False) -> dict[int, Any]:
    """Return the metrics of a stage by seed, from n runs with the seeds s, s + 1, …, where s is the one in params.yaml.

    root: the project's folder. stage: as `dvc dag` names it.
    Only this stage runs, on inputs that are already built, so all runs share data, splits and base model. DVC takes
    runs that are in its cache from there, among them the workspace's own. Its output goes to standard error.
    keep: add the experiments to the project, where `dvc exp show` lists them.
    Raises UserError for fewer than two runs or more than MOST_RUNS, an unknown stage, one that reads no seed, inputs
    that are not built, and a run that fails.
    """
    if not 2 <= n <= MOST_RUNS:
        raise UserError(f"--seeds is {n}; 2 to {MOST_RUNS:,} runs are allowed: give --seeds 5, for example")
    metrics = _metrics_file(root, stage)
    first = read_params(root / PARAMETERS, _SeedParams).seed
    if first + n > END_OF_SEEDS:
        raise UserError(
            f"the seeds {first} to {first + n - 1} pass the largest, {END_OF_SEEDS - 1}; lower seed in params.yaml"
        )
    names = {seed: f"{stage.replace('@', '-')}-seed-{seed}" for seed in range(first, first + n)}
    results = {}
    with private_clone(root) as clone:
        if keep:
            _refuse_existing(root, clone, names.values())
        _check_inputs(clone, stage)
        for number, (seed, name) in enumerate(names.items(), start=1):
            print(f"\n{stage} with seed {seed} ({number} of {n})", file=sys.stderr, flush=True)
            command = ("exp", "run", "-s", stage, "--set-param", f"{SEED}={seed}", "--name", name)
            must_run_dvc(clone, f"{stage} failed with seed {seed}", *command)
            results[seed] = read_json(clone / metrics)
        if keep:
            fetch_refs(root, clone, *(f"{ref}:{ref}" for ref in _refs(clone, names.values())))
    return results


def spreads(results: Sequence[Mapping[str, Any]]) -> dict[str, Spread]:
    """Return the spread of each number that all metrics files have, by its dotted name, in the order of the first."""
    runs = [dict(leaves(result)) for result in results]
    names = [name for name in runs[0] if all(type(run.get(name)) in (int, float) for run in runs)]  # no bool
    return {name: spread([float(run[name]) for run in runs]) for name in names}


def spread(values: Sequence[float]) -> Spread:
    """Return the spread of at least two values of one metric."""
    deviation = statistics.stdev(values)
    detectable = difference_factor(len(values)) * deviation
    return Spread(tuple(values), statistics.fmean(values), deviation, min(values), max(values), detectable)


def difference_factor(n: int) -> float:
    """Return t(n - 1) · √2, the minimum detectable difference in standard deviations estimated from n values."""
    from scipy import stats  # takes half a second, and `compare` imports this module without calling this

    return float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * math.sqrt(2)


def varying_and_constant(metrics: Mapping[str, Spread]) -> tuple[dict[str, Spread], dict[str, Spread]]:
    """Return the metrics that vary, and those that do not."""
    varying = {name: row for name, row in metrics.items() if row.low < row.high}
    return varying, {name: row for name, row in metrics.items() if name not in varying}


def _refs(clone: Path, names: Iterable[str]) -> list[str]:
    baseline = git(clone, "rev-parse", "HEAD")
    return [str(ExpRefInfo(baseline, name)) for name in names]


def _refuse_existing(root: Path, clone: Path, names: Iterable[str]) -> None:
    """Raises UserError if the project has an experiment of one of these names: it may be another one's."""
    for ref in _refs(clone, names):
        if git(root, "for-each-ref", ref):
            name = ref.rpartition("/")[2]
            raise UserError(f"the experiment {name} exists; remove it with `dvc exp remove {name}`, or omit --keep")


def _metrics_file(root: Path, stage: str) -> str:
    if not (root / "dvc.yaml").exists():
        raise UserError(f"{root.resolve()} has no dvc.yaml; run this in the project's own folder")
    with Revision(WORKSPACE, root).pipeline() as index:
        seeded = {
            found.name: next(out.def_path for out in found.outs if out.is_metric)
            for found in index.stages
            if any(isinstance(dep, ParamsDependency) and SEED in dep.params for dep in found.deps)
        }
        names = [found.name for found in index.stages]
    if stage not in seeded:
        wrong = "reads no seed" if stage in names else "is not a stage of dvc.yaml"
        raise UserError(f"{stage} {wrong}; name one of the stages that read a seed: {', '.join(seeded)}")
    return seeded[stage]


def _check_inputs(clone: Path, stage: str) -> None:
    """Get the data of the stage and of all stages before it; refuse data that its own stage would build again."""
    # DVC would take an @ or a backslash in the path of dvc.yaml for a part of the stage's name
    with chdir(clone), Repo(os.fspath(clone)) as repo:
        repo.checkout(targets=[stage], with_deps=True, allow_missing=True)
    must_run_dvc(clone, f"the stage {CODE} failed", "repro", "--single-item", CODE)
    with chdir(clone), Repo(os.fspath(clone)) as repo:
        changed = repo.status(targets=[stage], with_deps=True)
    stale = sorted({address.rpartition(":")[2] for address in changed} - {stage, CONSTANT_OUTPUT})
    if stale:
        raise UserError(
            f"{stage} reads the outputs of {', '.join(stale)}, which `dvc repro` would build again; "
            "seeds are compared on finished inputs: run `dvc repro` first"
        )
