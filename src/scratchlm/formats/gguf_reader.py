"""Models in GGUF files, quantised or not: what llama.cpp and Ollama run becomes a model of ours."""

import math
from contextlib import suppress
from typing import Any, get_args

import gguf
import numpy as np
import torch
from pydantic import ValidationError

from scratchlm.formats.conversion import convert_weights
from scratchlm.formats.gguf import ROPE_FACTORS, turned_heads
from scratchlm.formats.gguf_file import GGUFFile
from scratchlm.formats.names import HEAD, LLAMA, Architecture
from scratchlm.formats.native import first_mistake
from scratchlm.model.config import GPTConfig, RopeScaling
from scratchlm.model.gpt import GPTModel
from scratchlm.model.variants import rope_factors, rope_frequencies
from scratchlm.run.errors import UserError

_LLAMA3: dict[str, Any] = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context_length": 8192}


def load_gguf(file: GGUFFile) -> GPTModel:
    """Return the GPT-2, Llama or Qwen2 of a file, quantised weights as the float32 numbers that they stand for.

    Raises UserError naming the file and what cannot be read.
    """
    config, weights = _read_config(file), {}
    for tensor in file.tensors:
        numbers = _numbers(file, tensor)
        if tensor.name == ROPE_FACTORS and config.position == "rope":
            config = config.model_copy(update={"rope_scaling": _rope_scaling(file, config, numbers)})
            continue
        n_heads = turned_heads(tensor.name, config)
        if n_heads and numbers.shape == (n_heads * config.head_dim, config.emb_dim):
            numbers = numbers.reshape(n_heads, -1, 2, config.emb_dim).swapaxes(1, 2).reshape(numbers.shape)
        weights[tensor.name] = torch.from_numpy(numbers)
    return convert_weights(config, weights, "gguf", str(file.path))


def _numbers(file: GGUFFile, tensor: gguf.ReaderTensor) -> np.ndarray:
    """Return a tensor, dequantised, in float32."""
    name = tensor.tensor_type.name
    if name not in ("F32", "F16") and not hasattr(gguf.quants, name):  # it has a class for each other type
        kind = f"is of type {name}, which the package gguf cannot read"
        raise UserError(f"{file.path}: tensor {tensor.name} {kind}; take a file of another type")
    return gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)


def _rope_scaling(file: GGUFFile, config: GPTConfig, factors: np.ndarray) -> RopeScaling:
    """Return the settings that give these factors, (D / 2,). A file does not store them; Llama 3.1 to 3.3 share all.

    The exception is `factor`, the largest of the factors.
    """
    frequencies = rope_frequencies(config.head_dim, config.rope_base)
    with suppress(ValidationError):
        scaling = RopeScaling(factor=float(factors.max(initial=0.0)), **_LLAMA3)
        expected = rope_factors(frequencies, scaling).float().numpy()
        if factors.shape == expected.shape and np.allclose(factors, expected, rtol=1e-4, atol=0.0):
            return scaling
    raise UserError(f"{file.path}: its rope is scaled, but not as in Llama 3.1; import its Hugging Face folder")


def _read_config(file: GGUFFile) -> GPTConfig:
    values, names = file.values, {tensor.name for tensor in file.tensors}
    kind = values.get("general.architecture")
    if kind not in get_args(Architecture):
        raise UserError(f"{file.path}: a model of architecture {kind!r}; only gpt2, llama and qwen2 can be read")
    if f"{kind}.rope.scaling.type" in values:
        raise UserError(f"{file.path}: its rope is scaled; only models with plain rope or Llama 3.1's can be read")
    tokens = values.get("tokenizer.ggml.tokens")
    found = {
        "vocab_size": len(tokens) if isinstance(tokens, list) else None,
        "context_length": values.get(f"{kind}.context_length"),
        "n_layers": values.get(f"{kind}.block_count"),
        "n_heads": values.get(f"{kind}.attention.head_count"),
        "emb_dim": values.get(f"{kind}.embedding_length"),
        "hidden_dim": values.get(f"{kind}.feed_forward_length"),
        "tied_head": HEAD.gguf not in names,
    }
    name = f"{kind}.attention.layer_norm{'' if kind == 'gpt2' else '_rms'}_epsilon"
    epsilon = values.get(name)
    if not isinstance(epsilon, float) or (kind == "gpt2" and not math.isclose(epsilon, 1e-5, rel_tol=1e-3)):
        raise UserError(
            f"{file.path}: {name} is {epsilon}; only GPT-2 with 1e-05 and Llama and Qwen2 with any can be read"
        )
    if kind == "gpt2":
        found |= {"dropout": 0.0, "qkv_bias": True, "initialisation": "gpt2", "attention": "sdpa"}
    else:
        found |= {
            "n_kv_heads": values.get(f"{kind}.attention.head_count_kv"),
            "head_dim": values.get(f"{kind}.attention.key_length"),
            "rope_base": values.get(f"{kind}.rope.freq_base", 10_000.0),
            "rms_epsilon": float(f"{epsilon:.6g}"),  # a float32, which has no 1e-05
            **LLAMA,
            "qkv_bias": kind == "qwen2",
        }
    try:
        return GPTConfig.model_validate(found)
    except ValidationError as error:
        raise UserError(f"{file.path}: {first_mistake(error)}; fetch the file again") from None
