"""Adapters against PEFT itself: what it reads of ours, and what we read of it, computes the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from scratchlm.cli.exports import export
from scratchlm.cli.imports import import_model
from scratchlm.cli.models import load_text_classifier
from scratchlm.data.byte_pairs import BytePairTokenizer, save_byte_pairs, train_byte_pairs
from scratchlm.formats.classifier import SAVED_BACKBONE, load_classifier, save_classifier
from scratchlm.formats.huggingface import load_huggingface, save_huggingface
from scratchlm.formats.native import ADAPTER_FILE, WEIGHTS_FILE, load_gpt, save_gpt
from scratchlm.formats.peft import check_base, save_peft
from scratchlm.model.classifier import GPTClassifier, Position
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
TEXTS = ["See you at noon", "", "Call now to claim your prize, before noon", "a"]
CLASSES = ["ham", "spam", "news & views"]


def base_model(kind: dict[str, Any], tied_head: bool) -> GPTModel:
    shape = {"n_layers": 2, "n_heads": 4, "emb_dim": 16, "vocab_size": VOCABULARY, "context_length": 32, "dropout": 0.0}
    rest = {"initialisation": "gpt2", "attention": "sdpa", "tied_head": tied_head}
    if kind is LLAMA:
        rest |= {"n_kv_heads": 2}
    return perturbed(build_model(GPTConfig(**shape, **kind, **rest), seed=1), 0.05)


def tokenizer() -> BytePairTokenizer:
    return BytePairTokenizer(*train_byte_pairs(["a b c"], VOCABULARY))


def tuned(model: nn.Module, layers: Any) -> dict[str, torch.Tensor]:
    """Change a model as a training with LoRA does. Returns its adapter."""
    apply_lora(model, LoRAParams(rank=3, alpha=0.7, layers=layers), seed=2)
    for name, parameter in model.named_parameters():
        if name.endswith(".B"):
            nn.init.normal_(parameter, std=0.2)
    return merge_lora(model)


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
    adapter = tuned(base, layers)
    save_gpt(tmp_path / "ours", base, adapter)
    save_peft(tmp_path / "adapter", tmp_path / "ours", "base", "A card.\n")
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


def probabilities(folder: Path) -> list[list[float]]:
    """What `scratchlm classify` says of TEXTS, with the model and the tokenizer in a folder."""
    classes, n_read, classify = load_text_classifier(folder / "model", folder / "tokenizer")
    assert (classes, n_read) == (CLASSES, 24)
    return classify(TEXTS)[0]


@torch.no_grad()
def their_probabilities(folder: Path, base: Path, **labels: Any) -> np.ndarray:
    """What transformers says of TEXTS, with an adapter of PEFT on a base model."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, **labels)
    texts = transformers.AutoTokenizer.from_pretrained(folder)
    assert texts.model_max_length == 24
    inputs = texts(TEXTS, padding="max_length", truncation=True, return_tensors="pt")
    return PeftModel.from_pretrained(model, folder).eval()(**inputs).logits.double().softmax(-1).numpy()


@pytest.mark.parametrize(
    ("position", "tied_head", "layers"), [("last_real", False, "attention"), ("last", True, "all")]
)
def test_the_adapter_of_a_classifier_makes_the_same_classifier_of_its_base_in_peft_and_here(
    tmp_path: Path, position: Position, tied_head: bool, layers: Any
) -> None:
    base = base_model(GPT2, tied_head)
    save_huggingface(tmp_path / "base", base, tokenizer())
    save_byte_pairs(tmp_path / "ours" / "tokenizer", *train_byte_pairs(["a b c"], VOCABULARY))
    model = GPTClassifier(base, len(CLASSES), position).eval()
    perturbed(model.head, 0.5)
    model_folder = tmp_path / "ours" / "model"
    save_classifier(model_folder, model, tuned(model, layers), classes=CLASSES, padded_tokens=24)
    export(tmp_path / "adapter", "peft", model_folder, tmp_path / "ours" / "tokenizer")
    expected = probabilities(tmp_path / "ours")
    assert np.std(expected, axis=0).min() > 0.01
    card = (tmp_path / "adapter" / "README.md").read_text()
    labels = {"id2label": dict(enumerate(CLASSES)), "pad_token_id": 258 if position == "last_real" else -1}
    assert f"id2label={labels['id2label']}, pad_token_id={labels['pad_token_id']})" in card
    found = their_probabilities(tmp_path / "adapter", tmp_path / "base", **labels)
    np.testing.assert_allclose(found, expected, atol=1e-5)

    import_model(tmp_path / "adapter", tmp_path / "again", tmp_path / "base")
    assert load_classifier(tmp_path / "again" / "model")[1] == load_classifier(model_folder)[1]
    np.testing.assert_allclose(probabilities(tmp_path / "again"), expected, atol=1e-5)
    for part in ("head.weight", f"{SAVED_BACKBONE}token_embedding.weight", f"{SAVED_BACKBONE}blocks.1.norm2.scale"):
        ours, again = (load_file(folder / "model" / WEIGHTS_FILE) for folder in (tmp_path / "ours", tmp_path / "again"))
        assert torch.equal(ours[part], again[part])


