"""Where a model of the pipeline comes from: its stages, its data and its metrics, as dvc.lock records them."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from scratchlm.data.catalogue import CATALOGUE, Source, source_of
from scratchlm.data.own_data import COLUMNS
from scratchlm.run.files import md5_of, read_json
from scratchlm.run.nested import flattened, value_at
from scratchlm.run.params import load_yaml

LOADING = ("load_gpt2", "load_pretrained")  # stages that train nothing: the corpus only measures their models
NO_RESULTS = {"arithmetic", "kernels", "train", "confusion", "padded_tokens", "trainable_parameters"}


class Step(NamedTuple):
    """A stage, the model that it made, and the model's hash in dvc.lock."""

    stage: str
    path: str
    md5: str


class Origin(NamedTuple):
    """steps: the model's, then those of the models that it was made from. sources: of the data of all steps.

    metrics: by the names of docs/metrics.md.
    """

    steps: list[Step]
    sources: list[Source]
    metrics: dict[str, Any]


def read_origin(model: Path, folder: Path = Path()) -> Origin | None:
    """Return the origin of a model, or None if it is not what dvc.lock in `folder` records under its path.

    Raises UserError naming a file that is damaged.
    """
    lock, path = folder / "dvc.lock", PurePosixPath(os.path.relpath(model, folder)).as_posix()
    stages = (load_yaml(lock) or {}).get("stages", {}) if lock.exists() else {}
    made = {
        out["path"]: Step(name, out["path"], out.get("md5", ""))
        for name, stage in stages.items()
        for out in stage.get("outs", [])
    }
    steps = list(dict.fromkeys(_steps(path, stages, made)))
    used = [entry for step in steps for entry in stages[step.stage].get("deps", []) if entry["path"] in made]
    is_whole = all(entry.get("md5", "") == made[entry["path"]].md5 for entry in used)  # nothing is newer
    if not steps or not is_whole or _folder_md5(model) != made[path].md5:
        return None
    chosen = value_at(stages, "download.params", {}).get("params.yaml", {}).get("sources", {})
    sources = {source.name: source for step in steps for source in _sources(step, stages, chosen)}
    return Origin(steps, list(sources.values()), dict(_metrics(path, stages, folder)))


def _steps(path: str, stages: Mapping[str, Any], made: Mapping[str, Step]) -> Iterator[Step]:
    if path in made:
        yield made[path]
        for used in stages[made[path].stage].get("deps", []):
            if used["path"].startswith("data/models/"):
                yield from _steps(used["path"], stages, made)


def _sources(step: Step, stages: Mapping[str, Any], chosen: Mapping[str, Any]) -> Iterator[Source]:
    if step.stage.startswith(LOADING):
        yield CATALOGUE[PurePosixPath(step.path).name]
        return
    for used in stages[step.stage]["deps"]:
        purpose = used["path"].removeprefix("data/tokens/")
        if purpose in COLUMNS:
            yield source_of(purpose, chosen.get(purpose))


def _metrics(path: str, stages: Mapping[str, Any], folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield the results of the stage that made a model, and of the responses and scores of the variants that it is."""
    judged: dict[str, Any] = next((read_json(file) for file in _files("judge", stages, folder)), {})
    for name, stage in stages.items():
        is_variant = name.startswith("generate@") and path in (used["path"] for used in stage["deps"])
        if is_variant or path in (out["path"] for out in stage.get("outs", [])):
            for file in _files(name, stages, folder):
                prefix = file.relative_to(folder / "metrics").with_suffix("").as_posix()
                yield from _results(prefix, read_json(file))
        if is_variant and (variant := name.partition("@")[2]) in judged:
            yield from _results(f"judge.{variant}", judged[variant])
            yield from _results("judge.judge", judged["judge"])


def _files(name: str, stages: Mapping[str, Any], folder: Path) -> Iterator[Path]:
    """Yield the metrics files of a stage that are as dvc.lock records them."""
    for out in stages.get(name, {}).get("outs", []):
        path = folder / out["path"]
        is_metrics = out["path"].startswith("metrics/") and path.suffix == ".json"
        if is_metrics and path.exists() and md5_of(path) == out.get("md5"):
            yield path


def _results(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in flattened(values).items():
        if NO_RESULTS.isdisjoint(key.split(".")) and not key.endswith("train_loss"):
            yield f"{prefix}.{key}", value


def _folder_md5(folder: Path) -> str:
    """The hash that DVC gives a folder: of its files' hashes and paths. Source: dvc-data, hashfile/tree.py."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = [{"md5": md5_of(file), "relpath": file.relative_to(folder).as_posix()} for file in files]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"
