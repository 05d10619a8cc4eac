import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from scratchlm.data.tokenizer import END_OF_TEXT, BytePairTokenizer, load_tokenizer, save_byte_pairs, train_byte_pairs
from scratchlm.formats.huggingface import huggingface_config, load_huggingface, save_huggingface
from scratchlm.formats.names import tensor_names
from scratchlm.model.config import SIZES, GPTConfig
from scratchlm.model.generate import Stopping, generate
from scratchlm.model.gpt import GPTModel
from scratchlm.run.errors import UserError
from tests.conftest import Inputs
from tests.perturbed import perturbed

REPOSITORY = Path(__file__).resolve().parents[3]
WEIGHTS = "model.safetensors"
GPT2_VOCAB_SIZE, GPT2_CONTEXT_LENGTH = 50257, 1024
TEXT = """It's a small red house, isn't it? They're 12 or 345 -- naïve café 東京 🙂 (end).
  The cat sat on the mat;  the dog didn't.\n\n\tdef f(x): return x ** 2  # square
""" * 3  # fmt: skip
TOLERANCE = 1e-4

Build = Callable[..., GPTModel]


@pytest.fixture(scope="module")
def random_gpt(tiny_gpt: Build) -> Build:
    """Builds a GPT over the test tokenizer's vocabulary."""
    size = {"vocab_size": 300, "context_length": 64, "n_heads": 4, "emb_dim": 32}
    rest = {"tied_head": True, "initialisation": "gpt2", "attention": "sdpa"}
    return lambda **changes: perturbed(tiny_gpt(**size | rest | changes), 0.05)


def random_transformers_gpt(config: GPTConfig) -> GPT2LMHeadModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = GPT2LMHeadModel(GPT2Config(**huggingface_config(config, end_token_id=0)))
    return perturbed(model, 0.05, seed=4)


