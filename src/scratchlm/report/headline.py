"""The main results: one line per measure, with its value before training where there is one."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scratchlm.report.tables import NONE, format_number, format_percent, format_points
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_json
from scratchlm.run.params import Section, read_params
from scratchlm.tasks.variants import ASSISTANT, BASE, Variants

ACCURACY, MEAN = ("accuracy", "accuracy_low", "accuracy_high"), ("mean_score", "mean_low", "mean_high")
STAGES = ("pretrain", "finetune_spam", "baseline_spam", "finetune_instruct", "judge")


class Headline(NamedTuple):
    """One line of the result table, as texts, and the numbers behind them.

    start: the value before training, or empty. value: of the result; low and high: the ends of its interval. before:
    of start. A number that a line does not have is None.
    """

    subject: str
    measure: str
    start: str
    result: str
    interval: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    before: float | None = None


class _Loaded(Section):
    gpt2_sizes: list[str]
    pretrained: list[str]
    variants: Variants


def read_headline(params: Path, metrics: Path) -> list[Headline]:
    """Return the lines of the last build. Raises UserError naming a missing or broken file, or a missing metric."""
    found = read_params(params, _Loaded)
    loaded = loaded_metrics(metrics, found.gpt2_sizes, found.pretrained)
    by_stage = {stage: read_json(metrics / f"{stage}.json") for stage in STAGES}
    try:
        return headline(by_stage, loaded, found.variants)
    except KeyError as lacking:
        raise UserError(f"{metrics} has no {lacking.args[0]}, which this version shows; run `dvc repro`") from None


def loaded_metrics(metrics: Path, gpt2_sizes: Iterable[str], pretrained: Iterable[str]) -> dict[str, Any]:
    """Return the metrics of every loaded model by its name. Raises UserError naming a missing or broken file."""
    found = {f"gpt2-{size}": read_json(metrics / "load_gpt2" / f"{size}.json") for size in gpt2_sizes}
    return found | {name: read_json(metrics / "load_pretrained" / f"{name}.json") for name in pretrained}


def headline(metrics: Mapping[str, Any], loaded: Mapping[str, Any], variants: Collection[str]) -> list[Headline]:
    """Return the lines. metrics: by stage, for those in STAGES. loaded: metrics by name of a loaded model.

    Raises UserError if a variant was not judged.
    """
    pretrain, spam, baseline = metrics["pretrain"], metrics["finetune_spam"]["test"], metrics["baseline_spam"]
    instruct, judge = metrics["finetune_instruct"], metrics["judge"]
    if missing := [name for name in variants if name not in judge]:
        raise UserError(f"the judge has no scores of {', '.join(missing)}, which variants names; run `dvc repro`")
    val_loss = "val loss, nats per token"
    lines = [
        _change("pretrain", val_loss, pretrain["untrained_val_loss"], pretrain["val"]["loss"]),
        _single("pretrain", "val perplexity", pretrain["val"]["perplexity"]),
        _single("pretrain", "val bits per byte", pretrain["val"]["bits_per_byte"]),
    ]
    for name, scores in loaded.items():  # only bits per byte compare models of different vocabularies
        measure = "loss" if name.startswith("gpt2-") else "bits_per_byte"
        label = val_loss if measure == "loss" else "val bits per byte"
        lines.append(_single(name, label, scores["val"][measure]))
    points = baseline["gain_of_finetune_spam"]
    lines += [
        _estimate("finetune_spam", "test accuracy", spam, ACCURACY, format_percent),
        *_class_lines(spam),
        _estimate("baseline_spam", "test accuracy", baseline["test"], ACCURACY, format_percent),
        _estimate("finetune_spam", "points above baseline", points, ACCURACY, format_points),
    ]
    losses = (instruct[when]["val_loss"] for when in ("before", "after"))
    lines.append(_change("finetune_instruct", "val loss, nats per response token", *losses))
    before, first, *others = (
        _estimate("judge", f"mean score of {name}", judge.get(name, {}), MEAN, format_number)
        for name in (BASE, ASSISTANT, *(name for name in variants if name not in (BASE, ASSISTANT)))
    )
    start = before.result if BASE in judge else ""
    start += "" if before.value is None else f" ({before.interval})"
    first = first._replace(measure="mean score of 0 to 100", start=start, before=before.value)
    return [*lines, first, *others]


def _class_lines(scores: Mapping[str, Any]) -> list[Headline]:
    """F1 and AUROC of two classes; of more, the mean F1 of each."""
    if "macro_f1" in scores:
        return [_single("finetune_spam", "test macro F1", scores["macro_f1"])]
    named = {"F1": scores["f1"], "AUROC": scores.get("auroc")}
    return [_single("finetune_spam", f"test {name}", value) for name, value in named.items()]


def _single(subject: str, measure: str, value: float | None) -> Headline:
    return Headline(subject, measure, "", format_number(value), value=value)


def _change(subject: str, measure: str, before: float, after: float) -> Headline:
    return _single(subject, measure, after)._replace(start=format_number(before), before=before)


def _estimate(
    subject: str, measure: str, scores: Mapping[str, Any], names: Sequence[str], form: Callable[[Any], str]
) -> Headline:
    """names: of the value and the ends of its interval in `scores`, which may lack them."""
    value, low, high = map(scores.get, names)
    interval = NONE if low is None else f"{form(low)} to {form(high)}"
    return Headline(subject, measure, "", form(value), interval, value, low, high)
