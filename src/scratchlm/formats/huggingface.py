"""Our models as Hugging Face GPT-2 folders, both ways: config.json, model.safetensors, tokenizer files.

Source of the layout: transformers, models/gpt2. Their linear layers are Conv1D, (C_in, C_out).
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from scratchlm.data.tokenizer import END_OF_TEXT, BytePairTokenizer, read_merges
from scratchlm.formats.native import WEIGHTS_FILE, assign_weights, read_weights, shapes_only
from scratchlm.model.config import GPTConfig
from scratchlm.model.gpt import GPTModel
from scratchlm.run.errors import UserError
from scratchlm.run.files import atomic_folder, read_json, write_json

_PREFIX = "transformer."
_WHOLE_MODEL = [
    ("wte.weight", "token_embedding.weight", False),
    ("wpe.weight", "position_embedding.weight", False),
    ("ln_f.weight", "final_norm.scale", False),
    ("ln_f.bias", "final_norm.shift", False),
]
_EACH_BLOCK = [
    ("ln_1.weight", "norm1.scale", False),
    ("ln_1.bias", "norm1.shift", False),
    ("attn.c_attn.weight", "attention.qkv.weight", True),
    ("attn.c_attn.bias", "attention.qkv.bias", False),
    ("attn.c_proj.weight", "attention.projection.weight", True),
    ("attn.c_proj.bias", "attention.projection.bias", False),
    ("ln_2.weight", "norm2.scale", False),
    ("ln_2.bias", "norm2.shift", False),
    ("mlp.c_fc.weight", "feed_forward.expansion.weight", True),
    ("mlp.c_fc.bias", "feed_forward.expansion.bias", False),
    ("mlp.c_proj.weight", "feed_forward.projection.weight", True),
    ("mlp.c_proj.bias", "feed_forward.projection.bias", False),
]
# Written by some versions, the causal mask and not a weight
_BUFFERS = (".attn.bias", ".attn.masked_bias")
# What our model computes; transformers' own defaults
_FIXED = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def tensor_names(n_layers: int) -> Iterator[tuple[str, str, bool]]:
    """(their name without prefix, our name, whether the matrix is transposed), every tensor once."""
    yield from _WHOLE_MODEL
    for layer in range(n_layers):
        for theirs, ours, transposed in _EACH_BLOCK:
            yield f"h.{layer}.{theirs}", f"blocks.{layer}.{ours}", transposed


def save_huggingface(folder: Path, model: GPTModel, tokenizer_folder: Path, tokenizer: BytePairTokenizer) -> None:
    """Write a folder that AutoModelForCausalLM and AutoTokenizer load.

    A model without query, key and value biases gets zeros: GPT-2's layout always has them.
    """
    config, ours = model.config, model.state_dict()
    weights = {}
    for theirs, name, transposed in tensor_names(config.n_layers):
        tensor = ours[name] if name in ours else torch.zeros(3 * config.emb_dim)
        weights[_PREFIX + theirs] = (tensor.T if transposed else tensor).contiguous()
    if not config.tied_head:
        weights["lm_head.weight"] = ours["head.weight"].contiguous()
    with atomic_folder(folder) as temporary:
        save_file(weights, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
        write_json(temporary / "config.json", huggingface_config(config, tokenizer.end_token_id))
        (temporary / "vocab.json").write_bytes((tokenizer_folder / "encoder.json").read_bytes())
        (temporary / "merges.txt").write_bytes((tokenizer_folder / "vocab.bpe").read_bytes())
        special = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
        own = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": config.context_length, "add_prefix_space": False}
        write_json(temporary / "tokenizer_config.json", special | own)


def load_huggingface(folder: Path) -> GPTModel:
    """The GPT-2 of a Hugging Face folder. Raises UserError naming the file and the first tensor that does not fit."""
    config = _config(folder)
    path = folder / WEIGHTS_FILE
    theirs = {name.removeprefix(_PREFIX): tensor for name, tensor in read_weights(folder).items()}
    # our weights are float32, whatever precision they were stored in
    theirs = {name: tensor.float() for name, tensor in theirs.items() if not name.endswith(_BUFFERS)}
    with shapes_only():
        model = GPTModel(config)
    weights: dict[str, Tensor] = {}
    for name, ours, transposed in tensor_names(config.n_layers):
        if name not in theirs:
            raise UserError(f"{path}: tensor {name} is missing; export the model again")
        tensor = theirs.pop(name)
        weights[ours] = tensor.T.contiguous() if transposed else tensor
    head = theirs.pop("lm_head.weight", None)
    if not config.tied_head and head is not None:
        weights["head.weight"] = head
    if theirs:
        raise UserError(f"{path}: tensor {min(theirs)} belongs to no part of a GPT-2; export the model again")
    return assign_weights(model, weights, str(path))


def load_huggingface_tokenizer(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """encoder and merges of a GPT-2 tokenizer folder (vocab.json, merges.txt).

    Raises UserError naming the file that is missing, or if the two do not belong together.
    """
    encoder, merges = read_json(folder / "vocab.json"), read_merges(folder / "merges.txt")
    BytePairTokenizer(encoder, merges)
    return encoder, merges


def huggingface_config(config: GPTConfig, end_token_id: int) -> dict[str, object]:
    """Their config.json of one of our configurations."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_embd": config.emb_dim,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "attn_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": config.tied_head,
        "bos_token_id": end_token_id,
        "eos_token_id": end_token_id,
    }


def _config(folder: Path) -> GPTConfig:
    path = folder / "config.json"
    theirs = read_json(path)
    if theirs.get("model_type") != "gpt2":
        raise UserError(f"{path}: model_type is {theirs.get('model_type')!r}; only gpt2 can be read")
    for key, value in _FIXED.items():
        if theirs.get(key, value) != value:
            raise UserError(f"{path}: {key} is {theirs[key]!r}; only models with {value!r} can be read")
    try:
        return GPTConfig(
            vocab_size=theirs["vocab_size"],
            context_length=theirs["n_positions"],
            n_layers=theirs["n_layer"],
            n_heads=theirs["n_head"],
            emb_dim=theirs["n_embd"],
            dropout=theirs.get("resid_pdrop", 0.0),
            qkv_bias=True,
            tied_head=theirs.get("tie_word_embeddings", True),
            initialisation="gpt2",
            attention="sdpa",
        )
    except KeyError as error:
        raise UserError(f"{path}: {error} is missing; export the model again") from None
    except ValidationError as error:
        raise UserError(f"{path}: {error.errors()[0]['msg']}; export the model again") from None
