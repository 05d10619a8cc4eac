"""A classifier on the messages of the three splits: its probabilities, and their scores."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from scratchlm.arithmetic.functions import softmax
from scratchlm.fast.frozen_prefix import Texts
from scratchlm.model.classifier import GPTClassifier
from scratchlm.tasks.scores import classification_scores, complementary
from scratchlm.tasks.settings import EvaluationParams, evenly_spaced
from scratchlm.training.evaluation import in_batches


class ClassifierEvaluation:
    """Scores of a classifier on the three splits. classes: their names."""

    def __init__(
        self, texts: Mapping[str, Texts], labels: Mapping[str, np.ndarray], classes: Sequence[str],
        params: EvaluationParams,
    ) -> None:  # fmt: skip
        self._texts, self._labels, self._classes, self._params = texts, labels, classes, params

    def evaluate(self, model: GPTClassifier) -> dict[str, float]:
        """Loss and accuracy on at most max_rows of train and of val: the same messages at each call."""
        metrics: dict[str, float] = {}
        for split in ("train", "val"):
            scores, _ = self._measure(model, split, self._params.max_rows)
            metrics |= {f"{split}_loss": scores["loss"], f"{split}_accuracy": scores["accuracy"]}
        return metrics

    def full(self, model: GPTClassifier) -> tuple[dict[str, dict[str, Any]], dict[str, np.ndarray]]:
        """Scores and probabilities of every message of every split."""
        measured = {split: self._measure(model, split, len(texts)) for split, texts in self._texts.items()}
        scores = {split: found for split, (found, _) in measured.items()}
        return scores, {split: found for split, (_, found) in measured.items()}

    def _measure(self, model: GPTClassifier, split: str, at_most: int) -> tuple[dict[str, Any], np.ndarray]:
        chosen = evenly_spaced(len(self._texts[split]), at_most)
        probabilities = class_probabilities(model, self._texts[split], chosen, self._params.batch_size)
        return classification_scores(self._labels[split][chosen], probabilities, self._classes), probabilities


def class_probabilities(model: GPTClassifier, texts: Texts, indices: np.ndarray, batch_size: int) -> np.ndarray:
    """The probability of each class for some of the texts, in their order: (N, K) float64."""

    def probabilities(some: np.ndarray) -> tuple[Tensor]:
        return (softmax(texts.evaluated(model, some.tolist()).double()),)

    (found,) = in_batches(model, probabilities, indices, batch_size)
    return complementary(found.numpy())
