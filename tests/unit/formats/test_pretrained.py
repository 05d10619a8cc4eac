import json
from hashlib import sha256
from pathlib import Path

from scratchlm.data.catalogue import CATALOGUE
from scratchlm.formats.huggingface_config import read_config
from scratchlm.model.config import PRETRAINED

SMOLLM2_360M = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1,
    "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 960, "initializer_range": 0.02, "intermediate_size": 2560,
    "is_llama_config": True, "max_position_embeddings": 8192, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 15, "num_hidden_layers": 32, "num_key_value_heads": 5, "pad_token_id": 2,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.42.3",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}}, "use_cache": True,
    "vocab_size": 49152,
}  # fmt: skip


def test_the_configuration_of_smollm2_360m_is_the_published_one(tmp_path: Path) -> None:
    published = json.dumps(SMOLLM2_360M, indent=2) + "\n"
    pinned = {file.name: file.sha256 for file in CATALOGUE["smollm2-360m"].files}
    assert sha256(published.encode()).hexdigest() == pinned["config.json"]
    (tmp_path / "config.json").write_text(published)
    assert read_config(tmp_path) == PRETRAINED["smollm2-360m"]
