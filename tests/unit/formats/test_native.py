import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scratchlm.formats.classifier import load_classifier, save_classifier
from scratchlm.formats.native import load_gpt, read_config, save_gpt
from scratchlm.formats.reward import load_reward_model, save_reward_model
from scratchlm.model.classifier import GPTClassifier
from scratchlm.model.gpt import GPTModel
from scratchlm.model.lora import LoRAParams, adapter_state, apply_lora
from scratchlm.model.reward import RewardModel
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_json

Build = Callable[..., GPTModel]
TOKEN_IDS = torch.tensor([[1, 5, 0, 10, 3]])


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def logits(model: GPTModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(TOKEN_IDS)


def refusal(folder: Path, load: Callable[[Path], object] = load_gpt) -> str:
    with pytest.raises(UserError) as failure:
        load(folder)
    assert "\n" not in str(failure.value)
    return str(failure.value)


def spoil(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


@pytest.fixture
def saved(tmp_path: Path, tiny_gpt: Build) -> Path:
    save_gpt(tmp_path / "model", tiny_gpt(tied_head=True))
    return tmp_path / "model"


@pytest.mark.parametrize("tied_head", [True, False])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_a_saved_model_comes_back_bit_for_bit(tied_head: bool, qkv_bias: bool, tmp_path: Path, tiny_gpt: Build) -> None:
    model = tiny_gpt(tied_head=tied_head, qkv_bias=qkv_bias, dropout=0.25)
    save_gpt(tmp_path / "model", model)
    again = load_gpt(tmp_path / "model")
    assert again.config == model.config == read_config(tmp_path / "model")
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert not again.training
    assert torch.equal(logits(again), logits(model))


def test_scaled_rope_is_stored_only_where_there_is_some(saved: Path, tmp_path: Path, tiny_gpt: Build) -> None:
    """Else models without it, which have a hash in dvc.lock, would change."""
    assert "rope_scaling" not in read_json(saved / "config.json")["gpt"]
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context_length": 8}
    model = tiny_gpt(position="rope", rope_scaling=scaling)
    save_gpt(tmp_path / "scaled", model)
    assert read_json(tmp_path / "scaled" / "config.json")["gpt"]["rope_scaling"] == scaling
    assert torch.equal(logits(load_gpt(tmp_path / "scaled")), logits(model))
    assert not torch.equal(logits(load_gpt(tmp_path / "scaled", rope_scaling=None)), logits(model))


def test_a_tied_head_is_not_stored_and_is_tied_again_after_loading(saved: Path) -> None:
    assert "head.weight" not in load_file(saved / "model.safetensors")
    again = load_gpt(saved)
    assert again.head.weight is again.token_embedding.weight
    before = logits(again)
    with torch.no_grad():
        again.token_embedding.weight.mul_(2)
    assert not torch.equal(logits(again), before)
    assert (
        sum(1 for name, _ in again.named_parameters() if "weight" in name and name.startswith(("head", "token"))) == 1
    )


def test_an_untied_head_is_stored_and_stays_its_own(tmp_path: Path, tiny_gpt: Build) -> None:
    save_gpt(tmp_path / "model", tiny_gpt(tied_head=False))
    assert "head.weight" in load_file(tmp_path / "model" / "model.safetensors")
    again = load_gpt(tmp_path / "model")
    assert again.head.weight is not again.token_embedding.weight


def test_everything_loaded_has_left_the_meta_device_and_can_learn(saved: Path) -> None:
    again = load_gpt(saved)
    assert {tensor.device.type for tensor in again.state_dict().values()} == {"cpu"}
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in again.parameters())


def test_dropout_and_attention_can_be_chosen_for_a_use_and_the_weights_stay(saved: Path) -> None:
    changed = load_gpt(saved, dropout=0.5, attention="sdpa")
    assert (changed.config.dropout, changed.config.attention) == (0.5, "sdpa")
    assert read_config(saved).dropout == 0.0
    assert {module.p for module in changed.modules() if isinstance(module, torch.nn.Dropout)} == {0.5}
    torch.testing.assert_close(logits(changed), logits(load_gpt(saved)))


def test_saving_twice_gives_the_same_bytes_and_replaces_the_folder(
    saved: Path, tmp_path: Path, tiny_gpt: Build
) -> None:
    first = digests(saved)
    assert list(first) == ["config.json", "model.safetensors"]
    (saved / "stray.txt").write_text("from before")
    save_gpt(saved, tiny_gpt(tied_head=True))
    save_gpt(tmp_path / "again", load_gpt(saved))
    assert digests(saved) == digests(tmp_path / "again") == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "model"]