def assert_same_logits(ours: GPTModel, theirs: GPT2LMHeadModel) -> None:
    token_ids = torch.randint(ours.config.vocab_size, (2, 48), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected, found = theirs(token_ids).logits, ours(token_ids)
    assert expected.dtype == found.dtype == torch.float32
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def assert_same_greedy_text(ours: GPTModel, theirs: GPT2LMHeadModel, n_tokens: int = 50) -> None:
    prompt = [7, 3, 200]
    (found,) = generate(ours, [prompt], Stopping(n_tokens, None))
    written = theirs.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=n_tokens,
        min_new_tokens=n_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert found.token_ids == written[0, len(prompt) :].tolist()
    assert len(found.token_ids) == n_tokens


def assert_same_both_ways(ours: GPTModel, tokenizer_folder: Path, scratch: Path) -> None:
    """Our export in transformers, and transformers' own save in ours: the same logits and greedy text."""
    config, tokenizer = ours.config, load_tokenizer(tokenizer_folder)
    save_huggingface(scratch / "ours", ours, tokenizer_folder, tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(scratch / "ours")
    assert isinstance(theirs, GPT2LMHeadModel)
    assert_same_logits(ours, theirs)
    assert_same_greedy_text(ours, theirs)
    del theirs
    theirs = random_transformers_gpt(config)
    theirs.save_pretrained(scratch / "theirs")
    ours = load_huggingface(scratch / "theirs")
    assert_same_logits(ours, theirs)
    assert_same_greedy_text(ours, theirs)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "trained"
    save_byte_pairs(folder, *train_byte_pairs([TEXT], 300))
    return folder


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> BytePairTokenizer:
    found = load_tokenizer(tokenizer_folder)
    assert isinstance(found, BytePairTokenizer)
    return found


@pytest.fixture(scope="module")
def tiny(random_gpt: Build) -> GPTModel:
    return random_gpt()


@pytest.fixture
def exported(tmp_path: Path, tiny: GPTModel, tokenizer_folder: Path, tokenizer: BytePairTokenizer) -> Path:
    save_huggingface(tmp_path / "exported", tiny, tokenizer_folder, tokenizer)
    return tmp_path / "exported"


@pytest.mark.parametrize(
    "size", ["124M", *(pytest.param(size, marks=pytest.mark.long) for size in ("355M", "774M", "1558M"))]
)
def test_at_every_published_width_both_ways_give_transformers_logits_and_text(
    size: str, random_gpt: Build, tokenizer_folder: Path, tmp_path: Path
) -> None:
    model = random_gpt(**SIZES[size].model_dump() | {"n_layers": 1})
    assert_same_both_ways(model, tokenizer_folder, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "n_layers"), [("124M", 12), ("355M", 24), ("774M", 8), ("1558M", 4)])
def test_with_the_whole_vocabulary_the_sizes_give_transformers_logits_and_text_both_ways(
    size: str, n_layers: int, random_gpt: Build, tokenizer_folder: Path, tmp_path: Path
) -> None:
    rest = {"n_layers": n_layers, "vocab_size": GPT2_VOCAB_SIZE, "context_length": GPT2_CONTEXT_LENGTH}
    assert_same_both_ways(random_gpt(**SIZES[size].model_dump() | rest), tokenizer_folder, tmp_path)


@pytest.mark.parametrize("tied_head", [True, False])
@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_kind_of_model_exports_right(
    tied_head: bool,
    qkv_bias: bool,
    attention: str,
    random_gpt: Build,
    tokenizer_folder: Path,
    tokenizer: BytePairTokenizer,
    tmp_path: Path,
) -> None:
    ours = random_gpt(tied_head=tied_head, qkv_bias=qkv_bias, attention=attention)
    save_huggingface(tmp_path / "model", ours, tokenizer_folder, tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert_same_logits(ours, theirs)
    assert (theirs.lm_head.weight is theirs.transformer.wte.weight) == tied_head
    assert ("lm_head.weight" in load_file(tmp_path / "model" / WEIGHTS)) != tied_head
    again = load_huggingface(tmp_path / "model")
    assert_same_logits(again, theirs)
    assert again.config.tied_head == tied_head
    if not qkv_bias:
        assert not again.blocks[1].attention.qkv.bias.any()


def test_an_untied_model_of_transformers_loads_untied(random_gpt: Build, tmp_path: Path) -> None:
    theirs = random_transformers_gpt(random_gpt(tied_head=False).config)
    assert theirs.lm_head.weight is not theirs.transformer.wte.weight
    theirs.save_pretrained(tmp_path)
    assert_same_logits(load_huggingface(tmp_path), theirs)


def test_weights_stored_in_half_precision_become_float32(tiny: GPTModel, tmp_path: Path) -> None:
    theirs = random_transformers_gpt(tiny.config).bfloat16()
    theirs.save_pretrained(tmp_path)
    assert load_file(tmp_path / WEIGHTS)["transformer.wte.weight"].dtype == torch.bfloat16
    assert_same_logits(load_huggingface(tmp_path), theirs.float())


def test_a_linear_layer_is_stored_transposed_and_nothing_else_is(exported: Path, tiny: GPTModel) -> None:
    theirs, ours = load_file(exported / WEIGHTS), tiny.state_dict()
    assert torch.equal(theirs["transformer.h.1.attn.c_attn.weight"], ours["blocks.1.attention.qkv.weight"].T)
    assert theirs["transformer.h.0.mlp.c_proj.weight"].shape == (128, 32)
    assert torch.equal(theirs["transformer.wpe.weight"], ours["position_embedding.weight"])
    assert torch.equal(theirs["transformer.h.0.ln_2.bias"], ours["blocks.0.norm2.shift"])
    assert len(theirs) == len(list(tensor_names(2))) == 4 + 12 * 2


def test_reading_an_export_gives_the_model_back_bit_for_bit(exported: Path, tiny: GPTModel) -> None:
    again = load_huggingface(exported)
    assert again.config == tiny.config
    assert not again.training
    assert again.head.weight is again.token_embedding.weight
    for name, tensor in tiny.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_an_export_is_the_same_bytes_each_time(
    exported: Path, tmp_path: Path, tiny: GPTModel, tokenizer_folder: Path, tokenizer: BytePairTokenizer
) -> None:
    save_huggingface(tmp_path / "again", tiny, tokenizer_folder, tokenizer)
    names = sorted(path.name for path in exported.iterdir())
    assert names == ["config.json", "merges.txt", WEIGHTS, "tokenizer_config.json", "vocab.json"]
    for name in names:
        assert (exported / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_the_auto_tokenizer_of_an_export_agrees_with_ours(exported: Path, tokenizer: BytePairTokenizer) -> None:
    theirs = AutoTokenizer.from_pretrained(exported)
    assert theirs.eos_token_id == theirs.bos_token_id == tokenizer.end_token_id
    assert theirs.model_max_length == 64
    assert len(theirs) == tokenizer.vocab_size
    for text in ("", " ", "\n\n  x", TEXT, "I'll we'd 'S", "e\u0301 \u200d 👩\u200d💻 \x00\x1f\x7f\u00a0 \u3000x"):
        assert theirs.encode(text) == tokenizer.encode(text), text
        assert theirs.decode(tokenizer.encode(text), clean_up_tokenization_spaces=False) == text
    assert theirs.encode("a<|endoftext|>b") == tokenizer.encode_documents("a<|endoftext|>b").tolist()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=60))
def test_the_auto_tokenizer_agrees_on_any_text(auto_tokenizer: Any, tokenizer: BytePairTokenizer, text: str) -> None:
    assert auto_tokenizer.encode(text) == tokenizer.encode(text)


@pytest.fixture(scope="module")
def auto_tokenizer(
    tmp_path_factory: pytest.TempPathFactory, tiny: GPTModel, tokenizer_folder: Path, tokenizer: BytePairTokenizer
) -> Any:
    folder = tmp_path_factory.mktemp("auto") / "exported"
    save_huggingface(folder, tiny, tokenizer_folder, tokenizer)
    return AutoTokenizer.from_pretrained(folder)


def test_the_auto_tokenizer_agrees_over_a_vocabulary_of_gpt2s_format(
    inputs: Inputs, gpt2: BytePairTokenizer, random_gpt: Build, tmp_path: Path
) -> None:
    model = random_gpt(n_layers=1, n_heads=2, emb_dim=4, vocab_size=gpt2.vocab_size)
    save_huggingface(tmp_path / "model", model, inputs.vocabulary, gpt2)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "model")
    corpus = inputs.corpus.read_text(encoding="utf-8").replace(END_OF_TEXT, "")
    for text in (corpus, TEXT, "Hello, I am", "🙂🙂 \u0000 ｆｕｌｌ"):
        assert theirs.encode(text) == gpt2.encode(text)
    assert theirs.eos_token_id == gpt2.end_token_id


