"""Finetuning a GPT into a classifier, such as of spam: the experiment and its ablations. The book's chapter 6."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from scratchlm.arithmetic.functions import cross_entropy, total
from scratchlm.arithmetic.mode import uses_cuda_graphs
from scratchlm.arithmetic.random import drawing_from, stream
from scratchlm.data.messages import Messages, pad
from scratchlm.fast.frozen_prefix import PaddedTexts, Texts, worth_caching
from scratchlm.model.classifier import GPTClassifier, Position, Trainable, freeze
from scratchlm.model.config import Probability
from scratchlm.model.gpt import GPTModel, build_model, parameter_count
from scratchlm.model.lora import LoRAParams, apply_lora, merge_lora
from scratchlm.run.context import Run
from scratchlm.run.errors import UserError
from scratchlm.run.params import Runs, with_changes
from scratchlm.tasks.classification import ClassifierEvaluation
from scratchlm.tasks.settings import EvaluationParams
from scratchlm.training.loop import Batch, Task, Training, train
from scratchlm.training.optimizer import TrainingParams


class FinetuneSpamParams(TrainingParams):
    """base: a folder of data/models; pretrained false draws weights of its shape at random instead.

    padding: to the longest training message, or to a number of tokens.
    With `lora`, its matrices train instead of what `trainable` names; the head trains in any case,
    except under lora.layers `all`, where it too is frozen beside its matrices (as in the book).
    class_weights: `balanced` weighs the loss of a message in training by the inverse of how frequent its class is.
    """

    base: Annotated[str, Field(min_length=1)]
    pretrained: bool
    trainable: Trainable
    position: Position
    padding: Literal["longest"] | Annotated[int, Field(ge=1)]
    dropout: Probability
    lora: LoRAParams | None
    class_weights: Literal["balanced"] | None


class SpamResult(NamedTuple):
    """The trained classifier with plain weights, its LoRA matrices if it had any, and what was measured.

    metrics: by split, and two sizes. probabilities: of each class, (N, K) float64 by split.
    """

    classifier: GPTClassifier
    adapter: dict[str, Tensor]
    training: Training
    metrics: dict[str, Any]
    probabilities: dict[str, np.ndarray]


def finetune_spam(
    backbone: GPTModel, messages: Messages, pad_token_id: int, params: FinetuneSpamParams,
    evaluation_params: EvaluationParams, run: Run,
) -> SpamResult:  # fmt: skip
    """Finetune `backbone` on the train split and measure all three."""
    token_ids = {split: [row["token_ids"] for row in rows] for split, rows in messages.splits.items()}
    labels = {split: np.array([row["label"] for row in rows]) for split, rows in messages.splits.items()}
    width = padded_width(params.padding, token_ids["train"], backbone.config.context_length)
    if n_cut := sum(len(message) > width for message in token_ids["train"]):
        run.say(f"{n_cut} of {len(token_ids['train'])} training messages are cut at {width} tokens")
    texts = {split: padded_texts(found, pad_token_id, width) for split, found in token_ids.items()}
    n_classes = len(messages.classes)
    classifier = build_spam_classifier(backbone, n_classes, params, run.seed).to(run.device)
    if worth_caching(classifier, texts.values()):
        with run.autocast(), run.progress(len(texts), 0, "split", "frozen blocks") as bar:
            for found in texts.values():
                found.cache_frozen_blocks(classifier, evaluation_params.batch_size)
                bar.update()
    evaluation = ClassifierEvaluation(texts, labels, messages.classes, evaluation_params)
    sizes = {"padded_tokens": width, "trainable_parameters": parameter_count(classifier, trainable_only=True)}
    weights = balanced_weights(labels["train"], n_classes) if params.class_weights else None
    training = train(classifier, spam_task(texts["train"], labels["train"], params, evaluation, weights), run)
    adapter = merge_lora(classifier)
    with run.autocast():
        metrics, probabilities = evaluation.full(classifier)
    return SpamResult(classifier, adapter, training, metrics | sizes, probabilities)


def varied(params: FinetuneSpamParams, ablations: Runs, variant: str) -> FinetuneSpamParams:
    """The parameters of one variant. Raises UserError naming the key if its changes are not valid."""
    if "base" in ablations[variant]:
        raise UserError(f"spam_ablations.{variant}: base cannot vary, the graph is wired by it; set finetune_spam.base")
    return with_changes(params, ablations, "spam_ablations", variant)


def build_spam_classifier(backbone: GPTModel, n_classes: int, params: FinetuneSpamParams, seed: int) -> GPTClassifier:
    """A classifier with a fresh head on `backbone`, with only what `params` names left to train."""
    if not params.pretrained:
        backbone = build_model(backbone.config, stream(seed, "initialisation"))
    with drawing_from(stream(seed, "classification head")):
        classifier = GPTClassifier(backbone, n_classes, params.position)
    if params.lora is None:
        freeze(classifier, params.trainable)
    else:
        apply_lora(classifier, params.lora, seed, classifier.head)
    return classifier


def padded_width(padding: int | str, train: Sequence[Sequence[int]], context_length: int) -> int:
    """Tokens that every message is cut or padded to."""
    return min(context_length, max(map(len, train)) if isinstance(padding, str) else padding)


def padded_texts(token_ids: Sequence[Sequence[int]], pad_token_id: int, width: int) -> Texts:
    """Messages as a classifier takes them, cut and padded to `width` tokens."""
    padded, lengths = pad(token_ids, pad_token_id, width)
    kind = PaddedTexts if uses_cuda_graphs() else Texts
    return kind(torch.from_numpy(padded), torch.from_numpy(lengths))


def balanced_weights(labels: np.ndarray, n_classes: int) -> Tensor:
    """The weight of each text, inverse to the frequency of its class: their mean is 1. (N,) -> (N,) float32.

    Every class must occur. Source: King and Zeng 2001; scikit-learn's class_weight "balanced".
    """
    counts = np.bincount(labels, minlength=n_classes)
    return torch.from_numpy(len(labels) / (n_classes * counts)).float()[labels]


def spam_task(
    texts: Texts, labels: np.ndarray, params: TrainingParams, evaluation: ClassifierEvaluation,
    weights: Tensor | None = None,
) -> Task:  # fmt: skip
    """The loop's task for messages and their classes, one each. weights: (N,) of their losses; None: all 1."""
    given = [torch.from_numpy(labels), *([] if weights is None else [weights])]

    def batch(indices: np.ndarray) -> Batch:
        return Batch((*texts.batch(indices.tolist()), *(column[indices] for column in given)), len(indices))

    def loss(
        model: GPTClassifier, inputs: Tensor, lengths: Tensor, labels: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        return class_loss(texts.class_logits(model, inputs, lengths), labels, weights)

    task = Task("finetune_spam", params, len(texts), batch, loss, evaluation.evaluate, scored="texts")
    if not texts.are_cached:
        return task._replace(static_loss=static_class_loss)
    return task._replace(static_loss=loss, is_compiled=False) if isinstance(texts, PaddedTexts) else task


def class_loss(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """The summed loss in nats, each text's times its weight: (B, K), (B,), (B,) -> scalar."""
    if weights is None:
        return cross_entropy(logits, labels, "sum")
    return total(cross_entropy(logits, labels, "none") * weights)


def static_class_loss(
    model: GPTClassifier, token_ids: Tensor, lengths: Tensor, labels: Tensor, weights: Tensor | None = None
) -> Tensor:
    """class_loss with the padding computed, for torch's compiler: (B, T), (B,), (B,), (B,) -> scalar."""
    return class_loss(model(token_ids, lengths), labels, weights)
