"""OpenAI's GPT-2 checkpoints (TensorFlow): read into our model, and its weights written back as their variables."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from safetensors.torch import load_file

from scratchlm.formats import tensorflow_reader
from scratchlm.formats.conversion import convert_weights, their_tensors
from scratchlm.formats.native import first_mistake
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
    return convert_weights(config, variables, "openai", str(folder)), n_variables


def to_openai(model: GPTModel) -> dict[str, np.ndarray]:
    """Return a model's weights as OpenAI's variables. Its head must be tied, its attention must have biases."""
    assert model.config.tied_head and model.config.qkv_bias
    return {name: tensor.numpy() for name, tensor in their_tensors(model, "openai")}


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
        raise UserError(f"{path}: {first_mistake(error)}; fetch the file again") from None
    if found != hparams(config):
        raise UserError(
            f"{path} says {found}, but size {size} is {SIZES[size].model_dump(exclude_none=True)}; correct gpt2_sizes"
        )
    return config


def _read_in_own_process(prefix: Path, output: Path) -> None:
    command = [sys.executable, "-m", tensorflow_reader.__name__, str(prefix), str(output)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode == tensorflow_reader.REFUSED:
        raise UserError(done.stderr.strip().splitlines()[-1])
    if done.returncode:
        raise RuntimeError(f"reading {prefix} with TensorFlow failed:\n{done.stderr}")
