"""Adapters against PEFT itself: what it reads of ours, and what we read of it, computes the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from scratchlm.cli.exports import export, import_model
from scratchlm.data.byte_pairs import BytePairTokenizer, save_byte_pairs, train_byte_pairs
from scratchlm.formats.huggingface import load_huggingface, save_huggingface
from scratchlm.formats.native import ADAPTER_FILE, load_gpt, save_gpt
from scratchlm.formats.peft import save_peft
from scratchlm.model.config import GPTConfig
from scratchlm.model.gpt import GPTModel, build_model
from scratchlm.model.lora import LoRAParams, apply_lora, merge_lora
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_json, write_json
from tests.perturbed import perturbed

VOCABULARY = 259
GPT2 = {"position": "learned", "norm": "layer", "feed_forward": "gelu", "qkv_bias": True, "bias": True}
LLAMA = {"position": "rope", "norm": "rms", "feed_forward": "swiglu", "qkv_bias": False, "bias": False}
IDS = torch.arange(24).view(2, 12) % VOCABULARY


def base_model(kind: dict[str, Any], tied_head: bool) -> GPTModel:
    shape = {"n_layers": 2, "n_heads": 4, "emb_dim": 16, "vocab_size": VOCABULARY, "context_length": 32, "dropout": 0.0}
    rest = {"initialisation": "gpt2", "attention": "sdpa", "tied_head": tied_head}
    if kind is LLAMA:
        rest |= {"n_kv_heads": 2}
    return perturbed(build_model(GPTConfig(**shape, **kind, **rest), seed=1), 0.05)


def tokenizer() -> BytePairTokenizer:
    return BytePairTokenizer(*train_byte_pairs(["a b c"], VOCABULARY))


def theirs(folder: Path) -> nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    found = model(IDS)
    return getattr(found, "logits", found)


@pytest.mark.parametrize("layers", ["attention", "feed_forward", "all"])
@pytest.mark.parametrize(("kind", "tied_head"), [(GPT2, True), (GPT2, False), (LLAMA, False)])
def test_peft_computes_with_our_adapter_what_the_merged_model_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: dict[str, Any], tied_head: bool, layers: Any
) -> None:
    base = base_model(kind, tied_head)
    save_huggingface(tmp_path / "base", base, tokenizer())
    before = logits(base)
    apply_lora(base, LoRAParams(rank=3, alpha=0.7, layers=layers), seed=2)
    for name, parameter in base.named_parameters():
        if name.endswith(".B"):
            nn.init.normal_(parameter, std=0.2)
    adapter = merge_lora(base)
    save_gpt(tmp_path / "ours", base, adapter)
    save_peft(tmp_path / "adapter", tmp_path / "ours", "base")
    monkeypatch.chdir(tmp_path)  # where the adapter finds its base
    found = logits(AutoPeftModelForCausalLM.from_pretrained("adapter").eval())
    torch.testing.assert_close(found, logits(base), atol=2e-5, rtol=0)
    assert (found - before).abs().max() > 0.1
    merged = load_huggingface(tmp_path / "base", adapter=tmp_path / "adapter")  # and we read it back
    torch.testing.assert_close(logits(merged), logits(base), atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (GPT2, {"target_modules": ["c_attn", "mlp.c_proj"], "rank_pattern": {"c_attn": 2}}),
        (GPT2, {"target_modules": ["attn.c_attn", "c_fc"], "alpha_pattern": {r"h\.1\.attn\.c_attn": 3}}),
        (LLAMA, {"target_modules": "all-linear"}),
        (LLAMA, {"target_modules": ["q_proj", "v_proj", "lm_head"]}),
    ],
)
def test_an_adapter_that_peft_wrote_is_imported_into_its_base(
    tmp_path: Path, kind: dict[str, Any], settings: dict[str, Any]
) -> None:
    save_huggingface(tmp_path / "base", base_model(kind, tied_head=False), tokenizer())
    config = LoraConfig(r=4, lora_alpha=9, init_lora_weights=False, task_type="CAUSAL_LM", **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        tuned = get_peft_model(theirs(tmp_path / "base"), config).eval()
    tuned.save_pretrained(tmp_path / "adapter")
    import_model(tmp_path / "adapter", tmp_path / "out", tmp_path / "base")
    torch.testing.assert_close(logits(load_gpt(tmp_path / "out" / "model")), logits(tuned), atol=2e-5, rtol=0)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A folder with base/ and adapter/, which PEFT wrote."""
    save_huggingface(tmp_path / "base", base_model(GPT2, tied_head=True), tokenizer())
    config = LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM")
    get_peft_model(theirs(tmp_path / "base"), config).save_pretrained(tmp_path / "adapter")
    return tmp_path


