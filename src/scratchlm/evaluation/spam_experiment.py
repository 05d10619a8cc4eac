"""The spam experiment from a base model to scores: what finetune_spam and its ablations share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from scratchlm.evaluation.classification import Rows, SpamEvaluation
from scratchlm.evaluation.settings import EvaluationParams
from scratchlm.model.classifier import GPTClassifier
from scratchlm.model.gpt import GPTModel, parameter_count
from scratchlm.model.lora import adapter_state, merge_lora
from scratchlm.resume import Resume
from scratchlm.runtime import RuntimeParams, autocast, set_up
from scratchlm.training.loop import train
from scratchlm.training.spam import FinetuneSpamParams, build_spam_classifier, padded_width, spam_task


class SpamExperiment(NamedTuple):
    """The trained classifier with plain weights, its LoRA matrices if it had any, and what was measured."""

    classifier: GPTClassifier
    adapter: dict[str, Tensor]
    curve: list[dict[str, float]]
    scores: dict[str, Any]
    probabilities: dict[str, np.ndarray]


def run_spam_experiment(
    trunk: GPTModel,
    splits: Mapping[str, Rows],
    pad_token_id: int,
    params: FinetuneSpamParams,
    evaluation_params: EvaluationParams,
    runtime: RuntimeParams,
    log: Path,
    resume: Resume,
) -> SpamExperiment:
    """Finetune `trunk` on the train split and measure all three. splits: rows of MESSAGE_SCHEMA."""
    device = set_up(runtime)
    texts = [row["token_ids"] for row in splits["train"]]
    width = padded_width(params.padding, texts, trunk.config.context_length)
    classifier = build_spam_classifier(trunk, params, runtime.seed).to(device)
    evaluation = SpamEvaluation(splits, pad_token_id, width, evaluation_params)
    task = spam_task(splits["train"], width, pad_token_id, lambda: evaluation.quick(classifier))
    sizes = {"padded_tokens": width, "trainable_parameters": parameter_count(classifier, trainable_only=True)}
    curve = train(classifier, task, params, runtime, device, log, resume)
    adapter = adapter_state(classifier)
    merge_lora(classifier)
    with autocast(runtime, device):
        scores, probabilities = evaluation.full(classifier)
    return SpamExperiment(classifier, adapter, curve, scores | sizes, probabilities)
