"""Classifiers and variants of a training, compared with the original."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from scratchlm.arithmetic.portable import log
from scratchlm.model.config import ModelParams
from scratchlm.report.answers import paired_change
from scratchlm.report.inputs import VARIED, Report, Rows
from scratchlm.report.tables import format_parameter
from scratchlm.run.nested import flattened
from scratchlm.tasks.bootstrap import Ratio
from scratchlm.tasks.scores import TINY, accuracy_difference


def mistakes(predictions: Rows) -> list[dict[str, Any]]:
    """Return misclassified messages with the probability of the predicted class, the most confident ones first."""
    wrong = [
        {**row, "confidence": dict(row["probabilities"])[row["predicted"]]}
        for row in predictions
        if row["label"] != row["predicted"]
    ]
    return sorted(wrong, key=lambda row: (-row["confidence"], row["id"]))


def most_frequent(predictions: Rows) -> tuple[str, float]:
    """Return the class that most messages have, the first of equals, and their proportion."""
    name, count = Counter(row["label"] for row in predictions).most_common(1)[0]
    return name, count / len(predictions)


def margins(predictions: Rows) -> list[float]:
    """Return for each message the log odds of its actual class, of two classes."""
    shares = [min(max(dict(row["probabilities"])[row["label"]], TINY), 1 - TINY) for row in predictions]
    return [log(share) - log(1 - share) for share in shares]


def roc_points(predictions: Rows, positive: str) -> list[tuple[float, float]]:
    """Return false-positive and true-positive rate for each threshold of the positive class' probability.

    Both classes must occur. Source: Fawcett 2006, algorithm 1.
    """
    by_score: dict[float, list[int]] = {}
    for row in predictions:
        counts = by_score.setdefault(dict(row["probabilities"])[positive], [0, 0])
        counts[row["label"] == positive] += 1
    points, found = [(0, 0)], [0, 0]
    for _, counts in sorted(by_score.items(), reverse=True):
        found = [found[0] + counts[0], found[1] + counts[1]]
        points.append((found[0], found[1]))
    return [(false / found[0], true / found[1]) for false, true in points]


def without_confusions(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return a classifier's metrics without its confusions, which are in the chart, if there are many."""
    return {
        key: {name: found for name, found in value.items() if name != "confusion"} if _has_many(value) else value
        for key, value in metrics.items()
    }


def _has_many(scores: Any) -> bool:
    return isinstance(scores, Mapping) and len(scores.get("confusion", ())) > 4  # of two classes


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

    Each window is paired with itself in the original: what makes a window hard is in both losses.
    """
    rows = variants(report, "ablate_pretrain", "pretrain")
    means = [Ratio(_column(losses, "loss_nats"), _column(losses, "scored_tokens")) for losses in report.losses]
    for row, losses in zip(rows[1:], means[1:], strict=True):
        row |= paired_change(means[0], losses)
    for row in rows[:1]:
        config = ModelParams(**report.params["model"]).config(vocab_size=1)
        row["kv_cache_bytes_per_token"] = config.kv_cache_bytes_per_token
    return rows


def _column(rows: Rows, name: str) -> np.ndarray:
    return np.array([row[name] for row in rows], dtype=float)
