"""Our own format: a folder of config.json and model.safetensors, the same bytes for the same model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from scratchlm.model.config import GPTConfig
from scratchlm.model.gpt import GPTModel
from scratchlm.run.errors import UserError
from scratchlm.run.files import atomic_folder, missing, read_json, write_json

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
TIED_HEAD = "head.weight"


def save_gpt(folder: Path, model: GPTModel, adapter: dict[str, Tensor] | None = None) -> None:
    """Write a language model; a tied head is not stored twice. adapter: LoRA matrices to keep beside it."""
    save_folder(
        folder, model, {"gpt": model.config.model_dump()}, TIED_HEAD if model.config.tied_head else None, adapter
    )


def read_config(folder: Path) -> GPTConfig:
    """The configuration of the model in `folder`. Raises UserError naming the file and what is wrong."""
    path = folder / CONFIG_FILE
    try:
        return GPTConfig.model_validate(read_json(path).get("gpt"))
    except ValidationError as error:
        mistake = error.errors()[0]
        what = " ".join(["gpt", *map(str, mistake["loc"])]) + f": {mistake['msg']}"
        raise UserError(f"{path}: not a configuration of ours ({what}); run dvc repro") from None


def load_gpt(folder: Path, **changes: Any) -> GPTModel:
    """The language model in `folder`, in evaluation mode.

    changes: fields of GPTConfig that concern its use and not its weights: dropout, attention.
    Raises UserError naming the folder and the tensor if the weights do not fit the configuration, or if it holds a
    classifier.
    """
    if "classifier" in read_json(folder / CONFIG_FILE):
        raise UserError(
            f"{folder} holds a classifier, not a language model; name pretrain, gpt2-… or finetune_instruct"
        )
    config = read_config(folder).model_copy(update=changes)
    with shapes_only():
        model = GPTModel(config)
    return assign_weights(model, read_weights(folder), str(folder))


@contextmanager
def shapes_only() -> Iterator[None]:
    """Within the block modules are made of shapes without numbers (the meta device), to be given their weights."""
    with torch.device("meta"), _NoInitialisation():
        yield


class _NoInitialisation(TorchFunctionMode):
    """torch.nn.init does nothing: on the meta device it has nothing to fill, but imports torch's compiler for it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def assign_weights(model: GPTModel, weights: dict[str, Tensor], source: str) -> GPTModel:
    """Give a model that was built under shapes_only its weights, without a second copy; evaluation mode.

    Raises UserError naming `source` and the first missing, unknown or misshapen tensor.
    """
    if model.config.tied_head:
        weights = {**weights, TIED_HEAD: weights.get("token_embedding.weight", torch.empty(0))}
    assign_tensors(model, weights, source)
    if model.config.tied_head:
        model.head.weight = model.token_embedding.weight
    return model.eval()


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder. Raises UserError if the file is missing or damaged."""
    path = folder / WEIGHTS_FILE
    try:
        # Copied to where torch puts tensors: from the file's odd addresses, kernels are slower and have other last bits
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except FileNotFoundError:
        raise missing(path) from None
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); run dvc checkout, or delete it and run dvc repro") from None


def save_folder(
    folder: Path, model: nn.Module, config: dict[str, Any], dropped: str | None, adapter: dict[str, Tensor] | None
) -> None:
    """Write a folder of CONFIG_FILE, WEIGHTS_FILE and, if given, adapter.safetensors; `dropped` is not stored."""
    weights = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items() if name != dropped}
    with atomic_folder(folder) as temporary:
        save_file(weights, temporary / WEIGHTS_FILE)
        write_json(temporary / CONFIG_FILE, config)
        if adapter:
            save_file(
                {name: tensor.cpu().contiguous() for name, tensor in adapter.items()}, temporary / "adapter.safetensors"
            )


def assign_tensors(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Make `weights` the model's tensors. Raises UserError as assign_weights does."""
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
    model.load_state_dict(weights, assign=True)
