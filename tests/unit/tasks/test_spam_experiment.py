"""Caching the outputs of frozen blocks changes how long the experiment takes, and none of its metrics."""

import zipfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch.nn import Module

from scratchlm.data.messages import Messages, MessagesParams, load_messages, write_messages
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.fast import frozen_prefix
from scratchlm.fast.frozen_prefix import Texts
from scratchlm.formats.openai import load_openai
from scratchlm.model.classifier import Position
from scratchlm.model.gpt import GPTModel
from scratchlm.run.context import Run
from scratchlm.run.resume import Checkpoint
from scratchlm.tasks.settings import EvaluationParams
from scratchlm.tasks.spam import FinetuneSpamParams, SpamResult, finetune_spam

SAMPLE = Path(__file__).resolve().parents[3] / "data" / "sample"


@pytest.fixture
def both_ways(
    training_values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[SpamResult, SpamResult]]:
    """The experiment on two models with the same weights: frozen blocks cached, and run for every batch."""
    cached = []
    cache = Texts.cache_frozen_blocks
    monkeypatch.setattr(Texts, "cache_frozen_blocks", lambda *args: (cached.append(args), cache(*args)))

    def run(backbones: Sequence[GPTModel], messages: Messages, pad_token_id: int, **changes: Any) -> Any:
        values = training_values | {
            "base": "gpt2-nano", "pretrained": True, "trainable": "last_block", "padding": "longest", "dropout": 0.0,
            "lora": None, "class_weights": None,
        }  # fmt: skip
        params = FinetuneSpamParams(**values | changes)
        evaluation = EvaluationParams(context_length=8, batch_size=8, max_rows=40)
        found = []
        for backbone, n_bytes in zip(backbones, (1 << 30, 0), strict=True):
            monkeypatch.setattr(frozen_prefix, "CACHED_BYTES", n_bytes)
            found.append(finetune_spam(backbone, messages, pad_token_id, params, evaluation, Run(seed=7)))
            assert len(cached) == len(messages.splits)  # the first run's
        return tuple(found)

    return run


def assert_curves_are_near(fast: SpamResult, slow: SpamResult, rel: float, messages: int) -> None:
    """Losses to a relative `rel`; accuracies to one message of the `messages` that an evaluation looks at."""
    assert len(fast.training.curve) == len(slow.training.curve)
    first, last = fast.training.curve[0], fast.training.curve[-1]
    assert first["train_loss"] != pytest.approx(last["train_loss"], rel=rel)  # it has learned
    for mine, other in zip(fast.training.curve, slow.training.curve, strict=True):
        assert mine.keys() == other.keys()
        for name, value in other.items():
            near = {"abs": 1.01 / messages} if name.endswith("accuracy") else {"rel": rel}
            assert mine[name] == pytest.approx(value, **near), name


@pytest.mark.long
@pytest.mark.parametrize("position", get_args(Position))
def test_on_a_tiny_model_the_curve_and_all_probabilities_stay_the_same(
    tiny_gpt: Callable[..., GPTModel], both_ways: Any, position: Position
) -> None:
    source = np.random.default_rng(3)
    splits = {
        split: [
            {"label": i % 2, "token_ids": (source.integers(5, size=source.integers(1, 9)) + 5 * (i % 2)).tolist()}
            for i in range(n)
        ]
        for split, n in (("train", 24), ("val", 10), ("test", 10))
    }
    backbones = [tiny_gpt(n_layers=3) for _ in range(2)]
    fast, slow = both_ways(
        backbones, Messages(splits, ("ham", "spam")), 10, position=position, epochs=3.0, evaluate_every_steps=4
    )
    assert_curves_are_near(fast, slow, rel=1e-5, messages=10_000)  # not one message differs
    for split, expected in slow.probabilities.items():
        np.testing.assert_allclose(fast.probabilities[split], expected, rtol=1e-4)
    assert fast.metrics["padded_tokens"] == slow.metrics["padded_tokens"] == 8


