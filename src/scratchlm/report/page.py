"""The report: the results of every stage on one self-contained HTML page."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from scratchlm.data.catalogue import source_named
from scratchlm.model.config import ModelParams
from scratchlm.report.charts import Panel, calibration_chart, confusion_chart, curve_chart, score_chart, step_chart
from scratchlm.report.graph import graph_svg, stage_graph
from scratchlm.report.headline import headline
from scratchlm.report.inputs import VARIED, Report, Rows, preference_stages
from scratchlm.report.tables import (
    format_change,
    format_number,
    format_parameter,
    format_percent,
    format_points,
    format_signed,
    metric_tables,
    shortened,
    thinned,
)
from scratchlm.run.display import printable, without_secrets
from scratchlm.run.nested import flattened
from scratchlm.tasks.calibration import calibration_bins
from scratchlm.tasks.intervals import mean_interval
from scratchlm.tasks.scores import accuracy_difference
from scratchlm.tasks.variants import ASSISTANT

TEMPLATE = Path(__file__).with_name("page.html.jinja")
TABULATED = (
    "tokenize", "pretrain", "load_gpt2", "load_pretrained", "finetune_spam", "baseline_spam", "finetune_instruct",
    "finetune_preference", "reward_model", "reinforce", "generate", "judge",
)  # fmt: skip
CONTROLS = {
    "control_reference": "the reference answer",
    "control_shuffled": "another task's answer",
    "control_empty": "an empty answer",
    "control_injected": "another task's answer that demands 100 points",
}
OF_THE_MACHINE = ("device", "threads")  # parameters that change no result in precision `exact`
MAX_MISTAKES = 20
EXAMPLES = 4  # responses in each group: best, around the median, worst
MAX_SAMPLES = 12
STEP_COLUMNS = {  # of a reinforcement step -> what the report calls it
    "reward": "reward of the sampled responses",
    "kl": "KL to the assistant, nats per token",
    "entropy": "entropy, nats per token",
    "tokens": "tokens per response",
}


def render(report: Report) -> str:
    """Return the page. It depends on the report alone, so the same results give the same bytes."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "change": format_change,
        "number": format_number,
        "percent": format_percent,
        "points": format_points,
        "shortened": shortened,
        "signed": format_signed,
    }
    metrics, stages = report.metrics, stage_graph(report.pipeline, report.params)
    names = (*report.params["variants"], *CONTROLS)
    judged = {name: metrics["judge"][name] for name in names if name in metrics["judge"]}
    loaded: dict[str, dict] = {"load_gpt2": {}, "load_pretrained": {}}
    for name, found in report.loaded.items():
        loaded["load_gpt2" if name.startswith("gpt2-") else "load_pretrained"][name] = flattened(found)
    runs = ("finetune_preference", "reward_model", "reinforce", "generate")
    repeated = {stage: report.ablations[stage] for stage in runs}
    scores = {stage: without_confusions(metrics[stage]) for stage in ("finetune_spam", "baseline_spam")}
    tables = {**metrics, **scores, **loaded, **repeated, "judge": judged}
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        report=report,
        params=report.params,
        shown_params=shown_params(report.params),
        headline=headline(metrics, report.loaded, report.params["variants"]),
        controls={name: judged[model] for model, name in CONTROLS.items() if model in judged},
        stages=stages,
        graph=graph_svg(stages),
        tables={stage: metric_tables(tables[stage]) for stage in TABULATED if tables[stage]},
        charts=charts(report),
        n_predictions=len(report.predictions[0]),
        mistakes=mistakes(report.predictions[0]),
        max_mistakes=MAX_MISTAKES,
        classifiers=classifiers(report),
        pretrain_variants=pretrain_variants(report),
        variants=answering(report),
        examples=examples(report.responses),
        instruct_samples=response_samples(report, "finetune_instruct"),
        reinforced=report.ablations["reinforce"],
        reinforce_samples={stage: response_samples(report, stage) for stage in report.steps},
        pretrain_samples=_with_steps(report.samples["pretrain"], report.curves["pretrain"]),
        identity=metrics["judge"]["judge"],
        judged=judged,
        trust=metrics["judge"].get("trust"),
        agreement=metrics["judge"].get("agreement"),
        pairwise={name: found for name, found in metrics["judge"].get("pairwise", {}).items() if name != "judge"},
        source_names={key: _shown_source(source) for key, source in report.params["sources"].items()},
        sources=[(source_named(name), found) for name, found in sorted(metrics["download"].items())],
    )
    return printable(page.strip()) + "\n"


