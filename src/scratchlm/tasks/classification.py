"""Classification: predictions, and the scores that say how good they are."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from scratchlm.arithmetic.functions import softmax
from scratchlm.data.messages import CLASSES
from scratchlm.fast.frozen_prefix import Texts
from scratchlm.model.classifier import GPTClassifier
from scratchlm.run.errors import UserError
from scratchlm.tasks.intervals import share_interval
from scratchlm.tasks.settings import EvaluationParams, evenly_spaced

PREDICTION_SCHEMA = pa.schema(
    {"id": pa.string(), "label": pa.int8(), "predicted": pa.int8(), "probability": pa.float64(), "text": pa.string()}
)

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
    import sklearn.metrics  # takes a second; preflight only reads parameters here

    predicted = (probabilities > 0.5).astype(int)
    (tn, fp), (fn, tp) = sklearn.metrics.confusion_matrix(labels, predicted, labels=[0, 1]).tolist()
    low, high = share_interval(tp + tn, len(labels))
    scores = {
        "accuracy": (tp + tn) / len(labels),
        "accuracy_low": low,
        "accuracy_high": high,
        "precision": sklearn.metrics.precision_score(labels, predicted, zero_division=0.0),
        "recall": sklearn.metrics.recall_score(labels, predicted, zero_division=0.0),
        "f1": sklearn.metrics.f1_score(labels, predicted, zero_division=0.0),
        "loss": sklearn.metrics.log_loss(labels, probabilities, labels=[0, 1]),
        "confusion": {"ham_as_ham": tn, "ham_as_spam": fp, "spam_as_ham": fn, "spam_as_spam": tp},
    }
    if len(set(labels.tolist())) == 2:
        scores["auroc"] = sklearn.metrics.roc_auc_score(labels, probabilities)
    return scores