@pytest.mark.long
def test_another_process_writes_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from scratchlm.formats.native import load_gpt, save_gpt; "
        "save_gpt(Path(sys.argv[2]), load_gpt(Path(sys.argv[1])))"
    )
    subprocess.run([sys.executable, "-c", program, str(saved), str(tmp_path / "other")], check=True)
    assert digests(tmp_path / "other") == digests(saved)


def test_an_adapter_is_kept_beside_the_merged_weights(tmp_path: Path, tiny_gpt: Build) -> None:
    model = tiny_gpt()
    apply_lora(model, LoRAParams(rank=2, alpha=4.0, layers="blocks"), seed=1)
    adapter = adapter_state(model)
    save_gpt(tmp_path / "model", tiny_gpt(), adapter)
    assert sorted(digests(tmp_path / "model")) == ["adapter.safetensors", "config.json", "model.safetensors"]
    kept = load_file(tmp_path / "model" / "adapter.safetensors")
    assert kept.keys() == adapter.keys()
    assert all(torch.equal(kept[name], adapter[name]) for name in adapter)
    assert torch.equal(logits(load_gpt(tmp_path / "model")), logits(tiny_gpt()))


def test_without_an_adapter_an_older_one_does_not_stay(tmp_path: Path, tiny_gpt: Build) -> None:
    save_gpt(tmp_path / "model", tiny_gpt(), {"A": torch.ones(2, 2)})
    save_gpt(tmp_path / "model", tiny_gpt())
    assert sorted(digests(tmp_path / "model")) == ["config.json", "model.safetensors"]


def test_a_missing_folder_or_file_is_named(saved: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    assert refusal(nowhere).startswith(f"{nowhere / 'config.json'}: no such file; check the path")
    (saved / "model.safetensors").unlink()
    assert refusal(saved).startswith(f"{saved / 'model.safetensors'}: no such file; check the path")


def test_damaged_weights_are_named_with_the_remedy(saved: Path) -> None:
    path = saved / "model.safetensors"
    whole = path.read_bytes()
    for damage in (whole[:-1], whole[:20], b"", b"<html>" + whole):
        path.write_bytes(damage)
        sentence = refusal(saved)
        assert sentence.startswith(f"{path}: damaged (")
        assert sentence.endswith("); correct it, or take a sound copy")


def test_a_missing_tensor_is_named(saved: Path) -> None:
    spoil(saved, lambda weights: weights.pop("blocks.1.norm2.shift"))
    assert refusal(saved) == (
        f"{saved}: tensor blocks.1.norm2.shift is missing; the checkpoint is incomplete, make it again"
    )


def test_an_unknown_tensor_is_named(saved: Path) -> None:
    spoil(saved, lambda weights: weights.update({"blocks.2.norm1.scale": torch.ones(8)}))
    assert refusal(saved) == (
        f"{saved}: tensor blocks.2.norm1.scale belongs to no part of the model; check config.json"
    )


def test_a_misshapen_tensor_is_named_with_both_shapes(saved: Path) -> None:
    spoil(saved, lambda weights: weights.update({"position_embedding.weight": torch.ones(7, 8)}))
    assert refusal(saved) == (
        f"{saved}: tensor position_embedding.weight has shape (7, 8), the configuration asks for (8, 8); "
        "take both from one checkpoint"
    )


def test_a_tied_model_without_its_embedding_is_refused(saved: Path) -> None:
    spoil(saved, lambda weights: weights.pop("token_embedding.weight"))
    assert refusal(saved).startswith(f"{saved}: tensor token_embedding.weight is missing; ")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"n_layers": "two"}, "gpt n_layers: Input should be a valid integer"),
        ({"n_layers": 0}, "gpt n_layers: Input should be greater than or equal to 1"),
        ({"layers": 2}, "gpt layers: Extra inputs are not permitted"),
        ({"n_heads": 3}, "gpt: Value error, 3 heads cannot share 2 key-value heads; "),
    ],
)
def test_a_wrong_configuration_names_the_file_and_the_key(saved: Path, change: dict[str, object], what: str) -> None:
    path = saved / "config.json"
    path.write_text(json.dumps({"gpt": json.loads(path.read_text())["gpt"] | change}))
    sentence = refusal(saved)
    assert sentence.startswith(f"{path}: not a configuration of ours ({what}")
    assert sentence.endswith("); correct it, or take a sound copy")


