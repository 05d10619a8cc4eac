"""OpenAI's GPT-2 checkpoints (TensorFlow) to our model and back to their layout.

Source of the layout: github.com/openai/gpt-2, src/model.py.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from scratchlm.formats import tensorflow_reader
from scratchlm.formats.native import assign_weights, shapes_only
from scratchlm.model.config import SIZES, GPTConfig, SizeName, gpt2_config
from scratchlm.model.gpt import GPTModel
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_json

PREFIX = "model.ckpt"


class Mapping(NamedTuple):
    """One tensor: its name there, its name here, and how its layout changes."""

    theirs: str
    ours: str
    kind: str


# Their linear layers are convolutions of width one, (1, C_in, C_out); torch's are (C_out, C_in).
_TO_OURS: dict[str, Callable[[Tensor], Tensor]] = {
    "same": lambda tensor: tensor,
    "linear": lambda tensor: tensor.squeeze(0).T,
}
_TO_THEIRS: dict[str, Callable[[Tensor], Tensor]] = {
    "same": lambda tensor: tensor,
    "linear": lambda tensor: tensor.T[None],
}
_WHOLE_MODEL = [
    ("model/wte", "token_embedding.weight", "same"),
    ("model/wpe", "position_embedding.weight", "same"),
    ("model/ln_f/g", "final_norm.scale", "same"),
    ("model/ln_f/b", "final_norm.shift", "same"),
]
_EACH_BLOCK = [
    ("attn/c_attn/w", "attention.qkv.weight", "linear"),
    ("attn/c_attn/b", "attention.qkv.bias", "same"),
    ("attn/c_proj/w", "attention.projection.weight", "linear"),
    ("attn/c_proj/b", "attention.projection.bias", "same"),
    ("mlp/c_fc/w", "feed_forward.expansion.weight", "linear"),
    ("mlp/c_fc/b", "feed_forward.expansion.bias", "same"),
    ("mlp/c_proj/w", "feed_forward.projection.weight", "linear"),
    ("mlp/c_proj/b", "feed_forward.projection.bias", "same"),
    ("ln_1/g", "norm1.scale", "same"),
    ("ln_1/b", "norm1.shift", "same"),
    ("ln_2/g", "norm2.scale", "same"),
    ("ln_2/b", "norm2.shift", "same"),
]


def tensor_mappings(n_layers: int) -> Iterator[Mapping]:
    """Every tensor of a checkpoint, once. The head is tied, so it has none of its own."""
    for row in _WHOLE_MODEL:
        yield Mapping(*row)
    for layer in range(n_layers):
        for theirs, ours, kind in _EACH_BLOCK:
            yield Mapping(f"model/h{layer}/{theirs}", f"blocks.{layer}.{ours}", kind)


def load_openai(folder: Path, size: SizeName, scratch: Path) -> tuple[GPTModel, int]:
    """The GPT-2 in a checkpoint folder (hparams.json, model.ckpt.*), and how many tensors it took.

    scratch: an empty folder with room for a copy of the weights.

    Raises UserError naming the file and the tensor if the checkpoint is not of this size, is damaged,
    or has a missing, extra or misshapen tensor.
    """
    config = _config(folder, size)
    arrays = scratch / "variables.safetensors"
    _read_in_own_process(folder / PREFIX, arrays)
    variables = load_file(arrays)
    n_variables = len(variables)
    return from_openai(variables, config, str(folder)), n_variables


def from_openai(variables: dict[str, Tensor], config: GPTConfig, source: str) -> GPTModel:
    """A model from OpenAI's variables by name; each is used exactly once. Errors as load_openai, naming `source`.

    `variables` is emptied on the way, so that a large model is never held twice.
    """
    with shapes_only():
        model = GPTModel(config)
    expected = model.state_dict()
    weights = {}
    for mapping in tensor_mappings(config.n_layers):
        if mapping.theirs not in variables:
            raise UserError(f"{source}: tensor {mapping.theirs} is missing; fetch the whole checkpoint again")
        wanted = tuple(_TO_THEIRS[mapping.kind](expected[mapping.ours]).shape)
        got = tuple(variables[mapping.theirs].shape)
        if got != wanted:
            raise UserError(
                f"{source}: tensor {mapping.theirs} has shape {got}, but hparams.json asks for {wanted}; "
                "take both from one checkpoint"
            )
        weights[mapping.ours] = _TO_OURS[mapping.kind](variables.pop(mapping.theirs)).contiguous()
    if extra := sorted(variables):
        raise UserError(f"{source}: tensor {extra[0]} belongs to no part of a GPT-2 of this size; fetch it again")
    return assign_weights(model, weights, source)


def to_openai(model: GPTModel) -> dict[str, np.ndarray]:
    """OpenAI's variables of a model whose head is tied and whose projections have biases."""
    assert model.config.tied_head and model.config.qkv_bias
    weights = model.state_dict()
    return {
        mapping.theirs: _TO_THEIRS[mapping.kind](weights[mapping.ours]).contiguous().numpy()
        for mapping in tensor_mappings(model.config.n_layers)
    }


def hparams(config: GPTConfig) -> dict[str, int]:
    """OpenAI's hparams.json of a configuration."""
    return {
        "n_vocab": config.vocab_size,
        "n_ctx": config.context_length,
        "n_embd": config.emb_dim,
        "n_head": config.n_heads,
        "n_layer": config.n_layers,
    }


def _config(folder: Path, size: SizeName) -> GPTConfig:
    path = folder / "hparams.json"
    found = read_json(path)
    try:
        config = gpt2_config(size, found["n_vocab"], found["n_ctx"])
    except KeyError as error:
        raise UserError(f"{path}: {error} is missing; fetch the file again") from None
    except ValidationError as error:
        raise UserError(f"{path}: {error.errors()[0]['msg']}; fetch the file again") from None
    if found != hparams(config):
        raise UserError(f"{path} says {found}, but size {size} is {SIZES[size]._asdict()}; correct gpt2_sizes")
    return config


def _read_in_own_process(prefix: Path, output: Path) -> None:
    command = [sys.executable, "-m", tensorflow_reader.__name__, str(prefix), str(output)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode == tensorflow_reader.REFUSED:
        raise UserError(done.stderr.strip().splitlines()[-1])
    if done.returncode:
        raise RuntimeError(f"reading {prefix} with TensorFlow failed:\n{done.stderr}")