@pytest.mark.parametrize(
    ("key", "value"),
    [("use_dora", True), ("use_rslora", True), ("bias", "all"), ("peft_type", "IA3"), ("modules_to_save", ["wte"])],
)
def test_what_is_not_plain_lora_is_refused(written: Path, key: str, value: Any) -> None:
    path = written / "adapter" / "adapter_config.json"
    write_json(path, read_json(path) | {key: value})
    with pytest.raises(UserError, match=f"adapter_config.json: {key} is .*only plain LoRA is read"):
        import_model(written / "adapter", written / "out", written / "base")
    assert not (written / "out").exists()


@pytest.mark.parametrize("change", [{"lora_alpha": None}, {"lora_alpha": "much"}, {"alpha_pattern": {"(": 1}}])
def test_an_alpha_that_is_no_number_is_named(written: Path, change: dict[str, Any]) -> None:
    path = written / "adapter" / "adapter_config.json"
    write_json(path, read_json(path) | change)
    with pytest.raises(UserError, match=r"adapter_config.json: no number as alpha of .*c_attn"):
        import_model(written / "adapter", written / "out", written / "base")


@pytest.mark.parametrize("change", ["rename", "half", "shape", "rank"])
def test_an_adapter_of_another_base_is_refused(written: Path, change: str) -> None:
    path = written / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = min(tensors)
    tensor = tensors.pop(name)
    if change != "half":
        part = {"rank": tensor[:1], "shape": tensor[:, :5]}.get(change, tensor)
        tensors[name.replace("h.0", "h.7") if change == "rename" else name] = part.contiguous()
    save_file(tensors, path)
    with pytest.raises(UserError, match="--base the model that the adapter was trained on"):
        import_model(written / "adapter", written / "out", written / "base")


def test_an_adapter_needs_its_base_and_only_an_adapter_has_one(written: Path) -> None:
    with pytest.raises(UserError, match="adapter is an adapter of PEFT; name the folder of its base model with --base"):
        import_model(written / "adapter", written / "out", None)
    with pytest.raises(UserError, match="base has no adapter_config.json; leave --base out"):
        import_model(written / "base", written / "out", written / "base")


@pytest.mark.long
def test_only_what_lora_trained_becomes_an_adapter(tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    save_gpt(model, base_model(GPT2, tied_head=True))
    save_byte_pairs(tmp_path / "tokenizer", *train_byte_pairs(["a b c"], VOCABULARY))
    with pytest.raises(UserError, match=f"has no {ADAPTER_FILE}: it was not trained with lora"):
        export(out, "peft", model, tmp_path / "tokenizer")
    save_file({"blocks.0.attention.qkv.A": torch.ones(3, 1, 16)}, model / ADAPTER_FILE)
    with pytest.raises(UserError, match="has no alpha: an earlier version wrote it"):
        export(out, "peft", model, tmp_path / "tokenizer")
    save_file(
        {"backbone.head.A": torch.ones(1), "alpha": torch.tensor(1.0)}, model / ADAPTER_FILE
    )  # as a reward model's
    with pytest.raises(UserError, match="belongs to no language model"):
        export(out, "peft", model, tmp_path / "tokenizer")
    assert not out.exists()