def test_a_configuration_of_another_program_is_refused(saved: Path) -> None:
    path = saved / "config.json"
    path.write_text('{"model_type": "gpt2"}')
    assert refusal(saved).startswith(f"{path}: not a configuration of ours (gpt: ")
    path.write_text("{")
    assert refusal(saved).startswith(f"{path}: not valid JSON")


# classifiers


@pytest.mark.parametrize("position", ["first", "last", "last_real", "mean"])
def test_a_classifier_comes_back_with_its_settings(position: str, tmp_path: Path, tiny_gpt: Build) -> None:
    classifier = GPTClassifier(tiny_gpt(tied_head=True), 3, position).eval()  # type: ignore[arg-type]
    save_classifier(tmp_path / "spam", classifier, classes=("a", "b", "c"), padded_tokens=7)
    again, settings = load_classifier(tmp_path / "spam")
    assert (settings.padded_tokens, settings.classes, again.head.out_features) == (7, ["a", "b", "c"], 3)
    assert again.position == position and not again.training
    lengths = torch.tensor([3])
    with torch.no_grad():
        assert torch.equal(again(TOKEN_IDS, lengths), classifier(TOKEN_IDS, lengths))
    assert again.backbone.config == classifier.backbone.config
    names = load_file(tmp_path / "spam" / "model.safetensors").keys()
    assert "trunk.token_embedding.weight" in names and {name.split(".")[0] for name in names} == {"trunk", "head"}
    assert "trunk.head.weight" not in names


def test_a_classifier_is_the_same_bytes_each_time_and_keeps_an_adapter(tmp_path: Path, tiny_gpt: Build) -> None:
    for name in ("one", "two"):
        torch.manual_seed(4)
        save_classifier(
            tmp_path / name,
            GPTClassifier(tiny_gpt(), 2, "mean"),
            {"A": torch.eye(2)},
            classes=("ham", "spam"),
            padded_tokens=5,
        )
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert torch.equal(load_file(tmp_path / "one" / "adapter.safetensors")["A"], torch.eye(2))


def test_a_language_model_is_no_classifier(saved: Path) -> None:
    assert refusal(saved, load_classifier) == (f"{saved} does not hold a classifier; name one that finetune_spam made")


def test_a_classifier_is_no_language_model(tmp_path: Path, tiny_gpt: Build) -> None:
    save_classifier(tmp_path / "spam", GPTClassifier(tiny_gpt(), 2, "mean"), classes=("ham", "spam"), padded_tokens=5)
    assert refusal(tmp_path / "spam") == (
        f"{tmp_path / 'spam'} holds a classifier, not a language model; name pretrain, gpt2-… or finetune_instruct"
    )


def test_a_reward_model_comes_back_bit_for_bit_and_is_no_other_kind(tmp_path: Path, tiny_gpt: Build) -> None:
    model, folder = RewardModel(tiny_gpt(tied_head=True)), tmp_path / "rating"
    torch.nn.init.normal_(model.head.weight)
    model.origin.fill_(1 / 3)
    save_reward_model(folder, model, {"A": torch.eye(2)})
    again, lengths = load_reward_model(folder), torch.tensor([5])
    assert not again.training
    with torch.no_grad():
        assert torch.equal(again(TOKEN_IDS, lengths), model.eval()(TOKEN_IDS, lengths))
    assert again.backbone.config == model.backbone.config
    assert torch.equal(load_file(folder / "adapter.safetensors")["A"], torch.eye(2))
    assert refusal(folder) == (
        f"{folder} holds a reward model, not a language model; name pretrain, gpt2-… or finetune_instruct"
    )
    assert refusal(folder, load_classifier) == f"{folder} does not hold a classifier; name one that finetune_spam made"


