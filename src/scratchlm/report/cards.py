"""The first screen: the main results as cards, and the results on the nodes of the graph of stages."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from scratchlm.report.charts import sparkline
from scratchlm.report.inputs import Report
from scratchlm.report.tables import format_number, format_percent, format_points, format_signed
from scratchlm.tasks.variants import ASSISTANT, BASE


class Card(NamedTuple):
    """One result. interval: at 95 %, or empty. lines: what it is compared with. spark: the course of the training."""

    title: str
    value: str
    unit: str
    interval: str
    lines: Sequence[str]
    spark: Markup | str


def cards(report: Report, answering: Sequence[Mapping[str, Any]]) -> list[Card]:
    """Return the cards. answering: the rows of answers.answering."""
    return [
        _pretrained(report), _classifier(report), _assistant(report), *(_answers(row, answering) for row in answering
        if row["name"] != BASE),
    ]  # fmt: skip


def _pretrained(report: Report) -> Card:
    found = report.metrics["pretrain"]
    val, start = found["val"], found["untrained_val_loss"]
    lines = [_from_start(start, val["loss"])]
    lines += [f"perplexity {format_number(val['perplexity'])}, {format_number(val['bits_per_byte'])} bits per byte"]
    unit = "nats per token, val loss"
    return Card("Pretrained model", format_number(val["loss"]), unit, "", lines, _spark(report, "pretrain", "val_loss"))


def _classifier(report: Report) -> Card:
    test, gain = report.metrics["finetune_spam"]["test"], report.metrics["baseline_spam"]["gain_of_finetune_spam"]
    words = report.metrics["baseline_spam"]["test"]["accuracy"]
    change, low, high = (format_points(gain[f"accuracy{end}"]) for end in ("", "_low", "_high"))
    lines = [f"bag of words {format_percent(words)}; the GPT has {change} points ({low} to {high})"]
    lines += [f"test messages also in train: {report.repeated.count:,} of {report.repeated.total:,}"]
    interval = f"{format_percent(test['accuracy_low'])} to {format_percent(test['accuracy_high'])}"
    spark = _spark(report, "finetune_spam", "val_loss")
    return Card("Classifier", format_percent(test["accuracy"]), "test accuracy", interval, lines, spark)


def _assistant(report: Report) -> Card:
    start, end = (report.metrics["finetune_instruct"][when]["val_loss"] for when in ("before", "after"))
    lines = [_from_start(start, end)]
    spark = _spark(report, "finetune_instruct", "val_loss")
    return Card("Assistant", format_number(end), "nats per response token, val loss", "", lines, spark)


def _answers(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Card:
    """The score of a variant's answers: the assistant's against the base, another's against the assistant."""
    lines = [f"{row['exact_matches']:,} of {row['responses']:,} equal the reference answer"]
    base = next((other for other in rows if other["name"] == BASE), None)
    if row["name"] != ASSISTANT and "change" in row:
        change, low, high = (format_signed(row[key], 1) for key in ("change", "low", "high"))
        lines.insert(0, f"{change} points against {ASSISTANT} ({low} to {high})")
    elif row["name"] == ASSISTANT and base and "mean_score" in base and "mean_score" in row:
        change = format_signed(row["mean_score"] - base["mean_score"], 1)
        lines.insert(0, f"{change} from {format_number(base['mean_score'])} before training")
    ends = [format_number(row[end]) for end in ("mean_low", "mean_high") if end in row]
    value = format_number(row.get("mean_score"))
    return Card(f"Answers of {row['name']}", value, "mean score of 0 to 100", " to ".join(ends), lines, "")


def _from_start(start: float, end: float) -> str:
    return f"{format_signed(end - start, 3)} from {format_number(start)} before training"


def _spark(report: Report, stage: str, column: str) -> Markup:
    values = [row[column] for row in report.curves[stage]]
    first, last = format_number(values[0]), format_number(values[-1])
    return sparkline(values, f"{stage}: {column.replace('_', ' ')} from {first} to {last}")


def stage_results(report: Report) -> dict[str, str]:
    """Return the text on each node of the graph that has a result, by the names of `dvc dag`."""
    metrics, judge = report.metrics, report.metrics["judge"]
    corpus = metrics["tokenize"]["corpus"]
    found = {
        "download": f"{len(report.sources)} sources",
        "tokenize": f"{sum(split['tokens'] for split in corpus.values()):,} tokens",
        "pretrain": _loss(metrics["pretrain"]),
        "finetune_spam": f"{format_percent(metrics['finetune_spam']['test']['accuracy'])} right",
        "baseline_spam": f"{format_percent(metrics['baseline_spam']['test']['accuracy'])} right",
        "finetune_instruct": f"loss {format_number(metrics['finetune_instruct']['after']['val_loss'])}",
        "judge": f"score {format_number(judge[ASSISTANT].get('mean_score'))}",
    }
    for name, scores in report.loaded.items():
        if name.startswith("gpt2-"):
            found[f"load_gpt2@{name.removeprefix('gpt2-')}"] = _loss(scores)
        else:
            found[f"load_pretrained@{name}"] = f"{format_number(scores['val']['bits_per_byte'])} bits per byte"
    texts = {
        "ablate_pretrain": _loss,
        "ablate_spam": lambda scores: f"{format_percent(scores['test']['accuracy'])} right",
        "finetune_preference": lambda scores: f"{format_percent(scores['test']['accuracy'])} of pairs",
        "reward_model": lambda scores: f"{format_percent(scores['test']['accuracy'])} of pairs",
        "reinforce": lambda scores: f"reward {format_number(scores['test']['reward'])}",
        "generate": lambda scores: f"{scores['exact_matches']:,} of {scores['responses']:,} exact",
    }
    for stage, text in texts.items():
        found |= {f"{stage}@{name}": text(scores) for name, scores in report.ablations[stage].items()}
    return found


def _loss(scores: Mapping[str, Any]) -> str:
    return f"loss {format_number(scores['val']['loss'])}"
