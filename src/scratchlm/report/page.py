"""The report: the results of every stage on one self-contained HTML page."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from scratchlm.data.catalogue import CATALOGUE, CHECKPOINT_WEIGHTS
from scratchlm.model.config import PRETRAINED, ModelParams, published_config
from scratchlm.report.charts import Panel, confusion_chart, curve_chart, score_chart
from scratchlm.report.graph import graph_svg, stage_graph
from scratchlm.report.headline import headline, loaded_metrics
from scratchlm.report.tables import format_change, format_number, format_percent, metric_tables, shortened, thinned
from scratchlm.run.display import printable
from scratchlm.run.files import damaged, missing, read_csv, read_json, read_table, sha256_of
from scratchlm.run.nested import flattened
from scratchlm.run.params import load_yaml
from scratchlm.tasks.intervals import mean_interval

TEMPLATE = Path(__file__).with_name("page.html.jinja")
STAGES = ("download", "tokenize", "pretrain", "finetune_spam", "finetune_instruct", "generate", "judge")
TRAINED = ("pretrain", "finetune_spam", "finetune_instruct")
SAMPLED = ("pretrain", "finetune_instruct")
TABULATED = (
    "tokenize", "pretrain", "load_gpt2", "load_pretrained", "finetune_spam", "finetune_instruct", "generate", "judge",
)  # fmt: skip
CONTROLS = {
    "control_reference": "the reference answer",
    "control_shuffled": "another task's answer",
    "control_empty": "an empty answer",
}
VARIED = {"ablate_pretrain": "pretrain_ablations", "ablate_spam": "spam_ablations"}  # stage -> section of its variants
OF_THE_MACHINE = ("device", "threads")  # parameters that change no result in precision `exact`
MAX_MISTAKES = 20
EXAMPLES = 4  # responses in each group: best, around the median, worst
MAX_SAMPLES = 12

Rows = Sequence[Mapping[str, Any]]


class Inputs(NamedTuple):
    """The files and folders that the page is made from, as the stages write them."""

    params: Path
    pipeline: Path
    metrics: Path
    losses: Path
    samples: Path
    predictions: Path
    responses: Path
    models: Path


@dataclass(frozen=True)
class Report:
    """The content of the inputs. Metrics, curves and samples are by stage, ablations by stage and variant.

    losses: rows of LOSS_SCHEMA of pretraining, then of each of its variants; empty if there are no variants.
    responses: rows of RESPONSE_SCHEMA with score and reason. classes: actual and predicted class of each prediction.
    models: name, parameters, config and sha256 (of the file that the page names).
    """

    params: Mapping[str, Any]
    pipeline: Mapping[str, Any]
    metrics: Mapping[str, Any]
    loaded: Mapping[str, Any]
    ablations: Mapping[str, Mapping[str, Any]]
    losses: Sequence[Rows]
    curves: Mapping[str, list[dict[str, float]]]
    samples: Mapping[str, Rows]
    predictions: Rows
    classes: Rows
    responses: Rows
    models: Rows


def collect(inputs: Inputs) -> Report:
    """Read the inputs; of GPT-2 sizes and ablations, only those in params.yaml.

    Raises UserError naming a file that is missing or broken.
    """
    params, folder, plots = load_yaml(inputs.params), inputs.metrics, inputs.metrics / "plots"
    metrics = {stage: read_json(folder / f"{stage}.json") for stage in STAGES}
    loaded = loaded_metrics(folder, params["gpt2_sizes"], params["pretrained"])
    pretrained, *finetuned = (_trained(inputs.models / stage, metrics[stage]) for stage in TRAINED)
    return Report(
        params=params,
        pipeline=load_yaml(inputs.pipeline),
        metrics=metrics,
        loaded=loaded,
        ablations={
            stage: {name: read_json(folder / stage / f"{name}.json") for name in params[section]}
            for stage, section in VARIED.items()
        },
        losses=_losses(inputs.losses, params[VARIED["ablate_pretrain"]]),
        curves={stage: _curve(plots / f"{stage}.csv") for stage in TRAINED},
        samples={stage: read_json(inputs.samples / f"{stage}.json", list) for stage in SAMPLED},
        predictions=read_table(inputs.predictions),
        classes=read_csv(plots / "finetune_spam_confusion.csv"),
        responses=_judged(*(read_table(inputs.responses / f"{stage}.parquet") for stage in ("generate", "judge"))),
        models=[pretrained, *(_loaded(name, found, metrics["download"]) for name, found in loaded.items()), *finetuned],
    )


def render(report: Report) -> str:
    """Return the page. It depends on the report alone, so the same results give the same bytes."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "change": format_change,
        "number": format_number,
        "percent": format_percent,
        "shortened": shortened,
    }
    metrics, stages = report.metrics, stage_graph(report.pipeline, report.params)
    judged = {model: metrics["judge"][model] for model in ("before", "after", *CONTROLS) if model in metrics["judge"]}
    loaded: dict[str, dict] = {"load_gpt2": {}, "load_pretrained": {}}
    for name, found in report.loaded.items():
        loaded["load_gpt2" if name.startswith("gpt2-") else "load_pretrained"][name] = flattened(found)
    tables = {**metrics, **loaded, "judge": judged}
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        report=report,
        params=report.params,
        shown_params=shown_params(report.params),
        headline=headline(metrics, report.loaded),
        controls={name: judged[model] for model, name in CONTROLS.items() if model in judged},
        stages=stages,
        graph=graph_svg(stages),
        tables={stage: metric_tables(tables[stage]) for stage in TABULATED if tables[stage]},
        charts=charts(report),
        mistakes=mistakes(report.predictions, report.classes),
        max_mistakes=MAX_MISTAKES,
        spam_variants=variants(report, "ablate_spam", "finetune_spam"),
        pretrain_variants=pretrain_variants(report),
        examples=examples(report.responses),
        instruct_samples=instruct_samples(report.samples["finetune_instruct"], report.curves["finetune_instruct"]),
        pretrain_samples=_with_steps(report.samples["pretrain"], report.curves["pretrain"]),
        identity=metrics["judge"]["judge"],
        judged=judged,
        sources=[(CATALOGUE[name], found) for name, found in sorted(metrics["download"].items())],
    )
    return printable(page.strip()) + "\n"


