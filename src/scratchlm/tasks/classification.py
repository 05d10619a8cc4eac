"""Classification: predictions, and the scores that say how good they are."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from scratchlm.arithmetic.functions import softmax
from scratchlm.arithmetic.portable import log
from scratchlm.data.messages import CLASSES
from scratchlm.fast.frozen_prefix import Texts
from scratchlm.model.classifier import GPTClassifier
from scratchlm.run.errors import UserError
from scratchlm.tasks.intervals import share_interval
from scratchlm.tasks.settings import EvaluationParams, evenly_spaced

PREDICTION_SCHEMA = pa.schema(
    {"id": pa.string(), "label": pa.int8(), "predicted": pa.int8(), "probability": pa.float64(), "text": pa.string()}
)

TINY = float(np.finfo(float).eps)  # as in scikit-learn: a certain mistake costs 36 nats, not infinitely many
Rows = Sequence[Mapping[str, Any]]  # messages with id, label and text


class ClassifierEvaluation:
    """Scores of a classifier on the three splits."""

    def __init__(self, texts: Mapping[str, Texts], labels: Mapping[str, np.ndarray], params: EvaluationParams) -> None:
        self._texts, self._labels, self._params = texts, labels, params

    def evaluate(self, model: GPTClassifier) -> dict[str, float]:
        """Loss and accuracy on at most max_rows of train and of val: the same messages at each call."""
        metrics: dict[str, float] = {}
        for split in ("train", "val"):
            chosen = evenly_spaced(len(self._texts[split]), self._params.max_rows)
            probabilities = spam_probabilities(model, self._texts[split], chosen, self._params.batch_size)
            scores = classification_scores(self._labels[split][chosen], probabilities)
            metrics |= {f"{split}_loss": scores["loss"], f"{split}_accuracy": scores["accuracy"]}
        return metrics

    def full(self, model: GPTClassifier) -> tuple[dict[str, dict[str, Any]], dict[str, np.ndarray]]:
        """Scores and probabilities of every message of every split."""
        probabilities = {
            split: spam_probabilities(model, texts, np.arange(len(texts)), self._params.batch_size)
            for split, texts in self._texts.items()
        }
        scores = {split: classification_scores(self._labels[split], found) for split, found in probabilities.items()}
        return scores, probabilities


def prediction_rows(rows: Rows, probabilities: np.ndarray) -> list[dict[str, Any]]:
    """One record per message, of PREDICTION_SCHEMA: what a paired comparison of two classifiers needs."""
    return [
        {field: row[field] for field in ("id", "label", "text")} | {"probability": float(p), "predicted": int(p > 0.5)}
        for row, p in zip(rows, probabilities, strict=True)
    ]


def confusion_rows(predictions: Rows) -> list[dict[str, str]]:
    """actual and predicted class of each message by name, for DVC's confusion plot."""
    return [{"actual": CLASSES[row["label"]], "predicted": CLASSES[row["predicted"]]} for row in predictions]


@torch.no_grad()
def spam_probabilities(model: GPTClassifier, texts: Texts, indices: np.ndarray, batch_size: int) -> np.ndarray:
    """The probability of class 1 for some of the texts, in their order: (N,) float64."""
    device = model.trunk.token_embedding.weight.device
    was_training = model.training
    model.eval()
    found = []
    for start in range(0, len(indices), batch_size):
        inputs, lengths = texts.batch(indices[start : start + batch_size].tolist())
        logits = texts.class_logits(model, inputs.to(device), lengths.to(device))
        found.append(softmax(logits.cpu().double())[:, 1].numpy())
    model.train(was_training)
    return np.concatenate(found)


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