# refusals


def spoil(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS)
    return folder / WEIGHTS


def rewrite_config(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value != "absent"}))
    return path


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as failure:
        load_huggingface(folder)
    return str(failure.value)


def test_a_missing_tensor_is_named(exported: Path) -> None:
    path = spoil(exported, lambda weights: weights.pop("transformer.h.1.mlp.c_fc.bias"))
    assert refusal(exported) == f"{path}: tensor h.1.mlp.c_fc.bias is missing; fetch or export it again"


def test_an_extra_tensor_is_named(exported: Path) -> None:
    path = spoil(exported, lambda weights: weights.update({"transformer.h.2.ln_1.weight": torch.ones(32)}))
    expected = f"{path}: tensor h.2.ln_1.weight belongs to no part of a GPT-2 of this size; fetch or export it again"
    assert refusal(exported) == expected


def test_a_misshapen_tensor_is_named_with_both_shapes(exported: Path) -> None:
    path = spoil(exported, lambda weights: weights.update({"transformer.wpe.weight": torch.ones(63, 32)}))
    assert refusal(exported) == (
        f"{path}: tensor wpe.weight has shape (63, 32), but the configuration asks for (64, 32); "
        "take both from one checkpoint"
    )


def test_an_untied_model_without_its_head_is_refused(exported: Path) -> None:
    rewrite_config(exported, tie_word_embeddings=False)
    assert "tensor lm_head.weight is missing" in refusal(exported)


def test_the_masks_that_older_versions_store_are_no_weights(exported: Path, tiny: GPTModel) -> None:
    mask = torch.ones(1, 1, 64, 64).tril()
    spoil(
        exported,
        lambda weights: weights.update({"transformer.h.0.attn.bias": mask, "h.1.attn.masked_bias": torch.tensor(-1e4)}),
    )
    assert torch.equal(load_huggingface(exported).token_embedding.weight, tiny.token_embedding.weight)


def test_names_without_the_prefix_are_read_as_hubs_gpt2_has_them(exported: Path, tiny: GPTModel) -> None:
    weights = load_file(exported / WEIGHTS)
    save_file({name.removeprefix("transformer."): tensor for name, tensor in weights.items()}, exported / WEIGHTS)
    again = load_huggingface(exported)
    assert torch.equal(again.blocks[0].attention.qkv.weight, tiny.blocks[0].attention.qkv.weight)


def test_missing_files_are_named(exported: Path) -> None:
    (exported / WEIGHTS).unlink()
    assert refusal(exported).startswith(f"{exported / WEIGHTS}: no such file; ")
    (exported / "config.json").unlink()
    assert refusal(exported).startswith(f"{exported / 'config.json'}: no such file; ")


def test_a_damaged_weights_file_is_named(exported: Path) -> None:
    path = exported / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    assert refusal(exported).startswith(f"{path}: damaged (")


def test_another_kind_of_model_is_refused(exported: Path) -> None:
    path = rewrite_config(exported, model_type="llama")
    assert refusal(exported) == f"{path}: model_type is 'llama'; only gpt2 can be read"


def test_a_configuration_without_a_size_is_refused(exported: Path) -> None:
    path = rewrite_config(exported, n_embd="absent")
    assert refusal(exported) == f"{path}: 'n_embd' is missing; export the model again"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("activation_function", "relu"),
        ("activation_function", "gelu"),
        ("layer_norm_epsilon", 1e-6),
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
    ],
)
def test_a_gpt2_that_computes_something_else_is_refused_and_not_read_wrong(
    exported: Path, key: str, value: object
) -> None:
    path = rewrite_config(exported, **{key: value})
    assert refusal(exported).startswith(f"{path}: {key} is {value!r}; only models with ")
    rewrite_config(exported, **{key: "absent"})
    load_huggingface(exported)
