"""Hugging Face's GPT-2 folders, written and read: config.json, model.safetensors and tokenizer files."""

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from scratchlm.data.tokenizer import END_OF_TEXT, BytePairTokenizer, read_merges
from scratchlm.formats.names import EMBEDDING, HEAD, check_gpt2, tensor_names
from scratchlm.formats.native import WEIGHTS_FILE, convert_weights, first_mistake, read_weights
from scratchlm.model.config import GPTConfig
from scratchlm.model.gpt import GPTModel
from scratchlm.run.errors import UserError
from scratchlm.run.files import atomic_folder, damaged, read_json, write_json

_PREFIX = "transformer."
# The causal mask, which older versions store beside the weights
_BUFFERS = (".attn.bias", ".attn.masked_bias")
# Settings of transformers under which its model computes what ours does; the first is its default
_FIXED: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}


def save_huggingface(
    folder: Path, model: GPTModel, tokenizer_folder: Path, tokenizer: BytePairTokenizer, template: str | None = None
) -> None:
    """Write a folder that AutoModelForCausalLM and AutoTokenizer load. template: for apply_chat_template.

    Query, key and value biases are zeros where the model has none: the format requires them.
    """
    check_gpt2(model.config)
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
        chat = {"chat_template": template} if template else {}
        write_json(temporary / "tokenizer_config.json", special | own | chat)


def load_huggingface(folder: Path, vocab_size: int | None = None) -> GPTModel:
    """Return the GPT-2 of a Hugging Face folder, in float32.

    vocab_size: the tokenizer's; rows of the embedding beyond it, which some add for speed, are left out.
    Raises UserError naming the file and the first tensor that does not fit.
    """
    config = _read_config(folder)
    stored = {name.removeprefix(_PREFIX): tensor for name, tensor in _read_weights(folder).items()}
    stored = {name: tensor for name, tensor in stored.items() if not name.endswith(_BUFFERS)}
    embedding, head = EMBEDDING.huggingface, HEAD.huggingface
    if config.tied_head and head in stored:  # transformers unties a head that differs
        is_tied = torch.equal(stored.setdefault(embedding, stored[head]), stored[head])
        config = config.model_copy(update={"tied_head": is_tied})
        if is_tied:
            del stored[head]
    if vocab_size is not None and vocab_size != config.vocab_size:
        if vocab_size > config.vocab_size:
            counts = f"the model has {config.vocab_size:,} tokens, its tokenizer {vocab_size:,}"
            raise UserError(f"{folder}: {counts}; take both from one model")
        for name in {embedding, head} & set(stored):
            if len(stored[name]) == config.vocab_size:  # else convert_weights names it
                stored[name] = stored[name][:vocab_size]
        config = config.model_copy(update={"vocab_size": vocab_size})
    source = folder / WEIGHTS_FILE
    return convert_weights(config, stored, "huggingface", str(source if source.exists() else folder))


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of model.safetensors, or of the shards in its place."""
    shards = sorted(folder.glob("model-*-of-*.safetensors"))
    if (folder / WEIGHTS_FILE).exists() or not shards:
        if not (folder / WEIGHTS_FILE).exists() and (found := sorted(folder.glob("*.bin"))):
            raise UserError(
                f"{found[0]}: weights in a pickle, which can run code and is not read; load them with transformers and "
                "write them with save_pretrained, as safetensors"
            )
        return read_weights(folder / WEIGHTS_FILE)
    return {name: tensor for shard in shards for name, tensor in read_weights(shard).items()}


def load_huggingface_tokenizer(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the encoder and the merges of a GPT-2 tokenizer folder: vocab.json and merges.txt, or tokenizer.json.

    Tokens that were added after the merges, other than the end token, are left out: text never becomes one.
    Raises UserError naming the file that is missing, or if vocabulary and merges disagree.
    """
    settings = folder / "tokenizer_config.json"
    if settings.exists() and read_json(settings).get("add_prefix_space"):
        raise UserError(f"{settings}: add_prefix_space is true; only tokenizers without it can be read")
    if not (folder / "vocab.json").exists() and (folder / "tokenizer.json").exists():
        encoder, merges = _read_tokenizer(folder / "tokenizer.json")
    else:
        encoder, merges = read_json(folder / "vocab.json"), read_merges(folder / "merges.txt")
    try:
        BytePairTokenizer(encoder, merges)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    return encoder, merges


def _read_tokenizer(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the encoder and the merges of a tokenizer.json. Source: tokenizers, models.BPE."""
    theirs = read_json(path)
    try:
        model, before = theirs["model"], theirs["pre_tokenizer"]
        encoder = dict(model["vocab"])
        merges: list[Any] = [
            tuple(map(str, pair.split(" ") if isinstance(pair, str) else pair)) for pair in model["merges"]
        ]
        added = {token["content"]: token["id"] for token in theirs["added_tokens"]}
        kinds = (model["type"], before["type"], before["add_prefix_space"], theirs["normalizer"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(path, f"not the file of a byte-pair tokenizer ({error!r})") from None
    if kinds != ("BPE", "ByteLevel", False, None):
        raise UserError(f"{path}: not GPT-2's kind of tokenizer; only byte-level BPE without a normalizer can be read")
    return encoder | {END_OF_TEXT: added[END_OF_TEXT]} if END_OF_TEXT in added else encoder, merges


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
    for key, values in _FIXED.items():
        if theirs.get(key, values[0]) not in values:
            allowed = " or ".join(map(repr, values))
            raise UserError(f"{path}: {key} is {theirs[key]!r}; only models with {allowed} can be read")
    try:
        return GPTConfig.model_validate(
            {
                "vocab_size": theirs["vocab_size"],
                "context_length": theirs["n_positions"],
                "n_layers": theirs["n_layer"],
                "n_heads": theirs["n_head"],
                "emb_dim": theirs["n_embd"],
                "dropout": theirs.get("resid_pdrop", 0.0),
                "qkv_bias": True,
                "tied_head": theirs.get("tie_word_embeddings", True),
                "initialisation": "gpt2",
                "attention": "sdpa",
            }
        )
    except KeyError as error:
        raise UserError(f"{path}: {error} is missing; export the model again") from None
    except ValidationError as error:
        raise UserError(f"{path}: {first_mistake(error)}; export the model again") from None
