"""Our models as GGUF files, which llama.cpp and Ollama run.

Source of the layout: llama.cpp, architecture `gpt2`; gguf, constants.py.
"""

from pathlib import Path

import numpy as np

from scratchlm.data.tokenizer import BytePairTokenizer, read_merges
from scratchlm.model.gpt import GPTModel
from scratchlm.run.files import atomic_write, read_json

_WHOLE_MODEL = [
    ("token_embd.weight", "token_embedding.weight"),
    ("position_embd.weight", "position_embedding.weight"),
    ("output_norm.weight", "final_norm.scale"),
    ("output_norm.bias", "final_norm.shift"),
]
_EACH_BLOCK = [
    ("attn_norm.weight", "norm1.scale"),
    ("attn_norm.bias", "norm1.shift"),
    ("attn_qkv.weight", "attention.qkv.weight"),
    ("attn_qkv.bias", "attention.qkv.bias"),
    ("attn_output.weight", "attention.projection.weight"),
    ("attn_output.bias", "attention.projection.bias"),
    ("ffn_norm.weight", "norm2.scale"),
    ("ffn_norm.bias", "norm2.shift"),
    ("ffn_up.weight", "feed_forward.expansion.weight"),
    ("ffn_up.bias", "feed_forward.expansion.bias"),
    ("ffn_down.weight", "feed_forward.projection.weight"),
    ("ffn_down.bias", "feed_forward.projection.bias"),
]


def save_gguf(path: Path, model: GPTModel, tokenizer_folder: Path, tokenizer: BytePairTokenizer, *, half: bool) -> None:
    """Write one file with weights and tokenizer; half: matrices in float16, else all in float32.

    Query, key and value biases are zeros where the model has none: llama.cpp asks for them.
    """
    import gguf

    config, weights = model.config, model.state_dict()
    with atomic_write(path) as temporary:
        writer = gguf.GGUFWriter(temporary, "gpt2")
        writer.add_block_count(config.n_layers)
        writer.add_context_length(config.context_length)
        writer.add_embedding_length(config.emb_dim)
        writer.add_feed_forward_length(4 * config.emb_dim)
        writer.add_head_count(config.n_heads)
        writer.add_layer_norm_eps(1e-5)
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.ALL_F32)
        tokens = sorted(read_json(tokenizer_folder / "encoder.json").items(), key=lambda item: item[1])
        normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list([token for token, _ in tokens])
        writer.add_token_types([control if token_id == tokenizer.end_token_id else normal for _, token_id in tokens])
        writer.add_token_merges([" ".join(pair) for pair in read_merges(tokenizer_folder / "vocab.bpe")])
        writer.add_eos_token_id(tokenizer.end_token_id)
        writer.add_add_bos_token(False)
        for theirs, ours in _names(config.n_layers, tied_head=config.tied_head):
            tensor = weights[ours].float().numpy() if ours in weights else np.zeros(3 * config.emb_dim, np.float32)
            writer.add_tensor(theirs, tensor.astype(np.float16) if half and tensor.ndim == 2 else tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _names(n_layers: int, *, tied_head: bool) -> list[tuple[str, str]]:
    blocks = [(f"blk.{i}.{theirs}", f"blocks.{i}.{ours}") for i in range(n_layers) for theirs, ours in _EACH_BLOCK]
    return [*_WHOLE_MODEL, *blocks, *([] if tied_head else [("output.weight", "head.weight")])]