def _shown_source(source: Any) -> str:
    """The name of an entry of the catalogue, or the path of one's own data."""
    return source if isinstance(source, str) else without_secrets(source["path"])


def shown_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters without those that change no result, so that the page is the same on every machine."""
    exact = params["precision"] == "exact"
    return {key: value for key, value in params.items() if not (exact and key in OF_THE_MACHINE)}


def without_confusions(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return a classifier's metrics without its confusions, which are in the chart, if there are many."""
    return {
        key: {name: found for name, found in value.items() if name != "confusion"} if _has_many(value) else value
        for key, value in metrics.items()
    }


def _has_many(scores: Any) -> bool:
    return isinstance(scores, Mapping) and len(scores.get("confusion", ())) > 4  # of two classes


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
    for stage in preference_stages(report.params):
        margin = Panel("margin, nats", {"train": "train_margin", "val": "val_margin"}, 1.8)
        loss = Panel("loss per pair", {"train": "train_loss", "val": "val_loss"}, 2.3)
        panels = [loss, accuracy._replace(label="reward accuracy"), margin]
        drawn[stage] = curve_chart(stage.replace("/", "-"), report.curves[stage], panels)
    for stage, steps in report.steps.items():
        panels = [Panel(f"{name} (greedy)", {name: f"val_{name}"}, 1.5) for name in ("reward", "tokens")]
        drawn[stage] = curve_chart(stage.replace("/", "-"), report.curves[stage], panels)
        drawn[f"{stage}/steps"] = step_chart(stage.replace("/", "-"), steps, STEP_COLUMNS)
    for name, rows in report.pairs.items():
        bins = calibration_bins(row["chosen_reward"] - row["rejected_reward"] for row in rows)
        drawn[f"calibration/{name}"] = calibration_chart(f"reward_model-{name}", bins)
    predictions = report.predictions[0]
    classes = [name for name, _ in predictions[0]["probabilities"]]
    counts = Counter((row["label"], row["predicted"]) for row in predictions)
    drawn["confusion"] = confusion_chart("finetune_spam", counts, classes)
    scores = {
        model: [row["score"] for row in report.responses if row["model"] == model and row["score"] is not None]
        for model in dict.fromkeys(row["model"] for row in report.responses)
    }
    drawn["scores"] = score_chart("judge", scores)
    return drawn


def mistakes(predictions: Rows) -> list[dict[str, Any]]:
    """Return misclassified messages with the probability of the predicted class, the most confident ones first."""
    wrong = [
        {**row, "confidence": dict(row["probabilities"])[row["predicted"]]}
        for row in predictions
        if row["label"] != row["predicted"]
    ]
    return sorted(wrong, key=lambda row: (-row["confidence"], row["id"]))


def variants(report: Report, stage: str, original: str) -> list[dict[str, Any]]:
    """Return an experiment and its variants: name, changed parameters and metrics; nothing if it has no variants."""
    found, changed = report.ablations[stage], report.params[VARIED[stage]]
    texts = {
        name: ", ".join(f"{key} {format_parameter(value)}" for key, value in flattened(changed[name]).items())
        for name in found
    }
    rows = [{"name": name, "changes": texts[name], **scores} for name, scores in found.items()]
    return [{"name": f"as in {original}", "changes": "", **report.metrics[original]}, *rows] if rows else []


