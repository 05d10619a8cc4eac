"""OpenAI's GPT-2 checkpoints (TensorFlow): read into our model, and its weights written back as their variables."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from scratchlm.formats import tensorflow_reader
from scratchlm.formats.names import tensor_names
from scratchlm.formats.native import assign_weights, shapes_only
from scratchlm.model.config import SIZES, GPTConfig, SizeName, gpt2_config
from scratchlm.model.gpt import GPTModel
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_json

PREFIX = "model.ckpt"


def load_openai(folder: Path, size: SizeName, scratch: Path) -> tuple[GPTModel, int]:
    """Return the GPT-2 of a checkpoint folder (hparams.json, model.ckpt.*) and its number of tensors.

    scratch: an empty folder with room for a copy of the weights.
    Raises UserError naming the file and the tensor if the checkpoint is damaged, has another size than `size`,
    or has a missing, extra or misshapen tensor.
    """
    config = _read_config(folder, size)
    arrays = scratch / "variables.safetensors"
    _read_in_own_process(folder / PREFIX, arrays)
    variables = load_file(arrays)
    n_variables = len(variables)
    return from_openai(variables, config, str(folder)), n_variables


def from_openai(variables: dict[str, Tensor], config: GPTConfig, source: str) -> GPTModel:
    """Return a model made of OpenAI's variables, each used exactly once. Errors as load_openai, naming `source`.

    Empties `variables` on the way, so that memory never holds a large model twice.
    """
    with shapes_only():
        model = GPTModel(config)
    expected = model.state_dict()
    weights = {}
    for name in tensor_names(config.n_layers):
        if name.openai not in variables:
            raise UserError(f"{source}: tensor {name.openai} is missing; fetch the whole checkpoint again")
        tensor = variables.pop(name.openai)
        got, wanted = tuple(tensor.shape), tuple(expected[name.ours].shape)
        if name.linear:
            wanted = (1, *wanted[::-1])
        if got != wanted:
            raise UserError(
                f"{source}: tensor {name.openai} has shape {got}, but hparams.json asks for {wanted}; "
                "take both from one checkpoint"
            )
        weights[name.ours] = (tensor.squeeze(0).T if name.linear else tensor).contiguous()
    if variables:
        raise UserError(f"{source}: tensor {min(variables)} belongs to no part of a GPT-2 of this size; fetch it again")
    return assign_weights(model, weights, source)


def to_openai(model: GPTModel) -> dict[str, np.ndarray]:
    """Return a model's weights as OpenAI's variables. Its head must be tied, its attention must have biases."""
    assert model.config.tied_head and model.config.qkv_bias
    weights = model.state_dict()
    return {
        name.openai: (weights[name.ours].T[None] if name.linear else weights[name.ours]).contiguous().numpy()
        for name in tensor_names(model.config.n_layers)
    }


def hparams(config: GPTConfig) -> dict[str, int]:
    """Return OpenAI's hparams.json for a configuration."""
    return {
        "n_vocab": config.vocab_size,
        "n_ctx": config.context_length,
        "n_embd": config.emb_dim,
        "n_head": config.n_heads,
        "n_layer": config.n_layers,
    }


def _read_config(folder: Path, size: SizeName) -> GPTConfig:
    path = folder / "hparams.json"
    found = read_json(path)
    try:
        config = gpt2_config(size, found["n_vocab"], found["n_ctx"])
    except KeyError as error:
        raise UserError(f"{path}: {error} is missing; fetch the file again") from None
    except ValidationError as error:
        raise UserError(f"{path}: {error.errors()[0]['msg']}; fetch the file again") from None
    if found != hparams(config):
        raise UserError(f"{path} says {found}, but size {size} is {SIZES[size].model_dump()}; correct gpt2_sizes")
    return config


def _read_in_own_process(prefix: Path, output: Path) -> None:
    command = [sys.executable, "-m", tensorflow_reader.__name__, str(prefix), str(output)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode == tensorflow_reader.REFUSED:
        raise UserError(done.stderr.strip().splitlines()[-1])
    if done.returncode:
        raise RuntimeError(f"reading {prefix} with TensorFlow failed:\n{done.stderr}")
