"""The results in a few lines: what each model is like, and what it was like before training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from scratchlm.report.tables import NONE, figure, percent
from scratchlm.run.files import read_json
from scratchlm.run.params import load_yaml

STAGES = ("pretrain", "finetune_spam", "finetune_instruct", "judge")


class Headline(NamedTuple):
    """One line of the result table, as texts. start: before training, where there is such a figure."""

    subject: str
    measure: str
    start: str
    result: str
    interval: str = ""


def read_headline(params: Path, metrics: Path) -> list[Headline]:
    """The lines of what was built last. Raises UserError naming a file that is missing or broken."""
    loaded = {
        f"gpt2-{size}": read_json(metrics / "load_gpt2" / f"{size}.json") for size in load_yaml(params)["gpt2_sizes"]
    }
    return headline({stage: read_json(metrics / f"{stage}.json") for stage in STAGES}, loaded)


def headline(metrics: Mapping[str, Any], loaded: Mapping[str, Any]) -> list[Headline]:
    """metrics: by stage, those of STAGES. loaded: by name of a loaded model."""
    pretrain, spam = metrics["pretrain"], metrics["finetune_spam"]["test"]
    instruct, judge = metrics["finetune_instruct"], metrics["judge"]
    before, after = judge.get("before", {}), judge["after"]
    val_loss = "val loss, nats per token"
    start, result = figure(pretrain["untrained_val_loss"]), figure(pretrain["val"]["loss"])
    lines = [
        Headline("pretrain", val_loss, start, result),
        Headline("pretrain", "val perplexity", "", figure(pretrain["val"]["perplexity"])),
        Headline("pretrain", "val bits per byte", "", figure(pretrain["val"]["bits_per_byte"])),
    ]
    lines += [Headline(name, val_loss, "", figure(scores["val"]["loss"])) for name, scores in loaded.items()]
    interval = f"{percent(spam['accuracy_low'])} to {percent(spam['accuracy_high'])}"
    lines += [
        Headline("finetune_spam", "test accuracy", "", percent(spam["accuracy"]), interval),
        Headline("finetune_spam", "test F1", "", figure(spam["f1"])),
        Headline("finetune_spam", "test AUROC", "", figure(spam.get("auroc"))),
    ]
    start, result = (figure(instruct[when]["val_loss"]) for when in ("before", "after"))
    lines.append(Headline("finetune_instruct", "val loss, nats per response token", start, result))
    start = figure(before.get("mean_score")) if before else ""
    if "mean_score" in before:
        start += f" ({_mean_interval(before)})"
    result = figure(after.get("mean_score"))
    lines.append(Headline("judge", "mean score of 0 to 100", start, result, _mean_interval(after)))
    return lines


def _mean_interval(scores: Mapping[str, Any]) -> str:
    return f"{figure(scores['mean_low'])} to {figure(scores['mean_high'])}" if "mean_low" in scores else NONE
