"""Finetuning a GPT into a spam classifier. The book's chapter 6."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from scratchlm.data.messages import CLASSES, pad
from scratchlm.model.classifier import GPTClassifier, Position, Texts, Trainable, freeze
from scratchlm.model.gpt import GPTModel, at_least_float32, build_model
from scratchlm.model.lora import LoRAParams, apply_lora
from scratchlm.run.device import stream
from scratchlm.run.errors import UserError
from scratchlm.run.params import check_params
from scratchlm.training.loop import Batch, Task
from scratchlm.training.optimizer import TrainingParams


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
    dropout: Annotated[float, Field(ge=0, lt=1)]
    lora: LoRAParams | None


SpamAblations = dict[str, dict[str, Any]]  # by variant, what differs from finetune_spam


def varied(params: FinetuneSpamParams, ablations: SpamAblations, variant: str) -> FinetuneSpamParams:
    """The parameters of one variant. Raises UserError naming the key if its changes are not valid."""
    changes = ablations[variant]
    if "base" in changes:
        raise UserError(f"spam_ablations.{variant}: base cannot vary, the graph is wired by it; set finetune_spam.base")
    return check_params(
        params.model_dump() | changes, FinetuneSpamParams, source=f"spam_ablations.{variant}", whole=True
    )


def build_spam_classifier(trunk: GPTModel, params: FinetuneSpamParams, seed: int) -> GPTClassifier:
    """A classifier with a fresh head on `trunk`, with only what `params` names left to train."""
    if not params.pretrained:
        trunk = build_model(trunk.config, stream(seed, "initialisation"))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream(seed, "classification head"))
        classifier = GPTClassifier(trunk, len(CLASSES), params.position)
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


def spam_task(texts: Texts, labels: Sequence[int], evaluate: Callable[[], Mapping[str, float]]) -> Task:
    """The loop's task for messages and their classes, one each."""
    classes = torch.tensor(labels)

    def batch(indices: np.ndarray) -> Batch:
        return Batch((*texts.batch(indices.tolist()), classes[indices]), len(indices))

    return Task("finetune_spam", len(texts), batch, summed_class_loss, evaluate, samples=[])


def summed_class_loss(model: GPTClassifier, texts: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the class, summed over texts: what GPTClassifier takes, (B,) int64 -> scalar, in nats."""
    return F.cross_entropy(at_least_float32(model(texts, lengths)), labels, reduction="sum")