@pytest.mark.parametrize("kind", [GPT2, LLAMA])
def test_a_classifier_that_transformers_and_peft_trained_is_imported_and_exported_again(
    tmp_path: Path, kind: dict[str, Any]
) -> None:
    save_huggingface(tmp_path / "base", base_model(kind, tied_head=False), tokenizer())
    labels = {"id2label": dict(enumerate(CLASSES)), "pad_token_id": 258}
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", **labels)
    perturbed(model.score, 0.5)
    layers = {"target_modules": "all-linear", "task_type": "SEQ_CLS", "init_lora_weights": False}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(4)
        tuned = get_peft_model(model, LoraConfig(r=2, lora_alpha=9, **layers)).eval()
        expected = tuned(IDS).logits
    tuned.save_pretrained(tmp_path / "adapter")
    import_model(tmp_path / "adapter", tmp_path / "out", tmp_path / "base")
    found, settings = load_classifier(tmp_path / "out" / "model")
    torch.testing.assert_close(found(IDS, torch.tensor([12, 12])), expected, atol=2e-5, rtol=0)
    assert settings.classes == ["LABEL_0", "LABEL_1", "LABEL_2"]  # the base model has no names for them

    tuned.merge_and_unload().save_pretrained(tmp_path / "whole")
    for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / "whole" / file).write_bytes((tmp_path / "base" / file).read_bytes())
    import_model(tmp_path / "whole", tmp_path / "first", None)
    found, settings = load_classifier(tmp_path / "first" / "model")
    torch.testing.assert_close(found(IDS, torch.tensor([12, 12])), expected, atol=2e-5, rtol=0)
    assert (settings.classes, settings.padded_tokens, settings.position) == (CLASSES, 32, "last_real")
    export(tmp_path / "again", "huggingface", tmp_path / "first" / "model", tmp_path / "first" / "tokenizer")
    import_model(tmp_path / "again", tmp_path / "second", None)
    for file in (WEIGHTS_FILE, "config.json"):
        first, second = (tmp_path / name / "model" / file for name in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()


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


@pytest.mark.parametrize(
    "change", [{"lora_alpha": None}, {"lora_alpha": "NaN"}, {"lora_alpha": 10**400}, {"alpha_pattern": {"(": 1}}]
)
def test_an_alpha_that_is_no_number_is_named(written: Path, change: dict[str, Any]) -> None:
    path = written / "adapter" / "adapter_config.json"
    write_json(path, read_json(path) | change)
    with pytest.raises(UserError, match=r"adapter_config.json: no number as alpha of .*c_attn"):
        import_model(written / "adapter", written / "out", written / "base")


@pytest.mark.parametrize("value", [float("nan"), 1])
def test_an_adapter_of_nan_or_of_integers_is_named(written: Path, value: float) -> None:
    path = written / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = max(tensors)
    save_file(tensors | {name: torch.full(tensors[name].shape, value)}, path)
    with pytest.raises(
        UserError, match=rf"adapter_model.safetensors: tensor {name} holds NaN, infinite .* or no floats"
    ):
        import_model(written / "adapter", written / "out", written / "base")


def test_an_adapter_in_a_pickle_is_refused(written: Path) -> None:
    (written / "adapter" / "adapter_model.safetensors").rename(written / "adapter" / "adapter_model.bin")
    with pytest.raises(UserError, match="adapter_model.bin: weights in a pickle"):
        import_model(written / "adapter", written / "out", written / "base")


@pytest.mark.parametrize("change", ["rename", "half", "shape", "rank", "scalar"])
def test_an_adapter_of_another_base_is_refused(written: Path, change: str) -> None:
    path = written / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = min(tensors)
    tensor = tensors.pop(name)
    if change != "half":
        part = {"rank": tensor[:1], "shape": tensor[:, :5], "scalar": tensor[0, 0]}.get(change, tensor)
        tensors[name.replace("h.0", "h.7") if change == "rename" else name] = part.contiguous()
    save_file(tensors, path)
    with pytest.raises(UserError, match="--base the model that the adapter was trained on"):
        import_model(written / "adapter", written / "out", written / "base")


def test_a_model_trained_from_random_weights_has_no_adapter(tmp_path: Path) -> None:
    base = base_model(GPT2, tied_head=True)
    save_gpt(tmp_path / "base", base)
    save_gpt(tmp_path / "random", perturbed(base, 0.1), tuned(base, "blocks"))
    check_base(tmp_path / "base", "", tmp_path / "base")
    with pytest.raises(UserError, match=r"random was not trained from the weights of .*base .*has no base model; expo"):
        check_base(tmp_path / "random", "", tmp_path / "base")


def test_an_adapter_needs_its_base_and_only_an_adapter_has_one(written: Path) -> None:
    with pytest.raises(UserError, match="adapter is an adapter of PEFT; name the folder of its base model with --base"):
        import_model(written / "adapter", written / "out", None)
    with pytest.raises(UserError, match="base has no adapter_config.json; leave --base out"):
        import_model(written / "base", written / "out", written / "base")


def test_what_is_no_folder_of_transformers_is_named(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter, base, native = written / "adapter", written / "base", written / "native"
    save_gpt(native, base_model(GPT2, tied_head=True))
    for source, given, sentence in (
        (written / "nowhere", None, "nowhere: no such file; check the path"),
        (native, None, "native is in this project's format already, and commands take it with --model"),
        (base / "vocab.json", None, "vocab.json: not a whole GGUF file"),
        (adapter, native, "native is in this project's format already"),
        (adapter, adapter, "adapter is no folder of a whole model of transformers"),
        (adapter, base / "model.safetensors", "model.safetensors is no folder of a whole model of transformers"),
    ):
        with pytest.raises(UserError, match=sentence):
            import_model(source, written / "out", given)
    assert not (written / "out").exists()
    base.rename(written / "other")
    import_model(adapter, written / "out", written / "other")
    assert "the adapter was trained on base: make sure that" in capsys.readouterr().out


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
    with pytest.raises(UserError, match="belongs to no language model or classifier"):
        export(out, "peft", model, tmp_path / "tokenizer")
    assert not out.exists()
