"""Predictions of a classifier, and the scores that say how good they are. Knows no model."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from scratchlm.arithmetic.portable import log
from scratchlm.data.messages import CLASSES
from scratchlm.run.errors import UserError
from scratchlm.tasks.intervals import paired_share_interval, share_interval

PREDICTION_SCHEMA = pa.schema(
    {"id": pa.string(), "label": pa.int8(), "predicted": pa.int8(), "probability": pa.float64(), "text": pa.string()}
)

TINY = float(np.finfo(float).eps)  # as in scikit-learn: a certain mistake costs 36 nats, not infinitely many
Rows = Sequence[Mapping[str, Any]]  # messages with id, label and text


def prediction_rows(rows: Rows, probabilities: np.ndarray) -> list[dict[str, Any]]:
    """One record per message, of PREDICTION_SCHEMA: what a paired comparison of two classifiers needs."""
    return [
        {field: row[field] for field in ("id", "label", "text")} | {"probability": float(p), "predicted": int(p > 0.5)}
        for row, p in zip(rows, probabilities, strict=True)
    ]


def accuracy_difference(first: Rows, second: Rows) -> dict[str, float]:
    """The accuracy of the first predictions less that of the second, of the same messages, with its 95 % interval."""
    right = {row["id"]: row["predicted"] == row["label"] for row in second}
    only_first = sum(row["predicted"] == row["label"] and not right[row["id"]] for row in first)
    only_second = sum(row["predicted"] != row["label"] and right[row["id"]] for row in first)
    low, high = paired_share_interval(only_first, only_second, len(right))
    return {"accuracy": (only_first - only_second) / len(right), "accuracy_low": low, "accuracy_high": high}


def confusion_rows(predictions: Rows) -> list[dict[str, str]]:
    """actual and predicted class of each message by name, for DVC's confusion plot."""
    return [{"actual": CLASSES[row["label"]], "predicted": CLASSES[row["predicted"]]} for row in predictions]


def classification_scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    """Scores at threshold 0.5, with class 1 as the positive one; loss in nats per text.

    labels, probabilities: (N,). AUROC is absent where only one class occurs: it is undefined.
    Raises UserError if a probability is not a number.
    """
    if not np.isfinite(probabilities).all():
        raise UserError(
            "the classifier's probabilities are no longer numbers; lower learning_rate, raise warmup_steps, or use "
            "precision float32"
        )
    predicted = probabilities > 0.5
    confusion = [int(((labels == label) & (predicted == given)).sum()) for label in (0, 1) for given in (0, 1)]
    tn, fp, fn, tp = confusion
    low, high = share_interval(tp + tn, len(labels))
    scores = {
        "accuracy": (tp + tn) / len(labels),
        "accuracy_low": low,
        "accuracy_high": high,
        "precision": tp / (tp + fp) if tp else 0.0,
        "recall": tp / (tp + fn) if tp else 0.0,
        "f1": 2 * tp / (2 * tp + fp + fn) if tp else 0.0,
        "loss": classification_loss(labels, probabilities),
        "confusion": dict(zip(("ham_as_ham", "ham_as_spam", "spam_as_ham", "spam_as_spam"), confusion, strict=True)),
    }
    if 0 < tp + fn < len(labels):
        scores["auroc"] = auroc(labels, probabilities)
    return scores


def classification_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean cross-entropy in nats per text, with each probability at least TINY away from 0 and 1."""
    given = np.where(labels == 1, probabilities, 1 - probabilities).clip(TINY, 1 - TINY)
    return -math.fsum(map(log, given.tolist())) / len(labels)


def auroc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The share of pairs of a positive and a negative where the positive has the higher probability; ties count half.

    A ratio of integers, of which both classes must occur. Source: Mann and Whitney 1947.
    """
    negatives, positives = np.sort(probabilities[labels == 0]), probabilities[labels == 1]
    halves = sum(int(negatives.searchsorted(positives, side).sum()) for side in ("left", "right"))
    return halves / (2 * len(positives) * len(negatives))
