"""Predictions of a classifier, and the scores that say how good they are."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from scratchlm.arithmetic.portable import log
from scratchlm.run.errors import UserError
from scratchlm.tasks.intervals import paired_share_interval, share_interval

PREDICTION_SCHEMA = pa.schema(
    {  # classes by name; probabilities has all of them, in their order
        "id": pa.string(), "label": pa.string(), "predicted": pa.string(),
        "probabilities": pa.map_(pa.string(), pa.float64()), "text": pa.string(),
    }
)  # fmt: skip

TINY = float(np.finfo(float).eps)  # as in scikit-learn: a certain mistake costs 36 nats, not infinitely many
MOST_COUNTED = 32  # classes whose confusions are metrics, of which there are as many as its square
Rows = Sequence[Mapping[str, Any]]  # messages with id, label and text


def prediction_rows(rows: Rows, probabilities: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """One record per message, of PREDICTION_SCHEMA: what a paired comparison of two classifiers needs.

    probabilities: (N, K), of each class.
    """
    return [
        {
            "id": row["id"],
            "label": classes[row["label"]],
            "predicted": classes[found.argmax()],
            "probabilities": dict(zip(classes, found.tolist(), strict=True)),
            "text": row["text"],
        }
        for row, found in zip(rows, probabilities, strict=True)
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
    return [{"actual": row["label"], "predicted": row["predicted"]} for row in predictions]


def complementary(probabilities: np.ndarray) -> np.ndarray:
    """Let the first of two probabilities be 1 less the second, so that both add up to 1: (N, K) -> (N, K)."""
    if probabilities.shape[1] == 2:
        probabilities[:, 0] = 1 - probabilities[:, 1]
    return probabilities


def classification_scores(labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Scores of the most probable class, the first of equals; loss in nats per text.

    labels: (N,) indices of classes. probabilities: (N, K). Precision, recall and F1 are those of the second of two
    classes; of more, those of each class that occurs, and their means (macro). AUROC is that of the second of two
    classes, and is absent where only one occurs: it is undefined.
    Raises UserError if a probability is not a number.
    """
    if not np.isfinite(probabilities).all():
        raise UserError(
            "the classifier's probabilities are no longer numbers; lower learning_rate, raise warmup_steps, or use "
            "precision float32"
        )
    n, n_classes = probabilities.shape
    counts = np.zeros((n_classes, n_classes), dtype=np.int64)  # by label and predicted class
    np.add.at(counts, (labels, probabilities.argmax(axis=1)), 1)
    n_right = int(counts.trace())
    low, high = share_interval(n_right, n)
    scores = {"accuracy": n_right / n, "accuracy_low": low, "accuracy_high": high}
    if n_classes == 2:
        scores |= _class_scores(counts, 1)
    else:
        of_class = {name: _class_scores(counts, i) for i, name in enumerate(classes) if counts[i].any()}
        for name in ("precision", "recall", "f1"):
            scores[f"macro_{name}"] = math.fsum(found[name] for found in of_class.values()) / len(of_class)
        scores["classes"] = of_class
    scores["loss"] = classification_loss(labels, probabilities)
    if n_classes <= MOST_COUNTED:
        pairs = [f"{actual}_as_{predicted}" for actual in classes for predicted in classes]
        scores["confusion"] = dict(zip(pairs, counts.ravel().tolist(), strict=True))
    if n_classes == 2 and counts.any(axis=1).all():
        scores["auroc"] = auroc(labels, probabilities[:, 1])
    return scores


def _class_scores(counts: np.ndarray, label: int) -> dict[str, float]:
    """Precision, recall and F1 of one class; 0 where they are 0/0. counts: (K, K) by label and predicted class."""
    found, n_called, n_real = int(counts[label, label]), int(counts[:, label].sum()), int(counts[label].sum())
    return {
        "precision": found / n_called if found else 0.0,
        "recall": found / n_real if found else 0.0,
        "f1": 2 * found / (n_called + n_real) if found else 0.0,
    }


def classification_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean cross-entropy in nats per text, with each probability at least TINY away from 0 and 1."""
    given = probabilities[np.arange(len(labels)), labels].clip(TINY, 1 - TINY)
    return -math.fsum(map(log, given.tolist())) / len(labels)


def auroc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The share of pairs of a positive and a negative where the positive has the higher probability; ties count half.

    A ratio of integers, of which both classes must occur. Source: Mann and Whitney 1947.
    """
    negatives, positives = np.sort(probabilities[labels == 0]), probabilities[labels == 1]
    halves = sum(int(negatives.searchsorted(positives, side).sum()) for side in ("left", "right"))
    return halves / (2 * len(positives) * len(negatives))