@pytest.mark.parametrize("class_weights", [None, "balanced"])
def test_an_interrupted_training_of_three_classes_resumes_to_the_same_bits(
    tiny_gpt: Callable[..., GPTModel], training_values: dict[str, Any], tmp_path: Path, class_weights: str | None
) -> None:
    splits = {
        split: [{"label": i % 4 % 3, "token_ids": [(i + j) % 9 for j in range(1 + i % 6)]} for i in range(n)]
        for split, n in (("train", 24), ("val", 8), ("test", 8))
    }
    values = training_values | {
        "base": "gpt2-nano", "pretrained": True, "trainable": "all", "padding": "longest", "dropout": 0.2, "lora": None,
        "position": "mean", "class_weights": class_weights, "epochs": 2.0, "evaluate_every_steps": 2,
    }  # fmt: skip
    params, evaluation = FinetuneSpamParams(**values), EvaluationParams(context_length=8, batch_size=8, max_rows=40)

    def experiment(gpt: GPTModel, checkpoint: Checkpoint) -> SpamResult:
        run = Run(seed=7, checkpoint=checkpoint)
        return finetune_spam(gpt, Messages(splits, ("a", "b", "c")), 10, params, evaluation, run)

    expected = experiment(tiny_gpt(dropout=0.2), Checkpoint())
    interrupted, n_left = tiny_gpt(dropout=0.2), 4

    def interrupt(block: Module, *_: Any) -> None:
        nonlocal n_left
        n_left -= block.training
        if not n_left:
            raise KeyboardInterrupt

    interrupted.final_norm.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        experiment(interrupted, Checkpoint(tmp_path, "spam"))
    checkpoint = Checkpoint(tmp_path, "spam")
    resumed = experiment(tiny_gpt(dropout=0.2), checkpoint)
    assert checkpoint.position and checkpoint.position.startswith("step ")
    assert resumed.training.curve == expected.training.curve and resumed.metrics == expected.metrics
    for name, weight in expected.classifier.state_dict().items():
        assert torch.equal(resumed.classifier.state_dict()[name], weight), name
    for split, probabilities in expected.probabilities.items():
        np.testing.assert_array_equal(resumed.probabilities[split], probabilities)


@pytest.mark.slow
@pytest.mark.parametrize("position", get_args(Position))
def test_on_the_sample_the_losses_are_near_and_the_accuracies_within_one_message(
    both_ways: Any, tmp_path: Path, position: Position
) -> None:
    tokenizer = load_tokenizer(SAMPLE / "gpt2-nano")
    params = MessagesParams(
        reading="strict", labels=None, deduplicate="none", balance=True, train_fraction=0.7, val_fraction=0.1
    )
    write_messages(sms_collection(tmp_path), tokenizer, tmp_path / "messages", params, 123, print)
    messages = load_messages(tmp_path / "messages")
    backbone, _ = load_openai(SAMPLE / "gpt2-nano", "nano", tmp_path)
    fast, slow = both_ways(
        (backbone, deepcopy(backbone)), messages, tokenizer.end_token_id, position=position, epochs=2.0, batch_size=8,
        learning_rate=0.001, evaluate_every_steps=50,
    )  # fmt: skip
    assert_curves_are_near(fast, slow, rel=1e-3, messages=40)
    for split, rows in messages.splits.items():
        assert fast.metrics[split]["accuracy"] == pytest.approx(slow.metrics[split]["accuracy"], abs=1.01 / len(rows))
        assert fast.metrics[split]["loss"] == pytest.approx(slow.metrics[split]["loss"], rel=1e-3)


def sms_collection(folder: Path) -> Path:
    """The sample's messages, out of their archive."""
    with zipfile.ZipFile(SAMPLE / "sms+spam+collection.zip") as archive:
        return Path(archive.extract("SMSSpamCollection", folder))