def test_a_language_model_is_no_reward_model(saved: Path) -> None:
    assert refusal(saved, load_reward_model) == (
        f"{saved} does not hold a reward model; name one that the stage reward_model made"
    )


def test_a_classifier_with_a_missing_tensor_is_refused_by_name(tmp_path: Path, tiny_gpt: Build) -> None:
    save_classifier(tmp_path / "spam", GPTClassifier(tiny_gpt(), 2, "mean"), classes=("ham", "spam"), padded_tokens=5)
    spoil(tmp_path / "spam", lambda weights: weights.pop("head.bias"))
    assert refusal(tmp_path / "spam", load_classifier).startswith(f"{tmp_path / 'spam'}: tensor head.bias is missing; ")


@pytest.mark.parametrize(
    ("own", "what"),
    [
        (None, ": Input should be a valid dictionary"),
        ({}, "classes: Field required"),
        ({"classes": ["a", "b"], "position": "middle", "padded_tokens": 5}, "position: Input should be 'first', "),
        ({"classes": "ab", "position": "mean", "padded_tokens": 5}, "classes: Input should be a valid list"),
        ({"classes": ["a"] * 129, "position": "mean", "padded_tokens": 5}, "classes: List should have at most 128"),
        ({"classes": ["a"], "position": "mean", "padded_tokens": 5}, "classes: List should have at least 2"),
        ({"classes": ["a", 2], "position": "mean", "padded_tokens": 5}, "classes 1: Input should be a valid string"),
        ({"classes": ["a", "b"], "position": "mean", "padded_tokens": 0}, "padded_tokens: Input should be greater"),
    ],
)
def test_a_classifier_of_another_shape_names_the_file_and_the_key(
    tmp_path: Path, tiny_gpt: Build, own: object, what: str
) -> None:
    save_classifier(tmp_path / "spam", GPTClassifier(tiny_gpt(), 2, "mean"), classes=("ham", "spam"), padded_tokens=5)
    path = tmp_path / "spam" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"classifier": own}))
    assert refusal(tmp_path / "spam", load_classifier).startswith(f"{path}: not a classifier of ours ({what}")


@pytest.mark.parametrize("field", ["vocab_size", "context_length", "n_layers", "n_heads", "emb_dim"])
@pytest.mark.parametrize("value", [10**8, 10**30])
def test_a_configuration_that_no_machine_can_hold_is_refused(saved: Path, field: str, value: int) -> None:
    path = saved / "config.json"
    path.write_text(json.dumps({"gpt": json.loads(path.read_text())["gpt"] | {field: value}}))
    assert refusal(saved).startswith(f"{path}: not a configuration of ours (gpt {field}: Input should be less than")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["final_norm.shift", "blocks.1.attention.qkv.weight"])
def test_weights_that_are_not_finite_are_refused(saved: Path, name: str, number: float) -> None:
    spoil(saved, lambda weights: weights[name].view(-1)[-1:].fill_(number))
    assert refusal(saved) == (
        f"{saved}: tensor {name} holds NaN or infinite numbers; take a checkpoint of a sound model"
    )


def test_a_classifiers_weights_that_are_not_finite_are_refused(tmp_path: Path, tiny_gpt: Build) -> None:
    save_classifier(tmp_path / "spam", GPTClassifier(tiny_gpt(), 2, "mean"), classes=("ham", "spam"), padded_tokens=5)
    spoil(tmp_path / "spam", lambda weights: weights["head.bias"].fill_(math.nan))
    assert "tensor head.bias holds NaN or infinite numbers" in refusal(tmp_path / "spam", load_classifier)


@pytest.mark.parametrize(
    "kind", [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8, torch.int64, torch.bool,
             torch.float8_e4m3fn, torch.float8_e5m2],
)  # fmt: skip
def test_a_tensor_of_another_type_is_refused_and_does_not_compute_in_it(saved: Path, kind: torch.dtype) -> None:
    spoil(saved, lambda weights: weights.update({"final_norm.scale": weights["final_norm.scale"].to(kind)}))
    name = str(kind).removeprefix("torch.")
    assert refusal(saved) == f"{saved}: tensor final_norm.scale is of type {name}; save all of them in float32"
