"""The spam experiment from a base model to scores: what finetune_spam and its ablations share."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from tqdm import tqdm

from scratchlm.model.classifier import GPTClassifier, Texts
from scratchlm.model.gpt import GPTModel, parameter_count
from scratchlm.model.lora import adapter_state, merge_lora
from scratchlm.run.device import RuntimeParams, autocast, set_up
from scratchlm.run.resume import Resume
from scratchlm.tasks.classification import SpamEvaluation
from scratchlm.tasks.settings import EvaluationParams
from scratchlm.tasks.spam import FinetuneSpamParams, build_spam_classifier, padded_texts, padded_width, spam_task
from scratchlm.training.loop import train

REMEMBERED_BYTES = 4 << 30  # of what frozen blocks give


class SpamExperiment(NamedTuple):
    """The trained classifier with plain weights, its LoRA matrices if it had any, and what was measured."""

    classifier: GPTClassifier
    adapter: dict[str, Tensor]
    curve: list[dict[str, float]]
    scores: dict[str, Any]
    probabilities: dict[str, np.ndarray]


def run_spam_experiment(
    trunk: GPTModel,
    splits: Mapping[str, Sequence[Mapping[str, Any]]],
    pad_token_id: int,
    params: FinetuneSpamParams,
    evaluation_params: EvaluationParams,
    runtime: RuntimeParams,
    log: Path,
    resume: Resume,
) -> SpamExperiment:
    """Finetune `trunk` on the train split and measure all three. splits: rows of MESSAGE_SCHEMA."""
    device = set_up(runtime)
    token_ids = {split: [row["token_ids"] for row in rows] for split, rows in splits.items()}
    labels = {split: [row["label"] for row in rows] for split, rows in splits.items()}
    width = padded_width(params.padding, token_ids["train"], trunk.config.context_length)
    texts = {split: padded_texts(found, pad_token_id, width) for split, found in token_ids.items()}
    classifier = build_spam_classifier(trunk, params, runtime.seed).to(device)
    if _worth_remembering(classifier, texts.values()):
        with autocast(runtime, device):
            for split in tqdm(texts, desc="finetune_spam frozen blocks", unit="split"):
                texts[split].remember(classifier, evaluation_params.batch_size)
    evaluation = SpamEvaluation(texts, labels, evaluation_params)
    task = spam_task(texts["train"], labels["train"], lambda: evaluation.quick(classifier))
    sizes = {"padded_tokens": width, "trainable_parameters": parameter_count(classifier, trainable_only=True)}
    curve = train(classifier, task, params, runtime, device, log, resume)
    adapter = adapter_state(classifier)
    merge_lora(classifier)
    with autocast(runtime, device):
        scores, probabilities = evaluation.full(classifier)
    return SpamExperiment(classifier, adapter, curve, scores | sizes, probabilities)


def _worth_remembering(classifier: GPTClassifier, texts: Iterable[Texts]) -> bool:
    """Whether frozen blocks give the same in every epoch, and what they give fits into memory."""
    config = classifier.trunk.config
    n_bytes = 4 * config.emb_dim * sum(found.token_ids.numel() for found in texts)
    return config.dropout == 0 and n_bytes <= REMEMBERED_BYTES
