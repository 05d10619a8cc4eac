"""config.json of Hugging Face's GPT-2, Llama and Qwen2 folders, from our configurations and back."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from scratchlm.formats.names import LLAMA, architecture
from scratchlm.formats.native import first_mistake
from scratchlm.model.config import GPTConfig
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_json

# Settings of transformers under which its model computes what ours does; the first is what an absent one means
_FIXED: dict[str, dict[str, tuple[Any, ...]]] = {
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "layer_norm_epsilon": (1e-5,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    "llama": {"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,)},
    "qwen2": {"hidden_act": ("silu",), "use_sliding_window": (False,)},
}


# Our names for the settings of scaled rope, and theirs
_ROPE_SCALING = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_context_length": "original_max_position_embeddings",
}


def huggingface_config(config: GPTConfig, end_token_id: int, begin_ids: Sequence[int] = ()) -> dict[str, object]:
    """Return the content of their config.json for one of our configurations. Raises UserError if they have none."""
    shared: dict[str, object] = {
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied_head,
        "bos_token_id": [*begin_ids, end_token_id][0],
        "eos_token_id": end_token_id,
    }
    kind = architecture(config)
    if kind == "gpt2":
        return shared | {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "activation_function": "gelu_new",
            "n_positions": config.context_length,
            "n_embd": config.emb_dim,
            "n_layer": config.n_layers,
            "n_head": config.n_heads,
            "attn_pdrop": config.dropout,
            "embd_pdrop": config.dropout,
            "resid_pdrop": config.dropout,
            "layer_norm_epsilon": 1e-5,
        }
    rope: dict[str, object] = {"rope_type": "default"}
    if config.rope_scaling:
        scaling = config.rope_scaling.model_dump()
        rope = {"rope_type": "llama3"} | {theirs: scaling[ours] for ours, theirs in _ROPE_SCALING.items()}
        shared["rope_scaling"] = rope  # of versions below 5
    fixed = {key: values[0] for key, values in _FIXED[kind].items()}
    return (shared | fixed) | {
        "architectures": [{"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[kind]],
        "model_type": kind,
        "max_position_embeddings": config.context_length,
        "hidden_size": config.emb_dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "rope_theta": config.rope_base,  # of versions below 5
        "rope_parameters": rope | {"rope_theta": config.rope_base},
        "rms_norm_eps": config.rms_epsilon,
        "attention_dropout": 0.0,
    }


def read_config(folder: Path) -> GPTConfig:
    """Return our configuration for the model of a folder. Raises UserError naming the file and what does not fit."""
    path = folder / "config.json"
    theirs = read_json(path)
    kind = theirs.get("model_type")
    if kind not in tuple(_FIXED):  # it may be a list
        raise UserError(f"{path}: model_type is {kind!r}; only gpt2, llama and qwen2 can be read")
    for key, values in _FIXED[kind].items():
        if theirs.get(key, values[0]) not in values:
            allowed = " or ".join(map(repr, values))
            raise UserError(f"{path}: {key} is {theirs[key]!r}; only models with {allowed} can be read")
    try:
        return GPTConfig.model_validate(_gpt2(theirs) if kind == "gpt2" else _llama(theirs, path))
    except KeyError as error:
        raise UserError(f"{path}: {error} is missing; export the model again") from None
    except ValidationError as error:
        raise UserError(f"{path}: {first_mistake(error).removeprefix(': ')}; export the model again") from None


def _gpt2(theirs: Mapping[str, Any]) -> dict[str, Any]:
    return {
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


def _llama(theirs: Mapping[str, Any], path: Path) -> dict[str, Any]:
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else None
    if kind not in ("default", "llama3"):
        raise UserError(f"{path}: its rope is scaled ({rope}); only models with plain rope or Llama 3.1's can be read")
    return {
        "vocab_size": theirs["vocab_size"],
        "context_length": theirs["max_position_embeddings"],
        "n_layers": theirs["num_hidden_layers"],
        "n_heads": theirs["num_attention_heads"],
        "n_kv_heads": theirs.get("num_key_value_heads"),
        "emb_dim": theirs["hidden_size"],
        "head_dim": theirs.get("head_dim"),
        "hidden_dim": theirs["intermediate_size"],
        "rope_base": rope.get("rope_theta", theirs.get("rope_theta", 10_000.0)),
        "rope_scaling": {ours: rope[name] for ours, name in _ROPE_SCALING.items()} if kind == "llama3" else None,
        "tied_head": theirs.get("tie_word_embeddings", False),
        "rms_epsilon": theirs.get("rms_norm_eps", 1e-6),
        **LLAMA,
        "qkv_bias": theirs["model_type"] == "qwen2",
    }
