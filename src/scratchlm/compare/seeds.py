"""One stage again under other seeds: DVC experiments in a private copy of the workspace."""

import os
import sys
from pathlib import Path
from typing import Any

from dvc.repo import Repo
from dvc.repo.experiments.refs import ExpRefInfo

from scratchlm.compare.clone import snapshot
from scratchlm.compare.git import git, run_dvc
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_json
from scratchlm.run.params import Section, Seed, read_params
from scratchlm.run.pipeline import paths, read_stages

SEED = "seed"
CONSTANT_OUTPUT = "preflight"  # it is stale after every edit of params.yaml, and its marker is always the same


class _SeedParams(Section):
    seed: Seed


def run_seeds(root: Path, stage: str, n: int, *, keep: bool = False) -> dict[int, Any]:
    """The metrics of a stage by seed, from n runs with the seeds s, s + 1, …, where s is the one in params.yaml.

    root: the project's folder. stage: as `dvc dag` names it.
    Only this stage runs; what it reads is as it was built, so that all runs share data, splits and base model.
    A run that DVC has in its cache, the one of the workspace first of all, is not computed again. What dvc and the
    stage say goes to standard error.
    keep: put the experiments into the project, where `dvc exp show` lists them.
    Raises UserError for less than two runs, an unknown stage, one that reads no seed, inputs that are not built, and
    a run that fails.
    """
    if n < 2:
        raise UserError(f"{n} run shows no spread; at least 2 are needed: give --seeds 5, for example")
    stages = _stages(root)
    measured = {
        address: paths(what["metrics"])[0] for address, what in stages.items() if SEED in what.get("params", [])
    }
    if stage not in measured:
        wrong = "reads no seed" if stage in stages else "is no stage of dvc.yaml"
        raise UserError(f"{stage} {wrong}; stages that read one are {', '.join(measured)}: name one of these")
    first = read_params(root / "params.yaml", _SeedParams).seed
    results = {}
    with snapshot(root) as copy:
        _check_inputs(copy, stage)
        names = {seed: f"{stage.replace('@', '-')}-seed-{seed}" for seed in range(first, first + n)}
        for number, (seed, name) in enumerate(names.items(), start=1):
            print(f"\n{stage} with seed {seed} ({number} of {n})", file=sys.stderr, flush=True)
            if run_dvc(copy, "exp", "run", "-s", stage, "--set-param", f"{SEED}={seed}", "--name", name)[0]:
                raise UserError(
                    f"{stage} failed with seed {seed}; what it said stands above: correct that, then call this again"
                )
            results[seed] = read_json(copy / measured[stage])
        if keep:
            baseline = git(copy, "rev-parse", "HEAD")
            refs = [str(ExpRefInfo(baseline, name)) for name in names.values()]
            git(root, "fetch", "--quiet", "--no-write-fetch-head", os.fspath(copy), *(f"+{ref}:{ref}" for ref in refs))
    return results


def _stages(root: Path) -> dict[str, Any]:
    if not (root / "dvc.yaml").exists():
        raise UserError(f"{root.resolve()} has no dvc.yaml; call this in the project's own folder")
    return read_stages(root)


def _check_inputs(copy: Path, stage: str) -> None:
    """Bring the data of the stage and of all before it; refuse if any of that is not what its stage would build."""
    with Repo(os.fspath(copy)) as repo:
        target = f"{copy / 'dvc.yaml'}:{stage}"
        repo.checkout(targets=[target], with_deps=True, allow_missing=True)
        run_dvc(copy, "repro", "--single-item", "code")  # else an edit of the code is not seen
        changed = repo.status(targets=[target], with_deps=True)
    stale = sorted({address.rpartition(":")[2] for address in changed} - {stage, CONSTANT_OUTPUT})
    if stale:
        raise UserError(
            f"{stage} reads what {', '.join(stale)} would build anew; "
            "seeds are compared on inputs that are built: run dvc repro first"
        )