def shown_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters without those that change no result, so that the page is the same on every machine."""
    exact = params["precision"] == "exact"
    return {key: value for key, value in params.items() if not (exact and key in OF_THE_MACHINE)}


def charts(report: Report) -> dict[str, Markup]:
    """Return every chart by name."""
    rate = Panel("learning rate", {"learning rate": "learning_rate"}, 1.0)
    accuracy = Panel("accuracy", {"train": "train_accuracy", "val": "val_accuracy"}, 1.8)
    units = {"pretrain": "token", "finetune_spam": "message", "finetune_instruct": "response token"}
    drawn = {}
    for stage, unit in units.items():
        loss = Panel(f"loss, nats per {unit}", {"train": "train_loss", "val": "val_loss"}, 2.3)
        panels = [loss, accuracy, rate] if stage == "finetune_spam" else [loss, rate]
        drawn[stage] = curve_chart(stage, report.curves[stage], panels)
    classes = sorted({row[side] for row in report.classes for side in ("actual", "predicted")} | {"ham", "spam"})
    pairs = [(row["actual"], row["predicted"]) for row in report.classes]
    counts = {(a, p): pairs.count((a, p)) for a in classes for p in classes}
    drawn["confusion"] = confusion_chart("finetune_spam", counts, classes)
    scores = {
        model: [row["score"] for row in report.responses if row["model"] == model and row["score"] is not None]
        for model in dict.fromkeys(row["model"] for row in report.responses)
    }
    drawn["scores"] = score_chart("judge", scores)
    return drawn


def mistakes(predictions: Rows, classes: Rows) -> list[dict[str, Any]]:
    """Return misclassified messages with the probability of the predicted class, the most confident ones first."""
    wrong = [
        {**row, **names, "confidence": max(row["probability"], 1 - row["probability"])}
        for row, names in zip(predictions, classes, strict=True)
        if row["label"] != row["predicted"]
    ]
    return sorted(wrong, key=lambda row: (-row["confidence"], row["id"]))


def variants(report: Report, stage: str, original: str) -> list[dict[str, Any]]:
    """Return an experiment and its variants: name, changed parameters and metrics; nothing if it has no variants."""
    found, changed = report.ablations[stage], report.params[VARIED[stage]]
    texts = {name: ", ".join(f"{key} {value}" for key, value in flattened(changed[name]).items()) for name in found}
    rows = [{"name": name, "changes": texts[name], **scores} for name, scores in found.items()]
    return [{"name": f"as in {original}", "changes": "", **report.metrics[original]}, *rows] if rows else []


def pretrain_variants(report: Report) -> list[dict[str, Any]]:
    """Return pretraining and its variants, with the change of the val loss and its 95 % interval over the windows.

    Each window is paired with itself in the original: what makes a window hard is in both losses. All have equally
    many tokens, so the mean of their losses per token is the loss of the whole.
    """
    rows = variants(report, "ablate_pretrain", "pretrain")
    for row, losses in zip(rows[1:], report.losses[1:], strict=True):
        pairs = zip(report.losses[0], losses, strict=True)
        changes = [(now["loss_nats"] - was["loss_nats"]) / was["scored_tokens"] for was, now in pairs]
        row["change"] = math.fsum(changes) / len(changes)
        row["low"], row["high"] = mean_interval(changes, report.params["seed"])
    for row in rows[:1]:
        config = ModelParams(**report.params["model"]).config(vocab_size=1)
        row["kv_cache_bytes_per_token"] = config.kv_cache_bytes_per_token
    return rows


def examples(responses: Rows) -> dict[str, list[dict[str, Any]]]:
    """Return the finetuned model's best, median and worst responses, each with the base model's response."""
    before = {row["id"]: row for row in responses if row["model"] == "before"}
    after = [row for row in responses if row["model"] == "after" and row["score"] is not None]
    ranked = sorted(after, key=lambda row: (-row["score"], row["id"]))
    paired = [{**row, "before": before.get(row["id"])} for row in ranked]
    if len(paired) <= 3 * EXAMPLES:
        return {"All": paired} if paired else {}
    middle = (len(paired) - EXAMPLES) // 2
    return {
        "Best": paired[:EXAMPLES],
        "Around the median": paired[middle : middle + EXAMPLES],
        "Worst": paired[-EXAMPLES:],
    }


def instruct_samples(samples: Rows, curve: Rows) -> list[dict[str, Any]]:
    """Return for each sampled instruction the task and its responses in the course of training."""
    asked = samples[0]["responses"] if samples else []
    rows = _with_steps(samples, curve)
    return [{**task, "rows": [row | {"response": row["responses"][i]} for row in rows]} for i, task in enumerate(asked)]


def _with_steps(samples: Rows, curve: Rows) -> list[dict[str, Any]]:
    """Return at most MAX_SAMPLES samples, each with the step of the evaluation that took it."""
    return thinned([{**sample, "step": curve[sample["evaluation"]]["step"]} for sample in samples], MAX_SAMPLES)


def _losses(folder: Path, names: Iterable[str]) -> list[Rows]:
    """Return the losses of pretraining and of the variants with these names; nothing if there are no variants."""
    paths = [folder / "ablate_pretrain" / f"{name}.parquet" for name in names]
    return [read_table(path) for path in (folder / "pretrain.parquet", *paths) if paths]


def _curve(path: Path) -> list[dict[str, float]]:
    try:
        return [{key: float(value) for key, value in row.items()} for row in read_csv(path)]
    except (TypeError, ValueError):  # TypeError: a line with too few or too many cells
        raise damaged(path, "a cell is not a number") from None


def _judged(responses: Rows, judgements: Rows) -> list[dict[str, Any]]:
    """Return the responses with score and reason. The judge's controls are not among the responses."""
    verdicts = {(row["id"], row["model"]): {key: row[key] for key in ("score", "reason")} for row in judgements}
    return [{**row, **verdicts[row["id"], row["model"]]} for row in responses]


def _trained(folder: Path, metrics: Mapping[str, Any]) -> dict[str, Any]:
    weights = folder / "model.safetensors"
    if not weights.exists():
        raise missing(weights)
    own = {"sha256": sha256_of(weights), "config": read_json(folder / "config.json")["gpt"]}
    return {"name": folder.name, "parameters": metrics.get("parameters"), **own}


def _loaded(name: str, metrics: Mapping[str, Any], downloads: Mapping[str, Any]) -> dict[str, Any]:
    config = PRETRAINED.get(name) or published_config(name.removeprefix("gpt2-"))  # type: ignore[arg-type]
    digests = downloads[name]["sha256"]
    digest = digests[CHECKPOINT_WEIGHTS] if CHECKPOINT_WEIGHTS in digests else next(iter(digests.values()))
    return {"name": name, "parameters": metrics["parameters"], "sha256": digest, "config": config.model_dump()}
