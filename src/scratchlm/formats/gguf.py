"""GGUF files, which llama.cpp and Ollama run, written from our models."""

from pathlib import Path

import numpy as np

from scratchlm.data.tokenizer import BytePairTokenizer, read_merges
from scratchlm.formats.names import HEAD, check_gpt2, tensor_names
from scratchlm.model.gpt import GPTModel
from scratchlm.run.errors import UserError
from scratchlm.run.files import atomic_write, read_json

HALF_LIMIT = np.finfo(np.float16).max


def save_gguf(
    path: Path, model: GPTModel, tokenizer_folder: Path, tokenizer: BytePairTokenizer, template: str | None = None,
    *, half: bool,
) -> None:  # fmt: skip
    """Write one file of weights, tokenizer and chat template. half: store matrices in float16 instead of float32.

    Query, key and value biases are zeros where the model has none: llama.cpp requires them.
    Raises UserError if a weight is too large for float16.
    """
    import gguf

    check_gpt2(model.config)
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
        if template:
            writer.add_chat_template(template)
        for name in [*tensor_names(config.n_layers), *([] if config.tied_head else [HEAD])]:
            stored = weights.get(name.ours)
            tensor = np.zeros(3 * config.emb_dim, np.float32) if stored is None else stored.float().numpy()
            if half and tensor.ndim == 2:
                if np.abs(tensor).max() > HALF_LIMIT:
                    raise UserError(f"tensor {name.ours} has numbers beyond float16; export without --half")
                tensor = tensor.astype(np.float16)
            writer.add_tensor(name.gguf, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
