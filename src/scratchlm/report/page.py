"""The report: the results of every stage on one self-contained HTML page."""

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from markupsafe import Markup

from scratchlm.data.catalogue import name_in, source_named
from scratchlm.report import tables, variants
from scratchlm.report.answers import answered_tasks, answering, examples, response_samples, with_steps
from scratchlm.report.cards import cards, stage_results
from scratchlm.report.charts import (
    Panel,
    calibration_chart,
    confusion_chart,
    curve_chart,
    length_chart,
    roc_chart,
    score_chart,
    step_chart,
)
from scratchlm.report.graph import graph_svg, stage_graph
from scratchlm.report.headline import headline
from scratchlm.report.inputs import Report, preference_stages
from scratchlm.report.template import read_template
from scratchlm.run.display import printable, shortened, without_secrets
from scratchlm.run.nested import flattened
from scratchlm.tasks.calibration import calibration_bins
from scratchlm.training.schedule import learning_rate_at

TEMPLATE, PALETTE, STYLE_SHEET, SCRIPT = (
    Path(__file__).with_name(name) for name in ("page.html.jinja", "palette.css", "page.css", "page.js")
)
OF_THE_MACHINE = ("device", "threads")  # parameters that change no result in precision `exact`
ABSENT = "–"
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
MAX_MISTAKES = 20
MAX_RATES = 200  # points of a learning rate's curve
STEP_COLUMNS = {  # of a reinforcement step -> what the report calls it
    "reward": "reward of the sampled responses",
    "kl": "KL to the assistant, nats per token",
    "entropy": "entropy, nats per token",
    "tokens": "tokens per response",
}
HISTORY_COLUMNS = {"loss": "training loss of a step", "gradient_norm": "gradient norm before clipping"}


