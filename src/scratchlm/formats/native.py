"""Our own format: a folder of config.json and model.safetensors. The same model gives the same bytes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scratchlm.fast.torch_startup import shapes_only
from scratchlm.formats.names import EMBEDDING, HEAD
from scratchlm.model.config import GPTConfig
from scratchlm.model.gpt import GPTModel
from scratchlm.run.errors import UserError
from scratchlm.run.files import atomic_folder, atomic_write, damaged, missing, read_json, write_json

Tensors = Mapping[str, Tensor]
CONFIG_FILE, WEIGHTS_FILE, ADAPTER_FILE = "config.json", "model.safetensors", "adapter.safetensors"
OTHER_KINDS = {"classifier": "classifier", "reward_model": "reward model"}  # by their section of CONFIG_FILE


def save_gpt(folder: Path, model: GPTModel, adapter: dict[str, Tensor] | None = None) -> None:
    """Write a language model; a tied head is not stored. adapter: LoRA matrices to save beside the weights."""
    weights = model.state_dict()
    if model.config.tied_head:
        del weights[HEAD.ours]
    save_folder(folder, weights, {"gpt": model.config.model_dump()}, adapter)


def read_config(folder: Path) -> GPTConfig:
    """Return the configuration of the model in `folder`. Raises UserError naming the file and what is wrong."""
    path = folder / CONFIG_FILE
    try:
        return GPTConfig.model_validate(read_json(path).get("gpt"))
    except ValidationError as error:
        raise damaged(
            path, f"not a configuration of ours (gpt {first_mistake(error)})".replace("gpt :", "gpt:")
        ) from None


def first_mistake(error: ValidationError) -> str:
    """Return the key and the fault of the first mistake."""
    mistake = error.errors()[0]
    return f"{' '.join(map(str, mistake['loc']))}: {mistake['msg']}"


def load_gpt(folder: Path, **changes: Any) -> GPTModel:
    """Return the language model in `folder`, in evaluation mode.

    changes: fields of GPTConfig that do not affect the weights: dropout, attention.
    Raises UserError naming the folder if it holds another kind of model, and the tensor if the weights do not fit the
    configuration.
    """
    config = read_json(folder / CONFIG_FILE)
    for section, kind in OTHER_KINDS.items():
        if section in config:
            raise UserError(
                f"{folder} holds a {kind}, not a language model; name pretrain, gpt2-… or finetune_instruct"
            )
    shape = read_config(folder).model_copy(update=changes)
    return gpt_of(shape, read_weights(folder / WEIGHTS_FILE), str(folder))


def gpt_of(config: GPTConfig, weights: Tensors, source: str) -> GPTModel:
    """Return a model with `weights` as its tensors (not copies), in evaluation mode. Errors as assign_tensors."""
    with shapes_only():
        model = GPTModel(config)
    if model.config.tied_head:
        weights = {**weights, HEAD.ours: weights.get(EMBEDDING.ours, torch.empty(0))}
    assign_tensors(model, weights, source)
    if model.config.tied_head:
        model.head.weight = model.token_embedding.weight
    return model.eval()


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a safetensors file by name. Raises UserError if the file is missing or damaged."""
    try:
        # Cloned for torch's alignment: on the file's odd addresses, kernels are slower and differ in the last bits
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except (FileNotFoundError, NotADirectoryError):
        raise missing(path) from None
    except (SafetensorError, KeyError) as error:  # KeyError: a type that torch has not
        raise damaged(path, f"damaged ({error})") from None


def save_folder(folder: Path, weights: Tensors, config: dict[str, Any], adapter: Tensors | None) -> None:
    """Write CONFIG_FILE, WEIGHTS_FILE and, if there is one, ADAPTER_FILE."""
    with atomic_folder(folder) as temporary:
        for file, tensors in ((WEIGHTS_FILE, weights), (ADAPTER_FILE, adapter)):
            if tensors:
                write_weights(temporary / file, tensors)
        write_json(temporary / CONFIG_FILE, config)


def write_weights(path: Path, weights: Tensors, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file that others can read: its library's own files are the owner's alone."""
    with atomic_write(path) as temporary:
        save_file({name: tensor.cpu().contiguous() for name, tensor in weights.items()}, temporary, metadata)
        temporary.chmod(0o644)


def assign_tensors(model: nn.Module, weights: Tensors, source: str) -> None:
    """Make `weights` the tensors of a model that was built under shapes_only.

    Raises UserError naming `source` and the first tensor that is missing, unknown or misshapen, or whose numbers are
    not of type float32 or not finite.
    """
    expected = model.state_dict()
    for name in [*expected, *weights]:
        if name not in weights:
            raise UserError(f"{source}: tensor {name} is missing; the checkpoint is incomplete, make it again")
        if name not in expected:
            raise UserError(f"{source}: tensor {name} belongs to no part of the model; check config.json")
        if weights[name].shape != expected[name].shape:
            raise UserError(
                f"{source}: tensor {name} has shape {tuple(weights[name].shape)}, the configuration "
                f"asks for {tuple(expected[name].shape)}; take both from one checkpoint"
            )
        if weights[name].dtype != torch.float32:
            raise UserError(
                f"{source}: tensor {name} is of type {type_name(weights[name])}; save all of them in float32"
            )
        if not torch.stack(weights[name].aminmax()).isfinite().all():
            raise UserError(
                f"{source}: tensor {name} holds NaN or infinite numbers; take a checkpoint of a sound model"
            )
    model.load_state_dict(weights, assign=True)


def type_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
