"""Classifiers in transformers: the classes and probabilities of ours."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from scratchlm.data.byte_pairs import BytePairTokenizer
from scratchlm.formats.classifier import ClassifierSettings
from scratchlm.formats.huggingface_classifier import save_huggingface_classifier
from scratchlm.model.classifier import GPTClassifier, Position
from scratchlm.model.gpt import GPTModel
from scratchlm.run.errors import UserError
from scratchlm.tasks.classification import class_probabilities
from scratchlm.tasks.spam import padded_texts
from tests.perturbed import perturbed

Build = Callable[..., GPTModel]
TEXTS = [
    "Congratulations, you have won", "", "See you at noon", "a", "Call now to claim your prize, before noon! " * 3,
]  # fmt: skip
WIDTH = 24  # tokens; the last text is longer


@pytest.fixture
def build(tiny_gpt: Build, gpt2: BytePairTokenizer) -> Callable[..., GPTClassifier]:
    def made(position: Position, n_classes: int = 3, **changes: object) -> GPTClassifier:
        size = {"vocab_size": gpt2.vocab_size, "context_length": 32, "n_heads": 4, "emb_dim": 32}
        return perturbed(GPTClassifier(tiny_gpt(**size | changes), n_classes, position), 0.3).eval()

    return made


def settings(n_classes: int, position: Position) -> ClassifierSettings:
    names = ["ham", "spam", "news & views", *map(str, range(3, n_classes))][:n_classes]
    return ClassifierSettings(classes=names, position=position, padded_tokens=WIDTH)


@pytest.mark.parametrize(("position", "n_classes"), [("last_real", 2), ("last_real", 30), ("last", 3)])
def test_transformers_gives_our_probabilities(
    position: Position, n_classes: int, build: Callable[..., GPTClassifier], gpt2: BytePairTokenizer, tmp_path: Path
) -> None:
    ours, given = build(position, n_classes), settings(n_classes, position)
    save_huggingface_classifier(tmp_path / "out", ours, given, gpt2, "A card.\n")
    texts = padded_texts([gpt2.encode(text) for text in TEXTS], gpt2.end_token_id, WIDTH)
    expected = class_probabilities(ours, texts, np.arange(len(TEXTS)), 8)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        logits = model(**tokenizer(TEXTS, padding="max_length", truncation=True, return_tensors="pt")).logits
        if position == "last_real":  # then any padding will do
            alone = model(**tokenizer(TEXTS[:1], truncation=True, return_tensors="pt")).logits
            torch.testing.assert_close(alone, logits[:1], atol=1e-4, rtol=0)
    found = logits.double().softmax(-1).numpy()
    assert expected.std(axis=0).min() > 10 * 1e-5
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (found.argmax(1) == expected.argmax(1)).all()
    assert model.config.id2label == dict(enumerate(given.classes))
    assert model.config.label2id == {name: i for i, name in enumerate(given.classes)}
    assert model.config.problem_type == "single_label_classification"
    assert (tmp_path / "out" / "README.md").read_text() == "A card.\n"


def test_classifiers_that_transformers_does_not_have_are_refused(
    build: Callable[..., GPTClassifier], gpt2: BytePairTokenizer, tmp_path: Path
) -> None:
    llama = {"position": "rope", "norm": "rms", "feed_forward": "swiglu", "qkv_bias": False, "bias": False}

    def refusal(model: GPTClassifier) -> str:
        given = settings(model.head.out_features, model.position)
        with pytest.raises(UserError) as refused:
            save_huggingface_classifier(tmp_path / "out", model, given, gpt2, "")
        assert not (tmp_path / "out").exists()
        return str(refused.value)

    assert "finetune_spam.position is mean, but transformers' classifiers read the last token" in refusal(build("mean"))
    assert "finetune_spam.position is first" in refusal(build("first"))
    classifier = build("last_real")
    classifier.backbone.config = classifier.backbone.config.model_copy(update=llama)
    assert "a model built like Llama has none that could take its place" in refusal(classifier)
    assert refusal(build("last_real", 40)).startswith("the biases of these 40 classes cannot become part of the last")