def render(report: Report) -> str:
    """Return the page. It depends on the report alone, so the same results give the same bytes.

    Its policy lets it load nothing and run its own script only, which sorts and filters the answers.
    """
    filters: dict[str, Callable[..., Any]] = {
        "change": partial(tables.format_signed, decimals=3),
        "number": tables.format_number,
        "percent": tables.format_percent,
        "points": tables.format_points,
        "shortened": partial(shortened, n_characters=tables.MAX_CHARACTERS),
        "signed": partial(tables.format_signed, decimals=1),
        "without_secrets": lambda value: without_secrets(str(value)),
    }
    script = SCRIPT.read_text(encoding="utf-8")
    page = read_template(TEMPLATE, filters).render(
        **_built(report),
        **_results(report),
        report=report,
        params=report.params,
        style=Markup("".join(path.read_text(encoding="utf-8") for path in (PALETTE, STYLE_SHEET))),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return printable(page.strip()) + "\n"


def _built(report: Report) -> dict[str, Any]:
    """What the page says of the build: its parameters, stages and sources."""
    shown, stages = _shown_params(report.params), stage_graph(report.pipeline, report.params)
    profile, differences = _nearest_profile(shown, report.profiles)
    return {
        "shown_params": shown,
        "profile": profile,
        "differences": differences,
        "stages": stages,
        "graph": graph_svg(stages, stage_results(report)),
        "source_names": {key: without_secrets(name_in(entry)) for key, entry in report.params["sources"].items()},
        "sources": [(source_named(name), found) for name, found in sorted(report.sources.items())],
        "identity": report.metrics["judge"]["judge"],
    }


def _shown_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters without those that change no result, so that the page is the same on every machine."""
    exact = params["precision"] == "exact"
    return {key: value for key, value in params.items() if not (exact and key in OF_THE_MACHINE)}


def _nearest_profile(
    params: Mapping[str, Any], profiles: Mapping[str, Mapping[str, Any]]
) -> tuple[str, list[dict[str, str]]]:
    """Return the profile that the fewest parameters differ from, the first of equals, and these parameters.

    Without profiles the name is empty. params: as _shown_params returns them. profiles: by name, as in their files.
    """
    if not profiles:
        return "", []
    found = {name: _differences(params, values) for name, values in sorted(profiles.items())}
    name = min(found, key=lambda name: len(found[name]))
    return name, found[name]


def _differences(params: Mapping[str, Any], profile: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the parameters that differ, with both values as texts."""
    theirs = {key: value for key, value in profile.items() if key in params or key not in OF_THE_MACHINE}
    own, other = (
        {key: without_secrets(tables.format_parameter(value)) for key, value in flattened(values).items()}
        for values in (params, theirs)
    )
    return [
        {"key": key, "profile": other.get(key, ABSENT), "own": own.get(key, ABSENT)}
        for key in {**own, **other}
        if own.get(key) != other.get(key)
    ]


def _results(report: Report) -> dict[str, Any]:
    metrics, predictions, answers = report.metrics, report.predictions[0], answering(report)
    names = (*report.params["variants"], *CONTROLS)
    judged = {name: metrics["judge"][name] for name in names if name in metrics["judge"]}
    loaded: dict[str, dict] = {"load_gpt2": {}, "load_pretrained": {}}
    for name, found in report.loaded.items():
        loaded["load_gpt2" if name.startswith("gpt2-") else "load_pretrained"][name] = flattened(found)
    runs = ("finetune_preference", "reward_model", "reinforce", "generate")
    repeated = {stage: report.ablations[stage] for stage in runs}
    scores = {stage: variants.without_confusions(metrics[stage]) for stage in ("finetune_spam", "baseline_spam")}
    shown = {**metrics, **scores, **loaded, **repeated, "judge": judged}
    tasks = answered_tasks(report.responses)
    return {
        "headline": headline(metrics, report.loaded, report.params["variants"]),
        "cards": cards(report, answers),
        "controls": {name: judged[model] for model, name in CONTROLS.items() if model in judged},
        "tables": {stage: tables.metric_tables(shown[stage]) for stage in TABULATED if shown[stage]},
        "charts": charts(report),
        "most_frequent": variants.most_frequent(predictions),
        "mistakes": variants.mistakes(predictions),
        "max_mistakes": MAX_MISTAKES,
        "classifiers": variants.classifiers(report),
        "pretrain_variants": variants.pretrain_variants(report),
        "variants": answers,
        "tasks": tasks,
        "examples": examples(tasks),
        "instruct_samples": response_samples(report, "finetune_instruct"),
        "reinforce_samples": {stage: response_samples(report, stage) for stage in report.steps},
        "pretrain_samples": with_steps(report.samples["pretrain"], report.curves["pretrain"]),
        "judged": judged,
        "trust": metrics["judge"].get("trust"),
        "agreement": metrics["judge"].get("agreement"),
        "pairwise": {name: found for name, found in metrics["judge"].get("pairwise", {}).items() if name != "judge"},
    }


def charts(report: Report) -> dict[str, Markup]:
    """Return every chart by name."""
    accuracy = Panel("accuracy", {"train": "train_accuracy", "val": "val_accuracy"}, 1.8)
    units = {"pretrain": "token", "finetune_spam": "message", "finetune_instruct": "response token"}
    drawn = {}
    for stage, unit in units.items():
        loss = Panel(f"loss, nats per {unit}", {"train": "train_loss", "val": "val_loss"}, 2.3, log=True)
        rates = learning_rates(report.params[stage], int(report.curves[stage][-1]["step"]))
        rate = Panel("learning rate", {"learning rate": "learning_rate"}, 1.0, curve=rates)
        panels = [loss, accuracy, rate] if stage == "finetune_spam" else [loss, rate]
        drawn[stage] = curve_chart(stage, report.curves[stage], panels)
    for stage, steps in report.histories.items():
        columns = {column: label for column, label in HISTORY_COLUMNS.items() if column in steps[0]}
        drawn[f"{stage}/steps"] = step_chart(stage, steps, columns)
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
    for name, counts in report.tokens.items():
        if counts.lengths:
            drawn[f"lengths/{name}"] = length_chart(name, counts.lengths, name)
    return drawn | _classifier_charts(report) | {"scores": _scores(report)}


def learning_rates(training: Mapping[str, Any], n_steps: int) -> list[dict[str, float]]:
    """Return the learning rate of every step, or of MAX_RATES of them. training: a section of params.yaml."""
    schedule: Any = SimpleNamespace(**training)
    steps = tables.thinned(range(n_steps), MAX_RATES)
    return [{"step": step, "learning_rate": learning_rate_at(step, n_steps, schedule)} for step in steps]


def _classifier_charts(report: Report) -> dict[str, Markup]:
    """The confusion matrix, and of two classes that both occur the ROC curve and the calibration."""
    predictions, baseline = report.predictions[:2]
    classes = [name for name, _ in predictions[0]["probabilities"]]
    counts = Counter((row["label"], row["predicted"]) for row in predictions)
    drawn = {"confusion": confusion_chart("finetune_spam", counts, classes)}
    if len(classes) == len({row["label"] for row in predictions}) == 2:
        by_stage = {"finetune_spam": predictions, "baseline_spam": baseline}
        curves = {stage: variants.roc_points(rows, classes[1]) for stage, rows in by_stage.items()}
        drawn["roc"] = roc_chart("finetune_spam", curves)
        drawn["calibration"] = calibration_chart("finetune_spam", calibration_bins(variants.margins(predictions)))
    return drawn


def _scores(report: Report) -> Markup:
    scores: Mapping[str, list[float]] = {name: [] for name in report.params["variants"]}
    for row in report.responses:
        if row["score"] is not None:
            scores[row["model"]].append(row["score"])
    return score_chart("judge", scores)
