"""Hugging Face's GPT-2 folders, written and read: config.json, model.safetensors and tokenizer files."""

from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from scratchlm.data.tokenizer import END_OF_TEXT, BytePairTokenizer, read_merges
from scratchlm.formats.names import HEAD, tensor_names
from scratchlm.formats.native import WEIGHTS_FILE, convert_weights, read_weights
from scratchlm.model.config import GPTConfig
from scratchlm.model.gpt import GPTModel
from scratchlm.run.errors import UserError
from scratchlm.run.files import atomic_folder, read_json, write_json

_PREFIX = "transformer."
# The causal mask, which older versions store beside the weights
_BUFFERS = (".attn.bias", ".attn.masked_bias")
# Settings of transformers under which its model computes what ours does; all are its defaults
_FIXED = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def save_huggingface(folder: Path, model: GPTModel, tokenizer_folder: Path, tokenizer: BytePairTokenizer) -> None:
    """Write a folder that AutoModelForCausalLM and AutoTokenizer load.

    Query, key and value biases are zeros where the model has none: the format requires them.
    """
    config, ours = model.config, model.state_dict()
    weights = {}
    for name in tensor_names(config.n_layers):
        tensor = ours[name.ours] if name.ours in ours else torch.zeros(3 * config.emb_dim)
        weights[_PREFIX + name.huggingface] = (tensor.T if name.linear else tensor).contiguous()
    if not config.tied_head:
        weights[HEAD.huggingface] = ours[HEAD.ours].contiguous()
    with atomic_folder(folder) as temporary:
        save_file(weights, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
        write_json(temporary / "config.json", huggingface_config(config, tokenizer.end_token_id))
        (temporary / "vocab.json").write_bytes((tokenizer_folder / "encoder.json").read_bytes())
        (temporary / "merges.txt").write_bytes((tokenizer_folder / "vocab.bpe").read_bytes())
        special = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
        own = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": config.context_length, "add_prefix_space": False}
        write_json(temporary / "tokenizer_config.json", special | own)


def load_huggingface(folder: Path) -> GPTModel:
    """Return the GPT-2 of a Hugging Face folder, in float32.

    Raises UserError naming the file and the first tensor that does not fit.
    """
    config = _read_config(folder)
    path = folder / WEIGHTS_FILE
    stored = {name.removeprefix(_PREFIX): tensor for name, tensor in read_weights(folder).items()}
    stored = {name: tensor.float() for name, tensor in stored.items() if not name.endswith(_BUFFERS)}
    if config.tied_head:
        stored.pop(HEAD.huggingface, None)
    return convert_weights(config, stored, "huggingface", str(path))


def load_huggingface_tokenizer(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the encoder and the merges of a GPT-2 tokenizer folder (vocab.json, merges.txt).

    Raises UserError naming the file that is missing, or if the two files disagree.
    """
    encoder, merges = read_json(folder / "vocab.json"), read_merges(folder / "merges.txt")
    BytePairTokenizer(encoder, merges)
    return encoder, merges


def huggingface_config(config: GPTConfig, end_token_id: int) -> dict[str, object]:
    """Return the content of their config.json for one of our configurations."""
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


def _read_config(folder: Path) -> GPTConfig:
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
