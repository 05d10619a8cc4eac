"""GGUF files, which llama.cpp and Ollama run, written from our models. gguf_reader.py reads them."""

from pathlib import Path
from typing import Any

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

ROPE_FACTORS = "rope_freqs.weight"  # of scaled rope; the file has no key for the settings that they come from
HALF_LIMIT = np.finfo(np.float16).max


def save_gguf(
    path: Path, model: GPTModel, tokenizer: BytePairTokenizer, template: str | None = None,
    *, half: bool,
) -> None:  # fmt: skip
    """Write one file of weights, tokenizer and chat template. half: store matrices in float16 instead of float32.

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
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.ALL_F32)
        _add_tokenizer(writer, tokenizer, template)
        if config.rope_scaling:
            factors = rope_factors(rope_frequencies(config.head_dim, config.rope_base), config.rope_scaling)
            writer.add_tensor(ROPE_FACTORS, factors.float().numpy())
        for name, weights in their_tensors(model, "gguf"):
            tensor = weights.float().numpy()
            if n_heads := turned_heads(name, config):
                tensor = tensor.reshape(n_heads, 2, -1, config.emb_dim).swapaxes(1, 2).reshape(tensor.shape)
            if half and tensor.ndim == 2:
                if np.abs(tensor).max() > HALF_LIMIT:
                    raise UserError(f"tensor {name} has numbers beyond float16; export without --half")
                tensor = tensor.astype(np.float16)
            writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


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
