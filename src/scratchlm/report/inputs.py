"""What the report is made from: the outputs of all stages, read and checked."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from scratchlm.data.catalogue import CHECKPOINT_WEIGHTS
from scratchlm.model.config import PRETRAINED, GPTConfig, published_config
from scratchlm.report.headline import loaded_metrics
from scratchlm.report.tokens import COLUMNS, Repeated, TokenCounts, read_repeated, read_token_counts
from scratchlm.run.files import damaged, missing, read_csv, read_json, read_table, sha256_of
from scratchlm.run.params import load_yaml

STAGES = ("tokenize", "pretrain", "finetune_spam", "baseline_spam", "finetune_instruct", "judge")
TRAINED = ("pretrain", "finetune_spam", "finetune_instruct")
SAMPLED = ("pretrain", "finetune_instruct")
VARIED = {  # stage -> section of its variants
    "ablate_pretrain": "pretrain_ablations", "ablate_spam": "spam_ablations", "finetune_preference": "preference_runs",
    "reward_model": "reward_runs", "reinforce": "reinforce_runs", "generate": "variants",
}  # fmt: skip

Rows = Sequence[Mapping[str, Any]]


class Inputs(NamedTuple):
    """The files and folders that the page is made from, as the stages write them."""

    params: Path
    pipeline: Path
    profiles: Path
    code: Path
    sources: Path
    tokens: Path
    metrics: Path
    losses: Path
    samples: Path
    predictions: Path
    responses: Path
    models: Path


@dataclass(frozen=True)
class Report:
    """The content of the inputs. Metrics, curves, histories (of single steps) and samples are by stage, ablations by
    stage and variant, steps by reinforcement run.

    profiles: parameters of every profile by its name. packages: name -> version. sources: by name, how many files and
    bytes it has, and the sha256 of each file. tokens: by the names in COLUMNS.
    losses: rows of LOSS_SCHEMA of pretraining, then of each of its variants; empty if there are no variants.
    pairs: rows of REWARD_SCHEMA by reward run.
    predictions: of the finetuned classifier, of the baseline, then of each variant.
    responses: of every variant, rows of RESPONSE_SCHEMA with score and reason.
    models: name, parameters, config and sha256 (of the file that the page names).
    """

    params: Mapping[str, Any]
    pipeline: Mapping[str, Any]
    profiles: Mapping[str, Mapping[str, Any]]
    packages: Mapping[str, str]
    sources: Mapping[str, Any]
    tokens: Mapping[str, TokenCounts]
    repeated: Repeated
    metrics: Mapping[str, Any]
    loaded: Mapping[str, Any]
    ablations: Mapping[str, Mapping[str, Any]]
    losses: Sequence[Rows]
    pairs: Mapping[str, Rows]
    curves: Mapping[str, list[dict[str, float]]]
    steps: Mapping[str, list[dict[str, float]]]
    histories: Mapping[str, list[dict[str, float]]]
    samples: Mapping[str, Rows]
    predictions: Sequence[Rows]
    responses: Rows
    models: Rows


def collect(inputs: Inputs) -> Report:
    """Read the inputs; of GPT-2 sizes, ablations and variants, only those in params.yaml.

    Raises UserError naming a file that is missing or broken.
    """
    params, folder, plots = load_yaml(inputs.params), inputs.metrics, inputs.metrics / "plots"
    names = {stage: params[section] for stage, section in VARIED.items()}
    sources = read_json(inputs.sources)
    metrics = {stage: read_json(folder / f"{stage}.json") for stage in STAGES}
    loaded = loaded_metrics(folder, params["gpt2_sizes"], params["pretrained"])
    reinforced = [f"reinforce/{name}" for name in names["reinforce"]]
    pretrained, *finetuned = (_trained(inputs.models / stage, metrics[stage]) for stage in TRAINED)
    return Report(
        params=params,
        pipeline=load_yaml(inputs.pipeline),
        profiles={path.stem: load_yaml(path) for path in sorted(inputs.profiles.glob("*.yaml"))},
        packages=read_json(inputs.code)["packages"],
        sources=sources,
        tokens={name: read_token_counts(inputs.tokens / name, columns) for name, columns in COLUMNS.items()},
        repeated=read_repeated(inputs.tokens / "messages"),
        metrics=metrics,
        loaded=loaded,
        ablations={
            stage: {name: read_json(folder / stage / f"{name}.json") for name in varied}
            for stage, varied in names.items()
        },
        losses=_losses(inputs.losses, names["ablate_pretrain"]),
        pairs={name: read_table(inputs.losses / "reward_model" / f"{name}.parquet") for name in names["reward_model"]},
        curves={stage: _curve(plots / f"{stage}.csv") for stage in [*TRAINED, *preference_stages(params), *reinforced]},
        steps={stage: _curve(plots / f"{stage.replace('/', '_steps/')}.csv") for stage in reinforced},
        histories={stage: _curve(plots / f"{stage}_steps.csv") for stage in TRAINED},
        samples={stage: read_json(inputs.samples / f"{stage}.json", list) for stage in [*SAMPLED, *reinforced]},
        predictions=_predictions(inputs.predictions, names["ablate_spam"]),
        responses=_judged(inputs.responses, names["generate"]),
        models=[pretrained, *(_loaded(name, found, sources) for name, found in loaded.items()), *finetuned],
    )


def preference_stages(params: Mapping[str, Any]) -> list[str]:
    """Return finetune_preference/NAME and reward_model/NAME for each run: the names of its metrics and its curve."""
    return [f"{stage}/{name}" for stage in ("finetune_preference", "reward_model") for name in params[VARIED[stage]]]


def _losses(folder: Path, names: Iterable[str]) -> list[Rows]:
    """Return the losses of pretraining and of the variants with these names; nothing if there are no variants."""
    paths = [folder / "ablate_pretrain" / f"{name}.parquet" for name in names]
    return [read_table(path) for path in (folder / "pretrain.parquet", *paths) if paths]


def _predictions(folder: Path, names: Iterable[str]) -> list[Rows]:
    paths = ("finetune_spam", "baseline_spam", *(f"ablate_spam/{name}" for name in names))
    return [read_table(folder / f"{path}.parquet") for path in paths]


def _curve(path: Path) -> list[dict[str, float]]:
    try:
        return [{key: float(value) for key, value in row.items()} for row in read_csv(path)]
    except (TypeError, ValueError):  # TypeError: a line with too few or too many cells
        raise damaged(path, "a cell is not a number") from None


def _judged(folder: Path, names: Iterable[str]) -> list[dict[str, Any]]:
    """Return the responses of the variants with score and reason. The judge's controls are not among the responses."""
    responses = [row for name in names for row in read_table(folder / "generate" / f"{name}.parquet")]
    judged = read_table(folder / "judge.parquet")
    verdicts = {(row["id"], row["model"]): {key: row[key] for key in ("score", "reason")} for row in judged}
    return [{**row, **verdicts[row["id"], row["model"]]} for row in responses]


def _trained(folder: Path, metrics: Mapping[str, Any]) -> dict[str, Any]:
    weights = folder / "model.safetensors"
    if not weights.exists():
        raise missing(weights)
    config = read_json(folder / "config.json")["gpt"]
    parameters = metrics.get("parameters") or GPTConfig(**config).n_parameters
    return {"name": folder.name, "parameters": parameters, "sha256": sha256_of(weights), "config": config}


def _loaded(name: str, metrics: Mapping[str, Any], sources: Mapping[str, Any]) -> dict[str, Any]:
    config = PRETRAINED.get(name) or published_config(name.removeprefix("gpt2-"))  # type: ignore[arg-type]
    digests = sources[name]["sha256"]
    digest = digests[CHECKPOINT_WEIGHTS] if CHECKPOINT_WEIGHTS in digests else next(iter(digests.values()))
    return {"name": name, "parameters": metrics["parameters"], "sha256": digest, "config": config.model_dump()}
