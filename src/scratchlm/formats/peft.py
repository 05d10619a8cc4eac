"""LoRA adapters in the format of the library PEFT: ours written, and any merged into the base model that is read.

Source: peft, tuners/lora. There, alpha is divided by the rank, and a layer of GPT-2 with query, key and value has one
pair of matrices: ours has three, which become blocks of theirs.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scratchlm.arithmetic.layers import Linear
from scratchlm.fast.torch_startup import shapes_only
from scratchlm.formats.names import EMBEDDING, HEAD, WEIGHT_PREFIXES, architecture, names_of, parts_of
from scratchlm.formats.native import ADAPTER_FILE, WEIGHTS_FILE, read_config, read_weights, write_weights
from scratchlm.model.config import GPTConfig
from scratchlm.model.gpt import GPTModel
from scratchlm.run.errors import UserError
from scratchlm.run.files import atomic_folder, damaged, read_json, write_json, write_text

ADAPTER_CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
CARD_FILE, FOR_TORCH = "README.md", {"format": "pt"}  # of each folder, and in the header of its weights
CLASSIFIER, SCORE = "SEQ_CLS", "score.weight"  # the task of classifiers, and the head of theirs
# Keys of their configuration that change what is computed, with the values under which it is W + alpha / r * B A
PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "bias": ("none", None), "use_dora": (False, None), "use_rslora": (False, None),
    "modules_to_save": (None, []), "layer_replication": (None,), "trainable_token_indices": (None,),
    "target_parameters": (None, []),
}  # fmt: skip


def save_peft(folder: Path, model: Path, base: str | None, card: str) -> None:
    """Write the adapter of a language model in our format.

    base: the name that the adapter gives its base model. card: the folder's README.md.
    Raises UserError if the model has no adapter, or if transformers has no such models.
    """
    adapter = read_adapter(model)
    with atomic_folder(folder) as temporary:
        write_adapter(temporary, adapter, read_config(model), base, {})
        write_text(temporary / CARD_FILE, card)


def read_adapter(model: Path, prefix: str = "") -> dict[str, Tensor]:
    """Return what LoRA trained in a model in our format, by the names in a GPTModel, and alpha.

    prefix: of the names of the GPTModel's tensors in the file. Raises UserError if the model has no such adapter.
    """
    path = model / ADAPTER_FILE
    if not path.exists():
        raise UserError(f"{model} has no {ADAPTER_FILE}: it was not trained with lora; export it with another --format")
    stored = read_weights(path)
    if "alpha" not in stored:
        raise UserError(f"{path} has no alpha: an earlier version wrote it; run `dvc repro` again")
    found = {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith((prefix, "alpha"))}
    if not any(name.startswith("blocks.") for name in found):  # as a reward model's
        raise UserError(f"{path} belongs to no language model or classifier; only their adapters can be exported")
    return found


def check_base(model: Path, prefix: str, base: Path) -> None:
    """Raises UserError if the model was not made from the weights of the base model: LoRA leaves the embedding alone.

    prefix: as in read_adapter. Nothing is checked where the base model is not checked out.
    """
    if (base / WEIGHTS_FILE).exists():
        ours, theirs = read_weights(model / WEIGHTS_FILE), read_weights(base / WEIGHTS_FILE)
        if not torch.equal(ours[prefix + EMBEDDING.ours], theirs[EMBEDDING.ours]):
            raise UserError(
                f"{model} was not trained from the weights of {base} (`pretrained` is false), so its adapter has no "
                "base model; export it with --format huggingface"
            )


def write_adapter(
    folder: Path, adapter: Mapping[str, Tensor], config: GPTConfig, base: str | None, saved: Mapping[str, Tensor]
) -> None:
    """Write PEFT's two files into a folder. saved: of a classifier, by transformers' names, what replaces the base's.

    Raises UserError if transformers has no such models.
    """
    with shapes_only():
        layers = {path: layer for path, layer in GPTModel(config).named_modules() if isinstance(layer, Linear)}
    kind, weights, ranks = architecture(config), dict[str, Tensor](), dict[str, int]()
    for name in names_of(config):
        path = name.ours.removesuffix(".weight")
        if f"{path}.A" not in adapter:
            continue
        A, B = list(adapter[f"{path}.A"]), adapter[f"{path}.B"].split(layers[path].parts)
        theirs = [part.removesuffix(".weight") for part in parts_of(name.huggingface)]
        pairs = zip(A, B, strict=True) if len(theirs) > 1 else [(torch.cat(A), torch.block_diag(*B))]
        for module, (a, b) in zip(theirs, pairs, strict=True):
            ranks[".".join(module.split(".")[2:]) or module] = len(a)  # without the number of its block
            prefix = "" if name == HEAD else WEIGHT_PREFIXES[kind]
            weights |= {f"{prefix}{module}.lora_A.weight": a, f"{prefix}{module}.lora_B.weight": b}
    alpha = float(adapter["alpha"])
    settings = {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": kind == "gpt2",  # of its Conv1D
        "lora_alpha": alpha * min(ranks.values()),
        "alpha_pattern": {module: alpha * rank for module, rank in ranks.items()},
        "peft_type": "LORA",
        "r": min(ranks.values()),
        "rank_pattern": ranks,
        "target_modules": sorted(ranks),
        "modules_to_save": sorted({name.split(".")[-2] for name in saved}) or None,
        "task_type": CLASSIFIER if saved else "CAUSAL_LM",
    }
    write_weights(folder / WEIGHTS, {PREFIX + name: tensor for name, tensor in {**weights, **saved}.items()}, FOR_TORCH)
    write_json(folder / ADAPTER_CONFIG, settings)


def is_of_classifier(folder: Path) -> bool:
    """Whether the adapter in a folder makes a classifier of its base model."""
    return bool(read_json(folder / ADAPTER_CONFIG).get("task_type") == CLASSIFIER)


def merge_peft(folder: Path, stored: dict[str, Tensor], prefix: str) -> None:
    """Add an adapter to the weights of its base model. prefix: of transformers' names, which those in `stored` lack.

    That of a classifier may have whole tensors, such as its head, in place of the base model's.
    Raises UserError naming the file and what is not plain LoRA, or the tensor that does not fit.
    """
    settings, is_classifier = read_json(folder / ADAPTER_CONFIG), is_of_classifier(folder)
    for key, allowed in PLAIN.items():
        if settings.get(key, allowed[0]) not in allowed and not (is_classifier and key == "modules_to_save"):
            raise UserError(
                f"{folder / ADAPTER_CONFIG}: {key} is {settings[key]!r}, but only plain LoRA is read; merge it with "
                "PEFT (merge_and_unload, save_pretrained) and import that"
            )
    matrices = _read_matrices(folder)
    if is_classifier:
        _replace_tensors(folder, matrices, stored, prefix)
    for module in sorted({name.rsplit(".lora_", 1)[0] for name in matrices}):
        a, b = (matrices.get(f"{module}.lora_{letter}.weight") for letter in "AB")
        name = module.removeprefix(PREFIX).removeprefix(prefix) + ".weight"
        is_pair = a is not None and b is not None and a.dim() == b.dim() == 2 and len(a) == b.shape[1]
        if a is None or b is None or not is_pair or name not in stored:
            raise UserError(
                f"{folder / WEIGHTS}: {module} is not a pair of matrices for a weight of the base model; name with "
                "--base the model that the adapter was trained on"
            )
        update = _scale(folder / ADAPTER_CONFIG, settings, module, len(a)) * (b.float() @ a.float())
        if settings.get("fan_in_fan_out") and name != HEAD.huggingface:
            update = update.T
        if update.shape != stored[name].shape:
            raise UserError(
                f"{folder / WEIGHTS}: {module} makes an update of shape {tuple(update.shape)}, but {name} of the base "
                f"model has {tuple(stored[name].shape)}; name with --base the model that the adapter was trained on"
            )
        stored[name] = stored[name].float() + update


def _replace_tensors(folder: Path, matrices: dict[str, Tensor], stored: dict[str, Tensor], prefix: str) -> None:
    """Move the tensors of an adapter that LoRA did not make to `stored`, in place of the base model's.

    Raises UserError naming one that replaces none.
    """
    for name in sorted(name for name in matrices if ".lora_" not in name):
        theirs, tensor = name.removeprefix(PREFIX).removeprefix(prefix), matrices.pop(name)
        if theirs != SCORE and (theirs not in stored or stored[theirs].shape != tensor.shape):
            raise UserError(
                f"{folder / WEIGHTS}: {name} of shape {tuple(tensor.shape)} replaces no tensor of the base model; name "
                "with --base the model that the adapter was trained on"
            )
        stored[theirs] = tensor


def _read_matrices(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter. Raises UserError naming one that holds no finite floats."""
    path = folder / WEIGHTS
    if not path.exists() and (pickles := sorted(folder.glob("*.bin"))):
        raise pickled(pickles[0])
    # Where the head is trained, PEFT saves its frozen weight, too
    found = {name: tensor for name, tensor in read_weights(path).items() if not name.endswith(".base_layer.weight")}
    for name, tensor in found.items():
        if not tensor.is_floating_point() or not tensor.float().isfinite().all():
            raise damaged(path, f"tensor {name} holds NaN, infinite numbers or no floats")
    return found


def pickled(path: Path) -> UserError:
    """The error for weights that are no safetensors."""
    return UserError(
        f"{path}: weights in a pickle, which can run code and is not read; load them with the library that wrote them "
        "and write them with save_pretrained, as safetensors"
    )


def _scale(path: Path, settings: Mapping[str, Any], module: str, rank: int) -> float:
    """The factor on B A: alpha, perhaps the module's own, by the rank. path: of the settings."""
    try:
        own = settings.get("alpha_pattern") or {}
        found = (alpha for pattern, alpha in own.items() if re.fullmatch(rf"(.*\.)?({pattern})", module))
        scale = float(next(found, settings["lora_alpha"])) / rank
        if not math.isfinite(scale):
            raise ValueError(f"{scale} is not finite")
        return scale
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError, re.error) as error:
        raise damaged(path, f"no number as alpha of {module} ({error})") from None