def classifiers(report: Report) -> list[dict[str, Any]]:
    """Return the finetuned classifier, the baseline and the variants, with the change of accuracy and its interval."""
    finetuned = {"name": "finetune_spam", "changes": "", "change": None, **report.metrics["finetune_spam"]}
    baseline = {"name": "baseline_spam", "changes": "words alone", **report.metrics["baseline_spam"]}
    rows = [finetuned, baseline, *variants(report, "ablate_spam", "finetune_spam")[1:]]
    for row, predictions in zip(rows[1:], report.predictions[1:], strict=True):
        row["change"] = accuracy_difference(predictions, report.predictions[0])
    return rows


def pretrain_variants(report: Report) -> list[dict[str, Any]]:
    """Return pretraining and its variants, with the change of the val loss and its 95 % interval over the windows.

    Each window is paired with itself in the original: what makes a window hard is in both losses. All have equally
    many tokens, so the mean of their losses per token is the loss of the whole.
    """
    rows = variants(report, "ablate_pretrain", "pretrain")
    for row, losses in zip(rows[1:], report.losses[1:], strict=True):
        pairs = zip(report.losses[0], losses, strict=True)
        changes = [(now["loss_nats"] - was["loss_nats"]) / was["scored_tokens"] for was, now in pairs]
        row |= _mean_change(changes, report.params["seed"])
    for row in rows[:1]:
        config = ModelParams(**report.params["model"]).config(vocab_size=1)
        row["kv_cache_bytes_per_token"] = config.kv_cache_bytes_per_token
    return rows


def answering(report: Report) -> list[dict[str, Any]]:
    """Return each variant of the assistant with its metrics, and the change of its mean score from the assistant's.

    The change is paired by task. It is absent of the assistant itself, and where no task has both scores.
    """
    scores = {
        name: {row["id"]: row["score"] for row in report.responses if row["model"] == name and row["score"] is not None}
        for name in report.params["variants"]
    }
    rows = []
    for name, folder in report.params["variants"].items():
        row = {"name": name, "folder": folder} | report.ablations["generate"][name] | report.metrics["judge"][name]
        changes = [score - scores[ASSISTANT][task] for task, score in scores[name].items() if task in scores[ASSISTANT]]
        if changes and name != ASSISTANT:
            row |= _mean_change(changes, report.params["seed"])
        rows.append(row)
    return rows


def _mean_change(changes: Sequence[float], seed: int) -> dict[str, float]:
    low, high = mean_interval(changes, seed)
    return {"change": math.fsum(changes) / len(changes), "low": low, "high": high}


def examples(responses: Rows) -> dict[str, list[dict[str, Any]]]:
    """Return tasks with the answers of all variants: those with the assistant's best, median and worst responses."""
    ranked = sorted(
        (row for row in responses if row["model"] == ASSISTANT and row["score"] is not None),
        key=lambda row: (-row["score"], row["id"]),
    )
    answers: dict[str, dict[str, Any]] = {row["id"]: {} for row in ranked}
    for row in responses:
        answers.get(row["id"], {})[row["model"]] = row
    paired = [{**row, "answers": answers[row["id"]]} for row in ranked]
    if len(paired) <= 3 * EXAMPLES:
        return {"All": paired} if paired else {}
    middle = (len(paired) - EXAMPLES) // 2
    return {
        "Best": paired[:EXAMPLES],
        "Around the median": paired[middle : middle + EXAMPLES],
        "Worst": paired[-EXAMPLES:],
    }


def response_samples(report: Report, stage: str) -> list[dict[str, Any]]:
    """Return for each sampled instruction the task and its responses in the course of a training."""
    samples = report.samples[stage]
    asked = samples[0]["responses"] if samples else []
    rows = _with_steps(samples, report.curves[stage])
    return [{**task, "rows": [row | {"response": row["responses"][i]} for row in rows]} for i, task in enumerate(asked)]


def _with_steps(samples: Rows, curve: Rows) -> list[dict[str, Any]]:
    """Return at most MAX_SAMPLES samples, each with the step of the evaluation that took it."""
    return thinned([{**sample, "step": curve[sample["evaluation"]]["step"]} for sample in samples], MAX_SAMPLES)
