"""Finetuning a GPT into a spam classifier: the experiment and its ablations. The book's chapter 6."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from scratchlm.arithmetic.functions import cross_entropy
from scratchlm.arithmetic.random import drawing_from, stream
from scratchlm.data.messages import CLASSES, pad
from scratchlm.fast.frozen_prefix import Texts, worth_caching
from scratchlm.model.classifier import GPTClassifier, Position, Trainable, freeze
from scratchlm.model.config import Probability
from scratchlm.model.gpt import GPTModel, build_model, parameter_count
from scratchlm.model.lora import LoRAParams, adapter_state, apply_lora, merge_lora
from scratchlm.run.context import Run
from scratchlm.run.errors import UserError
from scratchlm.run.params import with_changes
from scratchlm.tasks.classification import ClassifierEvaluation
from scratchlm.tasks.settings import EvaluationParams
from scratchlm.training.loop import Batch, Task, train
from scratchlm.training.optimizer import TrainingParams

Messages = Mapping[str, Sequence[Mapping[str, Any]]]  # split -> rows of MESSAGE_SCHEMA


class FinetuneSpamParams(TrainingParams):
    """base: a folder of data/models; pretrained false draws weights of its shape at random instead.

    padding: to the longest training message, or to a number of tokens.
    With `lora`, its matrices train instead of what `trainable` names; the head trains in any case,
    except under lora.layers `all`, where it too is frozen beside its matrices (as in the book).
    """

    base: Annotated[str, Field(min_length=1)]
    pretrained: bool
    trainable: Trainable
    position: Position
    padding: Literal["longest"] | Annotated[int, Field(ge=1)]
    dropout: Probability
    lora: LoRAParams | None


SpamAblations = dict[str, dict[str, Any]]  # by variant, what differs from finetune_spam


class SpamResult(NamedTuple):
    """The trained classifier with plain weights, its LoRA matrices if it had any, and what was measured.

    metrics: by split, and two sizes. probabilities: of spam, (N,) float64 by split.
    """

    classifier: GPTClassifier
    adapter: dict[str, Tensor]
    curve: list[dict[str, float]]
    metrics: dict[str, Any]
    probabilities: dict[str, np.ndarray]


def finetune_spam(
    backbone: GPTModel, messages: Messages, pad_token_id: int, params: FinetuneSpamParams,
    evaluation_params: EvaluationParams, run: Run,
) -> SpamResult:  # fmt: skip
    """Finetune `backbone` on the train split and measure all three."""
    token_ids = {split: [row["token_ids"] for row in rows] for split, rows in messages.items()}
    labels = {split: np.array([row["label"] for row in rows]) for split, rows in messages.items()}
    width = padded_width(params.padding, token_ids["train"], backbone.config.context_length)
    if n_cut := sum(len(message) > width for message in token_ids["train"]):
        run.say(f"{n_cut} of {len(token_ids['train'])} training messages are cut at {width} tokens")
    texts = {split: padded_texts(found, pad_token_id, width) for split, found in token_ids.items()}
    classifier = build_spam_classifier(backbone, params, run.seed).to(run.device)
    if worth_caching(classifier, texts.values()):
        with run.autocast(), run.progress(len(texts), 0, "split", "finetune_spam frozen blocks") as bar:
            for found in texts.values():
                found.cache_frozen_blocks(classifier, evaluation_params.batch_size)
                bar.update()
    evaluation = ClassifierEvaluation(texts, labels, evaluation_params)
    sizes = {"padded_tokens": width, "trainable_parameters": parameter_count(classifier, trainable_only=True)}
    training = train(classifier, spam_task(texts["train"], labels["train"], params, evaluation), run)
    adapter = adapter_state(classifier)
    merge_lora(classifier)
    with run.autocast():
        metrics, probabilities = evaluation.full(classifier)
    return SpamResult(classifier, adapter, training.curve, metrics | sizes, probabilities)


def varied(params: FinetuneSpamParams, ablations: SpamAblations, variant: str) -> FinetuneSpamParams:
    """The parameters of one variant. Raises UserError naming the key if its changes are not valid."""
    changes = ablations[variant]
    if "base" in changes:
        raise UserError(f"spam_ablations.{variant}: base cannot vary, the graph is wired by it; set finetune_spam.base")
    return with_changes(params, changes, f"spam_ablations.{variant}")


def build_spam_classifier(backbone: GPTModel, params: FinetuneSpamParams, seed: int) -> GPTClassifier:
    """A classifier with a fresh head on `backbone`, with only what `params` names left to train."""
    if not params.pretrained:
        backbone = build_model(backbone.config, stream(seed, "initialisation"))
    with drawing_from(stream(seed, "classification head")):
        classifier = GPTClassifier(backbone, len(CLASSES), params.position)
    if params.lora is None:
        freeze(classifier, params.trainable)
    else:
        apply_lora(classifier, params.lora, stream(seed, "lora"))
        if params.lora.layers != "all":
            classifier.head.requires_grad_(True)
    return classifier


def padded_width(padding: int | str, train: Sequence[Sequence[int]], context_length: int) -> int:
    """Tokens that every message is cut or padded to."""
    return min(context_length, max(map(len, train)) if isinstance(padding, str) else padding)


def padded_texts(token_ids: Sequence[Sequence[int]], pad_token_id: int, width: int) -> Texts:
    """Messages as a classifier takes them, cut and padded to `width` tokens."""
    padded, lengths = pad(token_ids, pad_token_id, width)
    return Texts(torch.from_numpy(padded), torch.from_numpy(lengths))


def spam_task(texts: Texts, labels: np.ndarray, params: TrainingParams, evaluation: ClassifierEvaluation) -> Task:
    """The loop's task for messages and their classes, one each."""
    classes = torch.from_numpy(labels)

    def batch(indices: np.ndarray) -> Batch:
        return Batch((*texts.batch(indices.tolist()), classes[indices]), len(indices))

    def loss(model: GPTClassifier, inputs: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(texts.class_logits(model, inputs, lengths), labels, "sum")  # in nats

    task = Task("finetune_spam", params, len(texts), batch, loss, evaluation.evaluate)
    return task if texts.are_cached else task._replace(static_loss=static_class_loss)


def static_class_loss(model: GPTClassifier, token_ids: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
    """The summed loss in nats with the padding computed, for torch's compiler: (B, T), (B,), (B,) -> scalar."""
    return cross_entropy(model(token_ids, lengths), labels, "sum")
