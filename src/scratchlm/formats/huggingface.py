"""Hugging Face's folders of GPT-2, Llama and Qwen2, written and read: config, model.safetensors, tokenizer files."""

from collections.abc import Mapping
from pathlib import Path

import torch

from scratchlm.data.byte_pairs import BytePairTokenizer
from scratchlm.formats.conversion import convert_weights, their_tensors
from scratchlm.formats.huggingface_config import huggingface_config, read_config
from scratchlm.formats.huggingface_tokenizer import save_huggingface_tokenizer
from scratchlm.formats.names import HEAD, WEIGHT_PREFIXES, architecture, names_of
from scratchlm.formats.native import WEIGHTS_FILE, read_weights, write_weights
from scratchlm.formats.peft import CARD_FILE, FOR_TORCH, merge_peft, pickled
from scratchlm.model.config import GPTConfig
from scratchlm.model.gpt import GPTModel
from scratchlm.run.errors import UserError
from scratchlm.run.files import atomic_folder, damaged, read_json, write_json, write_text

_BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")  # which older versions store beside the weights


def save_huggingface(
    folder: Path, model: GPTModel, tokenizer: BytePairTokenizer, template: str | None = None, card: str | None = None
) -> None:
    """Write a folder that AutoModelForCausalLM and AutoTokenizer load; `generate` decodes greedily by default.

    template: for apply_chat_template. card: the folder's README.md.
    Raises UserError if transformers has no such models.
    """
    config, end = model.config, tokenizer.end_token_id
    prefix = WEIGHT_PREFIXES[architecture(config)]
    weights = {
        name if name == HEAD.huggingface else prefix + name: tensor
        for name, tensor in their_tensors(model, "huggingface")
    }
    ids = {"bos_token_id": [*tokenizer.begin_ids, end][0], "eos_token_id": end, "pad_token_id": end}
    with atomic_folder(folder) as temporary:
        write_folder(temporary, weights, huggingface_config(config, end, tokenizer.begin_ids), card)
        write_json(
            temporary / "generation_config.json", ids | {"max_length": config.context_length, "do_sample": False}
        )
        save_huggingface_tokenizer(temporary, tokenizer, config.context_length, template)


def write_folder(
    folder: Path, weights: Mapping[str, torch.Tensor], config: dict[str, object], card: str | None
) -> None:
    """Write model.safetensors, config.json and README.md into a folder."""
    write_weights(folder / WEIGHTS_FILE, weights, FOR_TORCH)
    write_json(folder / "config.json", config)
    if card:
        write_text(folder / CARD_FILE, card)


def load_huggingface(folder: Path, vocab_size: int | None = None, adapter: Path | None = None) -> GPTModel:
    """Return the GPT-2, Llama or Qwen2 of a Hugging Face folder, in float32.

    vocab_size: the tokenizer's; rows of the embedding beyond it, which some add for speed, are left out.
    adapter: a folder of PEFT, whose update is added to the weights.
    Raises UserError naming the file and the first tensor that does not fit.
    """
    config, stored = read_tensors(folder, adapter)
    embedding, head = next(names_of(config)).huggingface, HEAD.huggingface
    if config.tied_head and head in stored:  # transformers unties a head that differs
        is_tied = torch.equal(stored.setdefault(embedding, stored[head]), stored[head])
        config = config.model_copy(update={"tied_head": is_tied})
        if is_tied:
            del stored[head]
    return gpt_of_tensors(folder, config, stored, vocab_size)


def read_tensors(folder: Path, adapter: Path | None) -> tuple[GPTConfig, dict[str, torch.Tensor]]:
    """Return the configuration and the tensors of a folder, an adapter merged in, without the prefix of their names.

    Raises UserError naming the file that is damaged, or does not fit.
    """
    config = read_config(folder)
    prefix = WEIGHT_PREFIXES[architecture(config)]
    stored = {name.removeprefix(prefix): tensor for name, tensor in _read_weights(folder).items()}
    stored = {name: tensor for name, tensor in stored.items() if not name.endswith(_BUFFERS)}
    if adapter:
        merge_peft(adapter, stored, prefix)
    return config, stored


def gpt_of_tensors(
    folder: Path, config: GPTConfig, stored: dict[str, torch.Tensor], vocab_size: int | None
) -> GPTModel:
    """Return the model of read_tensors. vocab_size and errors as load_huggingface."""
    if vocab_size is not None and vocab_size != config.vocab_size:
        if vocab_size > config.vocab_size:
            counts = f"the model has {config.vocab_size:,} tokens, its tokenizer {vocab_size:,}"
            raise UserError(f"{folder}: {counts}; take both from one model")
        for name in {next(names_of(config)).huggingface, HEAD.huggingface} & set(stored):
            if len(stored[name]) == config.vocab_size:  # else convert_weights names it
                stored[name] = stored[name][:vocab_size]
        config = config.model_copy(update={"vocab_size": vocab_size})
    source = folder / WEIGHTS_FILE
    return convert_weights(config, stored, "huggingface", str(source if source.exists() else folder))


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of model.safetensors, or of the shards in its place."""
    whole = folder / WEIGHTS_FILE
    shards = [] if whole.exists() else _shards(folder)
    if not (shards or whole.exists()) and (found := sorted(folder.glob("*.bin"))):
        raise pickled(found[0])
    return {name: tensor for file in shards or [whole] for name, tensor in read_weights(file).items()}


def _shards(folder: Path) -> list[Path]:
    """The files that the index names: others may be left of an earlier save. Without an index, all with such a name."""
    index = folder / f"{WEIGHTS_FILE}.index.json"
    if not index.exists():
        return sorted(folder.glob("model-*-of-*.safetensors"))
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
        raise damaged(index, "weight_map does not name the file of each tensor")
    return [folder / name for name in sorted(set(files.values()))]
