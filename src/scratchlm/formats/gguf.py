"""GGUF files, which llama.cpp and Ollama run, written from our models. gguf_reader.py reads them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scratchlm.data.byte_pairs import BytePairTokenizer
from scratchlm.data.hub_tokenizer import BYTE_TOKENS, merges_by_score, scores_by_merge
from scratchlm.formats.conversion import their_tensors
from scratchlm.formats.gguf_file import PRE_TOKENIZERS
from scratchlm.formats.names import architecture
from scratchlm.model.config import GPTConfig
from scratchlm.model.gpt import GPTModel
from scratchlm.model.variants import rope_factors, rope_frequencies
from scratchlm.run.errors import UserError
from scratchlm.run.files import atomic_write

if TYPE_CHECKING:
    import gguf

Storage = Literal["float32", "float16", "q8_0"]
ROPE_FACTORS = "rope_freqs.weight"  # of scaled rope; the file has no key for the settings that they come from
POSITIONS = "position_embd.weight"  # which llama.cpp's own quantisation leaves out, too
HALF_LIMIT = np.finfo(np.float16).max


def save_gguf(
    path: Path, model: GPTModel, tokenizer: BytePairTokenizer, template: str | None = None,
    *, storage: Storage = "float32", general: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Write one file of weights, tokenizer and chat template, with greedy decoding as its default.

    storage: of matrices. q8_0 has blocks of 32 columns with 8 bits each and a scale; matrices of other widths, and
    positions, are float16. general: texts by key of GGUF's section `general`, such as `name` and `license`.
    Raises UserError if a weight is too large for float16, or llama.cpp has no such models or tokenizers.
    """
    import gguf

    config, kind = model.config, architecture(model.config)
    with atomic_write(path) as temporary:
        writer = gguf.GGUFWriter(temporary, kind)
        writer.add_block_count(config.n_layers)
        writer.add_context_length(config.context_length)
        writer.add_embedding_length(config.emb_dim)
        writer.add_feed_forward_length(config.hidden_dim)
        writer.add_head_count(config.n_heads)
        if kind == "gpt2":
            writer.add_layer_norm_eps(1e-5)
        else:
            writer.add_vocab_size(config.vocab_size)
            writer.add_head_count_kv(config.n_kv_heads)
            writer.add_key_length(config.head_dim)
            writer.add_value_length(config.head_dim)
            writer.add_rope_dimension_count(config.head_dim)
            writer.add_rope_freq_base(config.rope_base)
            writer.add_layer_norm_rms_eps(config.rms_epsilon)
        types = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}
        writer.add_file_type(gguf.LlamaFileType[types[storage]])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_sampling_temp(0.0)
        for key, text in (general or {}).items():
            writer.add_string(f"general.{key}", text)
        _add_tokenizer(writer, tokenizer, template)
        if config.rope_scaling:
            factors = rope_factors(rope_frequencies(config.head_dim, config.rope_base), config.rope_scaling)
            writer.add_tensor(ROPE_FACTORS, factors.float().numpy())
        for name, weights in their_tensors(model, "gguf"):
            tensor = weights.float().numpy()
            if n_heads := turned_heads(name, config):
                tensor = tensor.reshape(n_heads, 2, -1, config.emb_dim).swapaxes(1, 2).reshape(tensor.shape)
            kind_of_numbers = _stored_as(storage, name, tensor)
            writer.add_tensor(name, gguf.quantize(tensor, kind_of_numbers), raw_dtype=kind_of_numbers)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _stored_as(storage: Storage, name: str, tensor: np.ndarray) -> "gguf.GGMLQuantizationType":
    """The type of a tensor's numbers in the file. Raises UserError if it cannot hold them."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if storage == "float32" or tensor.ndim == 1:
        return GGMLQuantizationType.F32
    if np.abs(tensor).max() > HALF_LIMIT:  # of q8_0's scales, too
        raise UserError(f"tensor {name} has numbers beyond float16; export with --storage float32")
    columns, _ = GGML_QUANT_SIZES[GGMLQuantizationType.Q8_0]
    is_whole = tensor.shape[-1] % columns == 0 and name != POSITIONS
    return GGMLQuantizationType.Q8_0 if storage == "q8_0" and is_whole else GGMLQuantizationType.F16


def turned_heads(name: str, config: GPTConfig) -> int:
    """The heads of a tensor whose rows rope turns: in a Llama's file a pair are neighbours, not D / 2 rows apart."""
    if architecture(config) != "llama":
        return 0
    return {"attn_q.weight": config.n_heads, "attn_k.weight": config.n_kv_heads}.get(name.split(".", 2)[-1], 0)


def _add_tokenizer(writer: Any, tokenizer: BytePairTokenizer, template: str | None) -> None:
    """Write a tokenizer to a gguf.GGUFWriter. template: for chats."""
    import gguf

    encoder, merges, settings = tokenizer.pairs
    tokens, pre = sorted(encoder, key=encoder.__getitem__), PRE_TOKENIZERS.get(settings.pattern)
    kinds = dict.fromkeys(tokens, gguf.TokenType.NORMAL)
    kinds |= dict.fromkeys([] if pre else BYTE_TOKENS, gguf.TokenType.BYTE)
    kinds |= dict.fromkeys(settings.special_tokens, gguf.TokenType.CONTROL)
    writer.add_tokenizer_model("gpt2" if pre else "llama")
    writer.add_tokenizer_pre(pre or "default")
    writer.add_token_list(tokens)
    writer.add_token_types([kinds[token] for token in tokens])
    if pre:
        writer.add_token_merges([" ".join(pair) for pair in merges])
    else:
        text = [token for token in tokens if kinds[token] == gguf.TokenType.NORMAL]
        scores = dict.fromkeys(tokens, 0.0) | scores_by_merge(merges)
        back = merges_by_score({token: scores[token] for token in text})
        if settings.pattern != "sentencepiece" or set(back) != set(merges):
            raise UserError("GGUF has no form of this tokenizer's rules or merges; export with --format huggingface")
        writer.add_token_scores([scores[token] for token in tokens])
    writer.add_eos_token_id(tokenizer.end_token_id)
    writer.add_add_bos_token(bool(tokenizer.begin_ids))
    for token_id in tokenizer.begin_ids:
        writer.add_bos_token_id(token_id)
    if template:
        writer.add_chat_template(template)
