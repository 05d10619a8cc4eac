"""Rerun one stage with other seeds, in a private clone of the workspace: how far do its metrics vary by chance?"""

import math
import os
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, chdir, closing
from pathlib import Path
from typing import Any, NamedTuple

from dvc.dependency import ParamsDependency
from dvc.repo import Repo
from dvc.repo.experiments.refs import ExpRefInfo

from scratchlm.compare.clone import private_clone
from scratchlm.compare.git import fetch_refs, git, must_run_dvc, run_each
from scratchlm.compare.records import is_derived
from scratchlm.compare.revision import PARAMETERS, WORKSPACE, Revision
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_json
from scratchlm.run.nested import leaves
from scratchlm.run.params import Section, Seed, read_params
from scratchlm.tasks.intervals import CONFIDENCE

SEED = "seed"
MOST_RUNS = 1000
MOST_JOBS = 64
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


def run_seeds(root: Path, stage: str, n: int, *, jobs: int = 1, keep: bool = False) -> dict[int, Any]:
    """Return the metrics of a stage by seed, from n runs with the seeds s, s + 1, …, where s is the one in params.yaml.

    root: the project's folder. stage: as `dvc dag` names it.
    Only this stage runs, on inputs that are already built, so all runs share data, splits and base model. DVC takes
    runs that are in its cache from there, among them the workspace's own. Its output goes to standard error.
    jobs: how many runs there are at once, each in a clone of its own. It changes no result.
    keep: add the experiments to the project, where `dvc exp show` lists them.
    Raises UserError for fewer than two runs or more than MOST_RUNS, fewer than one job or more than MOST_JOBS, an
    unknown stage, one that reads no seed, inputs that are not built, and a run that fails, once those beside it end.
    """
    _check_counts(n, jobs)
    metrics = _metrics_file(root, stage)
    names = {seed: f"{stage.replace('@', '-')}-seed-{seed}" for seed in _seeds(root, n)}
    runs = {
        seed: ("exp", "run", "-s", stage, "--set-param", f"{SEED}={seed}", "--name", name)
        for seed, name in names.items()
    }
    results, failed, clone_of = {}, [], {}
    with ExitStack() as stack:
        clones = [stack.enter_context(private_clone(root)) for _ in range(min(jobs, n))]
        if keep:
            _refuse_existing(root, clones[0], names.values())
        for clone in clones:
            _check_inputs(clone, stage)
        for seed, clone, status in stack.enter_context(closing(run_each(clones, SEED, runs))):
            if status:
                failed.append(seed)
                continue
            results[seed], clone_of[seed] = read_json(clone / metrics), clone
            print(f"{SEED} {seed}: finished, {len(results)} of {n}", file=sys.stderr, flush=True)
        if failed:
            which = f"{SEED}{'s' * (len(failed) > 1)} {', '.join(map(str, sorted(failed)))}"
            raise UserError(
                f"{stage} failed with {which}; correct the error printed above, then run this again: finished runs are "
                "in DVC's cache"
            )
        if keep:
            for seed, clone in clone_of.items():
                fetch_refs(root, clone, *(f"{ref}:{ref}" for ref in _refs(clone, [names[seed]])))
    return {seed: results[seed] for seed in names}


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
    """Return the metrics that vary, and those that do not, without the derived ones; see is_derived."""
    own = {name: row for name, row in metrics.items() if not is_derived(name)}
    varying = {name: row for name, row in own.items() if row.low < row.high}
    return varying, {name: row for name, row in own.items() if name not in varying}


def _check_counts(n: int, jobs: int) -> None:
    if not 2 <= n <= MOST_RUNS:
        raise UserError(f"--seeds is {n}; 2 to {MOST_RUNS:,} runs are allowed: give --seeds 5, for example")
    if not 1 <= jobs <= MOST_JOBS:
        raise UserError(f"--jobs is {jobs}; 1 to {MOST_JOBS} runs at once are allowed: give --jobs 2, for example")


def _seeds(root: Path, n: int) -> range:
    first = read_params(root / PARAMETERS, _SeedParams).seed
    if first + n > END_OF_SEEDS:
        raise UserError(
            f"the seeds {first} to {first + n - 1} pass the largest, {END_OF_SEEDS - 1}; lower seed in params.yaml"
        )
    return range(first, first + n)


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
