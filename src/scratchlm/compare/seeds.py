"""Rerun one stage with other seeds, as DVC experiments in a private clone of the workspace."""

import os
import sys
from pathlib import Path
from typing import Any

from dvc.dependency import ParamsDependency
from dvc.repo import Repo
from dvc.repo.experiments.refs import ExpRefInfo

from scratchlm.compare.clone import private_clone
from scratchlm.compare.git import git, run_dvc
from scratchlm.compare.revision import PARAMETERS, WORKSPACE, Revision
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_json
from scratchlm.run.params import Section, Seed, read_params

SEED = "seed"
CODE = "code"  # the stage that sees an edit of the code
CONSTANT_OUTPUT = "preflight"  # every edit of params.yaml makes it stale, but its marker is always the same


class _SeedParams(Section):
    seed: Seed


def run_seeds(root: Path, stage: str, n: int, *, keep: bool = False) -> dict[int, Any]:
    """Return the metrics of a stage by seed, from n runs with the seeds s, s + 1, …, where s is the one in params.yaml.

    root: the project's folder. stage: as `dvc dag` names it.
    Only this stage runs, on inputs that are already built, so all runs share data, splits and base model. DVC takes
    runs that are in its cache from there, among them the workspace's own. Its output goes to standard error.
    keep: add the experiments to the project, where `dvc exp show` lists them.
    Raises UserError for fewer than two runs, an unknown stage, one that reads no seed, inputs that are not built, and
    a run that fails.
    """
    if n < 2:
        raise UserError(f"{n} run has no spread; at least 2 are needed: give --seeds 5, for example")
    metrics = _metrics_file(root, stage)
    first = read_params(root / PARAMETERS, _SeedParams).seed
    results = {}
    with private_clone(root) as clone:
        _check_inputs(clone, stage)
        names = {seed: f"{stage.replace('@', '-')}-seed-{seed}" for seed in range(first, first + n)}
        for number, (seed, name) in enumerate(names.items(), start=1):
            print(f"\n{stage} with seed {seed} ({number} of {n})", file=sys.stderr, flush=True)
            if run_dvc(clone, "exp", "run", "-s", stage, "--set-param", f"{SEED}={seed}", "--name", name)[0]:
                raise UserError(
                    f"{stage} failed with seed {seed}; correct the error printed above, then run this again"
                )
            results[seed] = read_json(clone / metrics)
        if keep:
            baseline = git(clone, "rev-parse", "HEAD")
            refs = [f"+{ref}:{ref}" for ref in (str(ExpRefInfo(baseline, name)) for name in names.values())]
            git(root, "fetch", "--quiet", "--no-write-fetch-head", os.fspath(clone), *refs)
    return results


def _metrics_file(root: Path, stage: str) -> str:
    """Return the path of the stage's metrics file."""
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
    target = f"{clone / 'dvc.yaml'}:{stage}"
    with Repo(os.fspath(clone)) as repo:
        repo.checkout(targets=[target], with_deps=True, allow_missing=True)
    if run_dvc(clone, "repro", "--single-item", CODE)[0]:
        raise UserError(f"the stage {CODE} failed; correct the error printed above, then run this again")
    with Repo(os.fspath(clone)) as repo:
        changed = repo.status(targets=[target], with_deps=True)
    stale = sorted({address.rpartition(":")[2] for address in changed} - {stage, CONSTANT_OUTPUT})
    if stale:
        raise UserError(
            f"{stage} reads the outputs of {', '.join(stale)}, which `dvc repro` would build again; "
            "seeds are compared on finished inputs: run `dvc repro` first"
        )
