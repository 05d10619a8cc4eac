from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from scratchlm.fast.frozen_prefix import Texts
from scratchlm.model.classifier import GPTClassifier
from scratchlm.model.gpt import GPTModel
from scratchlm.tasks.classification import (
    ClassifierEvaluation,
    class_probabilities,
    classification_scores,
)
from scratchlm.tasks.settings import EvaluationParams
from scratchlm.tasks.spam import padded_texts

Build = Callable[..., GPTModel]
PAD, CLASSES = 10, ("ham", "spam")


def message(number: int, label: int, token_ids: list[int]) -> dict[str, Any]:
    return {"id": f"sms-{number:05d}", "label": label, "text": f"text {number}", "token_ids": token_ids}


def texts_of(rows: list[dict[str, Any]]) -> Texts:
    return padded_texts([row["token_ids"] for row in rows], PAD, 8)


def evaluation_of(splits: dict[str, list[dict[str, Any]]]) -> ClassifierEvaluation:
    texts = {split: texts_of(rows) for split, rows in splits.items()}
    labels = {split: np.array([row["label"] for row in rows]) for split, rows in splits.items()}
    return ClassifierEvaluation(texts, labels, CLASSES, EvaluationParams(context_length=8, batch_size=2, max_rows=3))


def random_messages(n: int, seed: int) -> list[dict[str, Any]]:
    source = np.random.default_rng(seed)
    return [message(i, i % 2, source.integers(10, size=source.integers(1, 12)).tolist()) for i in range(n)]


@pytest.fixture
def classifier(tiny_gpt: Build) -> GPTClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return GPTClassifier(tiny_gpt(dropout=0.5), 2, "last_real")


def test_probabilities_are_each_texts_own_whatever_the_batch(classifier: GPTClassifier) -> None:
    messages = random_messages(9, seed=1)
    texts, everyone = texts_of(messages), np.arange(9)
    classifier.train()
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    found = class_probabilities(classifier, texts, everyone, batch_size=4)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert classifier.training
    assert found.shape == (9, 2) and found.dtype == np.float64
    for batch_size in (1, 9, 20):
        np.testing.assert_allclose(class_probabilities(classifier, texts, everyone, batch_size), found, atol=1e-6)
    classifier.eval()
    for message, probability in zip(messages, found, strict=True):
        cut = message["token_ids"][:8]
        with torch.no_grad():  # without padding: a causal model's last real position does not see it
            logits = classifier(torch.tensor([cut]), torch.tensor([len(cut)]))[0]
        ham, spam = logits.exp().tolist()
        assert probability.tolist() == pytest.approx([ham / (ham + spam), spam / (ham + spam)], abs=1e-6)
    assert class_probabilities(classifier, texts, everyone, 4).tolist() == found.tolist()
    some = np.array([7, 0, 3])
    np.testing.assert_allclose(class_probabilities(classifier, texts, some, 4), found[some], atol=1e-6)
    assert not classifier.training


def test_quick_figures_are_of_the_same_few_messages_of_train_and_val(classifier: GPTClassifier) -> None:
    splits = {name: random_messages(n, seed=n) for name, n in {"train": 11, "val": 5, "test": 4}.items()}
    evaluation = evaluation_of(splits)
    figures = evaluation.evaluate(classifier)
    assert figures == evaluation.evaluate(classifier)
    chosen = [splits["train"][i] for i in (0, 5, 10)]
    probabilities = class_probabilities(classifier, texts_of(chosen), np.arange(3), 2)
    expected = classification_scores(np.array([row["label"] for row in chosen]), probabilities, CLASSES)
    assert figures["train_loss"] == expected["loss"]
    assert figures["train_accuracy"] == expected["accuracy"]
    assert set(figures) == {"train_loss", "train_accuracy", "val_loss", "val_accuracy"}


def test_full_figures_are_of_every_message_of_every_split(classifier: GPTClassifier) -> None:
    splits = {name: random_messages(n, seed=n) for name, n in {"train": 11, "val": 5, "test": 4}.items()}
    evaluation = evaluation_of(splits)
    scores, probabilities = evaluation.full(classifier)
    assert {split: len(found) for split, found in probabilities.items()} == {"train": 11, "val": 5, "test": 4}
    for split, rows in splits.items():
        labels = np.array([row["label"] for row in rows])
        assert scores[split] == classification_scores(labels, probabilities[split], CLASSES)
