"""Classifiers in transformers: the classes and probabilities of ours."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from scratchlm.data.byte_pairs import BytePairTokenizer
from scratchlm.formats.classifier import ClassifierSettings
from scratchlm.formats.huggingface_classifier import load_huggingface_classifier, save_huggingface_classifier
from scratchlm.model.classifier import GPTClassifier, Position
from scratchlm.model.gpt import GPTModel
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_json, write_json
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
    assert expected.std(axis=0).mean() > 100 * 1e-5  # of 30 classes, some are improbable for all texts
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (found.argmax(1) == expected.argmax(1)).all()
    assert model.config.id2label == dict(enumerate(given.classes))
    assert model.config.label2id == {name: i for i, name in enumerate(given.classes)}
    assert model.config.problem_type == "single_label_classification"
    assert (tmp_path / "out" / "README.md").read_text() == "A card.\n"


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        (
            "id2label",
            {"0": "ham"},
            "config.json: id2label does not name 2 classes, as many as the rows of score.weight",
        ),
        ("id2label", ["ham", "spam"], "config.json: id2label does not name 2 classes"),
        (
            "id2label",
            {"0": "a", "1": "a"},
            r"2 classes of different names and at most 32 tokens, not \['a', 'a'\] and 24",
        ),
        ("id2label", {"0": 0, "1": 1}, "config.json: not settings of a classifier .classes 0: Input should be a valid"),
        ("problem_type", "regression", "problem_type is 'regression'; only single_label_classification can be read"),
        ("score.weight", None, "out: it has no matrix of floats score.weight"),
        ("score.weight", torch.ones(2), "out: it has no matrix of floats score.weight"),
        ("score.weight", torch.ones(2, 5), r"out: tensor head.weight has shape \(2, 5\)"),
        ("score.weight", torch.full((2, 32), torch.inf), "out: tensor head.weight holds NaN or infinite numbers"),
    ],
)
def test_a_damaged_folder_of_a_classifier_is_named(
    key: str, value: object, sentence: str, build: Callable[..., GPTClassifier], gpt2: BytePairTokenizer,
    tmp_path: Path,
) -> None:  # fmt: skip
    folder = tmp_path / "out"
    save_huggingface_classifier(folder, build("last"), settings(3, "last"), gpt2, "A card.\n")
    assert load_huggingface_classifier(folder, gpt2.vocab_size, None)[1] == settings(3, "last")
    shutil.rmtree(folder)
    save_huggingface_classifier(folder, build("last", 2), settings(2, "last"), gpt2, "A card.\n")
    if key == "score.weight":
        tensors = load_file(folder / "model.safetensors") | {key: value}
        save_file(
            {name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / "model.safetensors"
        )
    else:
        write_json(folder / "config.json", read_json(folder / "config.json") | {key: value})
    with pytest.raises(UserError, match=sentence):
        load_huggingface_classifier(folder, gpt2.vocab_size, None)


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
