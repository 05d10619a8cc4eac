"""Classifiers in transformers: folders and adapters of GPT2ForSequenceClassification and the like, written and read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from scratchlm.data.byte_pairs import BytePairTokenizer
from scratchlm.fast.torch_startup import shapes_only
from scratchlm.formats.classifier import SAVED_BACKBONE, ClassifierSettings, load_classifier
from scratchlm.formats.conversion import FLOATS, their_tensors
from scratchlm.formats.huggingface import gpt_of_tensors, read_tensors, write_folder
from scratchlm.formats.huggingface_config import huggingface_config
from scratchlm.formats.huggingface_tokenizer import CONFIG_FILE, save_huggingface_tokenizer
from scratchlm.formats.names import HEAD, WEIGHT_PREFIXES, architecture
from scratchlm.formats.native import assign_tensors, first_mistake
from scratchlm.formats.peft import CARD_FILE, SCORE, is_of_classifier, read_adapter, write_adapter
from scratchlm.model.classifier import GPTClassifier
from scratchlm.model.gpt import GPTModel
from scratchlm.run.errors import UserError
from scratchlm.run.files import atomic_folder, damaged, read_json, write_json, write_text

TOLERANCE = 1e-5  # of a logit
NO_TOKEN = -1
ENDING = "ForSequenceClassification"
ARCHITECTURES = {"gpt2": f"GPT2{ENDING}", "llama": f"Llama{ENDING}", "qwen2": f"Qwen2{ENDING}"}
SETTINGS_FILE = "classifier.json"  # in our adapters: ClassifierSettings, for which PEFT has no place


def save_huggingface_classifier(
    folder: Path, model: GPTClassifier, settings: ClassifierSettings, tokenizer: BytePairTokenizer, card: str
) -> None:
    """Write a folder that AutoModelForSequenceClassification and AutoTokenizer load. card: its README.md.

    transformers reads the last token that differs from pad_token_id. That is ours with position last_real; with
    position last, pad_token_id is the id of no token. The tokenizer makes no mask: attention is causal, and what is
    read of padding (with position last, and of an empty text) is seen as in training.
    Raises UserError if transformers has no such classifiers.
    """
    own = _own_tensors(model)
    theirs = {
        "problem_type": "single_label_classification",
        "id2label": {str(i): name for i, name in enumerate(settings.classes)},
        "label2id": {name: i for i, name in enumerate(settings.classes)},
        "pad_token_id": padding_id(settings, tokenizer),
    }
    with atomic_folder(folder) as temporary:
        write_with_head(temporary, model.backbone, own, theirs, tokenizer)
        write_text(temporary / CARD_FILE, card)
        _save_tokenizer(temporary, tokenizer, settings)


def write_with_head(
    folder: Path, backbone: GPTModel, own: Mapping[str, Tensor], settings: Mapping[str, Any],
    tokenizer: BytePairTokenizer,
) -> None:  # fmt: skip
    """Write the weights and config.json of transformers' class that classifies sequences.

    own: see head_tensors. settings: further entries of config.json.
    Raises UserError if transformers has no such models.
    """
    kind = architecture(backbone.config)
    weights = {
        WEIGHT_PREFIXES[kind] + name: tensor
        for name, tensor in their_tensors(backbone, "huggingface")
        if name != HEAD.huggingface
    }
    theirs = huggingface_config(backbone.config, tokenizer.end_token_id, tokenizer.begin_ids)
    write_folder(folder, {**weights, **own}, {**theirs, "architectures": [ARCHITECTURES[kind]], **settings}, None)


def save_peft_classifier(folder: Path, model: Path, tokenizer: BytePairTokenizer, base: str | None, card: str) -> None:
    """Write the adapter of a classifier in our format: what LoRA trained, the head, the last norm and the tokenizer.

    base: the name that the adapter gives its base model. card: the folder's README.md.
    Raises UserError if the model has no adapter, or if transformers has no such classifiers.
    """
    classifier, settings = load_classifier(model)
    adapter, saved = read_adapter(model, SAVED_BACKBONE), _own_tensors(classifier)
    with atomic_folder(folder) as temporary:
        write_adapter(temporary, adapter, classifier.backbone.config, base, saved)
        write_json(temporary / SETTINGS_FILE, settings.model_dump())
        write_text(temporary / CARD_FILE, card)
        _save_tokenizer(temporary, tokenizer, settings)


def padding_id(settings: ClassifierSettings, tokenizer: BytePairTokenizer) -> int:
    """Return the pad_token_id with which transformers reads the token that the classifier reads."""
    return NO_TOKEN if settings.position == "last" else tokenizer.end_token_id


def is_huggingface_classifier(folder: Path, adapter: Path | None) -> bool:
    """Whether a folder of Hugging Face holds a classifier, or the adapter makes one of its model."""
    if adapter:
        return is_of_classifier(adapter)
    names = read_json(folder / "config.json").get("architectures")
    return isinstance(names, list) and any(str(name).endswith(ENDING) for name in names)


def load_huggingface_classifier(
    folder: Path, vocab_size: int, adapter: Path | None
) -> tuple[GPTClassifier, ClassifierSettings]:
    """Return the classifier of a folder, in float32 and evaluation mode, and its settings.

    Arguments and errors as load_huggingface.
    """
    config, stored = read_tensors(folder, adapter)
    score = stored.pop(SCORE, None)
    stored.pop(HEAD.huggingface, None)  # of a language model
    if score is None or score.dim() != 2 or score.dtype not in FLOATS:
        raise UserError(f"{adapter or folder}: it has no matrix of floats {SCORE}; take a classifier of transformers")
    backbone = gpt_of_tensors(folder, config.model_copy(update={"tied_head": True}), stored, vocab_size)
    settings = _read_settings(folder, adapter, len(score), config.context_length)
    weights = {f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items() if name != HEAD.ours}
    weights |= {"head.weight": score.float(), "head.bias": torch.zeros(len(score))}
    with shapes_only():
        model = GPTClassifier(backbone, len(score), settings.position)
    assign_tensors(model, weights, str(adapter or folder))
    return model.eval(), settings


def _own_tensors(model: GPTClassifier) -> dict[str, Tensor]:
    """head_tensors of a classifier. Raises UserError if transformers has no such classifiers."""
    kind = architecture(model.backbone.config)
    if model.position not in ("last", "last_real"):
        raise UserError(
            f"finetune_spam.position is {model.position}, but transformers' classifiers read the last token; only "
            "last and last_real can be exported"
        )
    if kind != "gpt2" and model.head.bias.any():
        raise UserError(
            f"transformers' classifiers have no bias, and a model built like {kind.capitalize()} has none that could "
            "take its place; only classifiers on a GPT-2, or whose biases are zero, can be exported"
        )
    return head_tensors(model.backbone, model.head.weight, model.head.bias)


def head_tensors(backbone: GPTModel, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """The head and, of a GPT-2, the last norm that takes its bias, by transformers' names: (K, C), (K,).

    Any other backbone has no place for a bias, which must be zero.
    Raises UserError if the last norm cannot take the bias, or if transformers has no such models.
    """
    if architecture(backbone.config) != "gpt2":
        return {SCORE: weight}
    norm, prefix = backbone.final_norm, f"{WEIGHT_PREFIXES['gpt2']}ln_f"
    shift = norm.get_parameter("shift") + _shift_for_bias(weight, bias)
    return {SCORE: weight, f"{prefix}.weight": norm.get_parameter("scale"), f"{prefix}.bias": shift}


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


def _save_tokenizer(folder: Path, tokenizer: BytePairTokenizer, settings: ClassifierSettings) -> None:
    save_huggingface_tokenizer(folder, tokenizer, settings.padded_tokens, None)
    path = folder / CONFIG_FILE
    write_json(path, read_json(path) | {"model_input_names": ["input_ids"]})


def _read_settings(folder: Path, adapter: Path | None, n_classes: int, context_length: int) -> ClassifierSettings:
    """Return the settings in an adapter of ours, else those in transformers' files or its defaults."""
    path = folder / "config.json"
    if adapter and (adapter / SETTINGS_FILE).is_file():
        path = adapter / SETTINGS_FILE
        found = read_json(path)
    else:
        found = _their_settings(path, adapter, n_classes)
        found["padded_tokens"] = _padded_tokens(adapter or folder, context_length)
    try:
        settings = ClassifierSettings.model_validate(found)
    except ValidationError as error:
        raise damaged(path, f"not settings of a classifier ({first_mistake(error)})") from None
    if len(set(settings.classes)) != n_classes or settings.padded_tokens > context_length:
        limits = f"{n_classes} classes of different names and at most {context_length} tokens"
        raise damaged(path, f"the model has {limits}, not {settings.classes} and {settings.padded_tokens}")
    return settings


def _their_settings(path: Path, adapter: Path | None, n_classes: int) -> dict[str, Any]:
    """Return the classes and the position that transformers' config.json at `path` names. Raises UserError."""
    given = read_json(path)
    if (problem := given.get("problem_type")) not in (None, "single_label_classification"):
        raise UserError(f"{path}: problem_type is {problem!r}; only single_label_classification can be read")
    default = {str(i): f"LABEL_{i}" for i in range(n_classes)}  # transformers'
    labels = given.get("id2label") or default
    if not isinstance(labels, dict) or labels.keys() != default.keys():
        if not adapter:
            raise damaged(path, f"id2label does not name {n_classes} classes, as many as the rows of {SCORE}")
        labels = default  # the base model names other classes, if any
    position = "last" if given.get("pad_token_id") == NO_TOKEN else "last_real"
    return {"classes": [labels[str(i)] for i in range(n_classes)], "position": position}


def _padded_tokens(folder: Path, context_length: int) -> int:
    """The length to which the tokenizer of a folder cuts: transformers' default is beyond any context."""
    path = folder / CONFIG_FILE
    found = read_json(path).get("model_max_length") if path.exists() else None
    return min(found, context_length) if isinstance(found, int) and found > 0 else context_length
