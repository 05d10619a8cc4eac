"""Classifiers as folders of transformers' GPT2ForSequenceClassification."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scratchlm.data.byte_pairs import BytePairTokenizer
from scratchlm.formats.classifier import ClassifierSettings
from scratchlm.formats.conversion import their_tensors
from scratchlm.formats.huggingface import write_folder
from scratchlm.formats.huggingface_config import huggingface_config
from scratchlm.formats.huggingface_tokenizer import CONFIG_FILE, save_huggingface_tokenizer
from scratchlm.formats.names import HEAD, WEIGHT_PREFIXES, architecture
from scratchlm.model.classifier import GPTClassifier
from scratchlm.run.errors import UserError
from scratchlm.run.files import atomic_folder, read_json, write_json

TOLERANCE = 1e-5  # of a logit
NO_TOKEN = -1


def save_huggingface_classifier(
    folder: Path, model: GPTClassifier, settings: ClassifierSettings, tokenizer: BytePairTokenizer, card: str
) -> None:
    """Write a folder that AutoModelForSequenceClassification and AutoTokenizer load. card: its README.md.

    transformers reads the last token that differs from pad_token_id. That is ours with position last_real; with
    position last, pad_token_id is the id of no token. The tokenizer makes no mask: attention is causal, and what is
    read of padding (with position last, and of an empty text) is seen as in training.
    Raises UserError if transformers has no such classifiers.
    """
    config, kind = model.backbone.config, architecture(model.backbone.config)
    if kind != "gpt2":
        raise UserError(
            f"transformers' classifiers have no bias, and a model built like {kind.capitalize()} has none that could "
            "take its place; only classifiers on a GPT-2 can be exported"
        )
    if model.position not in ("last", "last_real"):
        raise UserError(
            f"finetune_spam.position is {model.position}, but transformers' classifiers read the last token; only "
            "last and last_real can be exported"
        )
    norm = f"{WEIGHT_PREFIXES[kind]}ln_f.bias"
    weights = {
        WEIGHT_PREFIXES[kind] + name: tensor
        for name, tensor in their_tensors(model.backbone, "huggingface")
        if name != HEAD.huggingface
    }
    weights[norm] = weights[norm] + _shift_for_bias(model.head.weight, model.head.bias)
    theirs: dict[str, Any] = huggingface_config(config, tokenizer.end_token_id, tokenizer.begin_ids) | {
        "architectures": ["GPT2ForSequenceClassification"],
        "problem_type": "single_label_classification",
        "id2label": {str(i): name for i, name in enumerate(settings.classes)},
        "label2id": {name: i for i, name in enumerate(settings.classes)},
        "pad_token_id": NO_TOKEN if model.position == "last" else tokenizer.end_token_id,
    }
    with atomic_folder(folder) as temporary:
        write_folder(temporary, weights | {"score.weight": model.head.weight}, theirs, card)
        save_huggingface_tokenizer(temporary, tokenizer, settings.padded_tokens, None)
        path = temporary / CONFIG_FILE
        write_json(path, read_json(path) | {"model_input_names": ["input_ids"]})


def _shift_for_bias(weight: Tensor, bias: Tensor) -> Tensor:
    """What the last norm must add for a head without bias to give the same logits: (K, C), (K,) -> (C,) float32.

    The solution of W d = b with the smallest norm. Raises UserError if there is none, as with more classes than
    channels.
    """
    shift = (torch.linalg.pinv(weight.double()) @ bias.double()).float()
    if (weight.double() @ shift.double() - bias.double()).abs().max() > TOLERANCE:
        raise UserError(
            f"the biases of these {len(bias)} classes cannot become part of the last norm, and transformers' "
            "classifiers have none; train with fewer classes or a wider model to export one"
        )
    return shift
