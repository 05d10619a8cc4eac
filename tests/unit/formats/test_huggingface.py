import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    Qwen2ForCausalLM,
)

from scratchlm.data.byte_pairs import END_OF_TEXT, BytePairTokenizer, save_byte_pairs, train_byte_pairs
from scratchlm.data.prompts import PromptStyle, chat_template, format_prompt
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.formats.huggingface import (
    huggingface_config,
    load_huggingface,
    save_huggingface,
)
from scratchlm.formats.huggingface_tokenizer import load_huggingface_tokenizer
from scratchlm.formats.names import tensor_names
from scratchlm.model.config import SIZES, GPTConfig
from scratchlm.model.generate import Stopping, generate
from scratchlm.model.gpt import GPTModel
from scratchlm.run.errors import UserError
from tests import llama
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


def assert_same_logits(ours: GPTModel, theirs: GPT2LMHeadModel | GPTModel) -> None:
    token_ids = torch.randint(ours.config.vocab_size, (2, 48), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected, found = theirs(token_ids), ours(token_ids)
    expected = expected if isinstance(expected, torch.Tensor) else expected.logits
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
    save_huggingface(scratch / "ours", ours, tokenizer)
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
def exported(tmp_path: Path, tiny: GPTModel, tokenizer: BytePairTokenizer) -> Path:
    save_huggingface(tmp_path / "exported", tiny, tokenizer)
    return tmp_path / "exported"


@pytest.mark.parametrize(
    "size", ["124M", *(pytest.param(size, marks=pytest.mark.long) for size in ("355M", "774M", "1558M"))]
)
def test_at_every_published_width_both_ways_give_transformers_logits_and_text(
    size: str, random_gpt: Build, tokenizer_folder: Path, tmp_path: Path
) -> None:
    model = random_gpt(**SIZES[size].model_dump(exclude_none=True) | {"n_layers": 1})
    assert_same_both_ways(model, tokenizer_folder, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "n_layers"), [("124M", 12), ("355M", 24), ("774M", 8), ("1558M", 4)])
def test_with_the_whole_vocabulary_the_sizes_give_transformers_logits_and_text_both_ways(
    size: str, n_layers: int, random_gpt: Build, tokenizer_folder: Path, tmp_path: Path
) -> None:
    rest = {"n_layers": n_layers, "vocab_size": GPT2_VOCAB_SIZE, "context_length": GPT2_CONTEXT_LENGTH}
    assert_same_both_ways(random_gpt(**SIZES[size].model_dump(exclude_none=True) | rest), tokenizer_folder, tmp_path)


@pytest.mark.parametrize("tied_head", [True, False])
@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_kind_of_model_exports_right(
    tied_head: bool,
    qkv_bias: bool,
    attention: str,
    random_gpt: Build,
    tokenizer: BytePairTokenizer,
    tmp_path: Path,
) -> None:
    ours = random_gpt(tied_head=tied_head, qkv_bias=qkv_bias, attention=attention)
    save_huggingface(tmp_path / "model", ours, tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert_same_logits(ours, theirs)
    assert (theirs.lm_head.weight is theirs.transformer.wte.weight) == tied_head
    assert ("lm_head.weight" in load_file(tmp_path / "model" / WEIGHTS)) != tied_head
    again = load_huggingface(tmp_path / "model")
    assert_same_logits(again, theirs)
    assert again.config.tied_head == tied_head
    if not qkv_bias:
        assert not again.blocks[1].attention.qkv.bias.any()


LLAMA = {
    "position": "rope", "norm": "rms", "feed_forward": "swiglu", "n_kv_heads": 2, "qkv_bias": False, "bias": False,
}  # fmt: skip


THEIR_SCALED = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16
}  # fmt: skip
SCALED = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context_length": 16}


@pytest.mark.long
@pytest.mark.parametrize("tied_head", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {"rms_epsilon": 1e-6},
        {"head_dim": 12, "rope_base": 500.0},
        {"n_kv_heads": 4, "hidden_dim": 20},
        {"rope_scaling": SCALED},
        {"qkv_bias": True},
        {"qkv_bias": True, "rms_epsilon": 1e-6, "n_kv_heads": 4, "rope_base": 500.0},
    ],
)
def test_a_llama_gives_transformers_logits_and_text_both_ways(
    changes: dict[str, Any], tied_head: bool, random_gpt: Build, tokenizer: BytePairTokenizer,
    tmp_path: Path,
) -> None:  # fmt: skip
    ours = random_gpt(**LLAMA | changes, tied_head=tied_head)
    save_huggingface(tmp_path / "ours", ours, tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert isinstance(theirs, Qwen2ForCausalLM if ours.config.qkv_bias else LlamaForCausalLM)
    assert_same_logits(ours, theirs)
    assert_same_greedy_text(ours, theirs)
    perturbed(theirs, 0.05, seed=4).save_pretrained(tmp_path / "theirs")
    again = load_huggingface(tmp_path / "theirs")
    assert again.config == ours.config
    assert_same_logits(again, theirs)
    assert_same_greedy_text(again, theirs)


def test_scaled_rope_is_read_as_older_and_newer_versions_store_it(
    random_gpt: Build, tokenizer: BytePairTokenizer, tmp_path: Path
) -> None:
    ours = random_gpt(**LLAMA, rope_scaling=SCALED, rope_base=500.0)
    save_huggingface(tmp_path, ours, tokenizer)
    both = json.loads((tmp_path / "config.json").read_text())
    assert both["rope_scaling"] == {"rope_type": "llama3"} | THEIR_SCALED
    assert both["rope_parameters"] == both["rope_scaling"] | {"rope_theta": 500.0}
    for key in ("rope_scaling", "rope_parameters"):
        rewrite_config(tmp_path, **{"rope_scaling": "absent", "rope_parameters": "absent"} | {key: both[key]})
        assert load_huggingface(tmp_path).config == ours.config
        assert_same_logits(ours, AutoModelForCausalLM.from_pretrained(tmp_path))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rms_norm_eps": 0.0}, "rms_epsilon: Input should be greater than 0"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window is True; only models with False can"),
        ({"attention_bias": True}, "attention_bias is True; only models with False can be read"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 32.0}},
            "its rope is scaled ({'rope_type': 'yarn', 'factor': 32.0}); only models with plain rope or ",
        ),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 32.0}}, "'low_freq_factor' is missing"),
        (
            {"rope_scaling": None, "rope_parameters": {"rope_type": "llama3"} | THEIR_SCALED | {"low_freq_factor": 4}},
            "rope_scaling: Value error, low_freq_factor 4.0 is not below high_freq_factor 4.0; lower it",
        ),
        ({"num_key_value_heads": 3}, "Value error, 4 heads cannot share 3 key-value heads"),
        ({"hidden_size": None}, "emb_dim: Input should be a valid integer"),
    ],
)
def test_a_llama_that_computes_something_else_is_refused(
    changes: dict[str, Any], sentence: str, random_gpt: Build, tokenizer: BytePairTokenizer,
    tmp_path: Path,
) -> None:  # fmt: skip
    save_huggingface(tmp_path / "model", random_gpt(**LLAMA), tokenizer)
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=re.escape(f"{path}: ") + ".*" + re.escape(sentence)):
        load_huggingface(tmp_path / "model")


@pytest.mark.parametrize(
    "changes", [{"norm": "rms"}, {"bias": False}, {"n_kv_heads": 2}, LLAMA | {"position": "sinusoidal"}]
)
def test_a_model_that_no_other_format_holds_is_not_exported(
    changes: dict[str, Any], random_gpt: Build, tokenizer: BytePairTokenizer, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no other format holds a model of position .* can be exported"):
        save_huggingface(tmp_path / "model", random_gpt(**changes), tokenizer)
    assert not list(tmp_path.iterdir())


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
    exported: Path, tmp_path: Path, tiny: GPTModel, tokenizer: BytePairTokenizer
) -> None:
    save_huggingface(tmp_path / "again", tiny, tokenizer)
    assert oct((tmp_path / "again" / WEIGHTS).stat().st_mode)[-3:] == "644"  # which others can read
    names = sorted(path.name for path in exported.iterdir())
    assert names == [
        "config.json",
        "generation_config.json",
        "merges.txt",
        WEIGHTS,
        "tokenizer_config.json",
        "vocab.json",
    ]
    for name in names:
        assert (exported / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_generate_decodes_to_the_end_token_or_the_end_of_the_context_without_being_told(
    random_gpt: Build, tokenizer: BytePairTokenizer, tmp_path: Path
) -> None:
    prompt, end = [7, 3, 200], tokenizer.end_token_id
    model = random_gpt(tied_head=False)
    save_huggingface(tmp_path / "long", model, tokenizer, card="A card.\n")
    assert (tmp_path / "long" / "README.md").read_text() == "A card.\n"
    (free,) = generate(model, [prompt], Stopping(64 - len(prompt), end))
    with torch.no_grad():  # the end token takes the place of the token that comes seventh
        model.head.weight[end] = 1.01 * model.head.weight[free.token_ids[6]]
    save_huggingface(tmp_path / "short", model, tokenizer)
    (short,) = generate(model, [prompt], Stopping(100, end))
    assert len(short.token_ids) < len(free.token_ids) == 61
    for name, expected in (("long", free.token_ids), ("short", [*short.token_ids, end])):
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert theirs.generate(torch.tensor([prompt]))[0, len(prompt) :].tolist() == expected
    padded = AutoTokenizer.from_pretrained(tmp_path / "short")(["a a a", "b"], padding=True, return_tensors="pt")
    assert padded["input_ids"][1, -1] == end and padded["attention_mask"][1, -1] == 0


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
def auto_tokenizer(tmp_path_factory: pytest.TempPathFactory, tiny: GPTModel, tokenizer: BytePairTokenizer) -> Any:
    folder = tmp_path_factory.mktemp("auto") / "exported"
    save_huggingface(folder, tiny, tokenizer)
    return AutoTokenizer.from_pretrained(folder)


def test_the_auto_tokenizer_agrees_over_a_vocabulary_of_gpt2s_format(
    inputs: Inputs, gpt2: BytePairTokenizer, random_gpt: Build, tmp_path: Path
) -> None:
    model = random_gpt(n_layers=1, n_heads=2, emb_dim=4, vocab_size=gpt2.vocab_size)
    save_huggingface(tmp_path / "model", model, gpt2)
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
    expected = f"{path}: tensor h.2.ln_1.weight belongs to no part of a model of this size; fetch or export it again"
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


@pytest.mark.parametrize("kind", llama.KINDS)
def test_a_model_with_the_tokenizer_of_a_llama_comes_back(kind: llama.Kind, random_gpt: Build, tmp_path: Path) -> None:
    tokenizer = BytePairTokenizer(*llama.tiny_pairs(kind))
    n_tokens = tokenizer.vocab_size
    ours = random_gpt(**LLAMA | {"qkv_bias": kind == "qwen2"}, vocab_size=n_tokens)
    save_huggingface(tmp_path / "ours", ours, tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    first, end = [*tokenizer.begin_ids, tokenizer.end_token_id][0], tokenizer.end_token_id
    assert (theirs.config.bos_token_id, theirs.config.eos_token_id) == (first, end)
    theirs.resize_token_embeddings(n_tokens + 8, mean_resizing=False)
    theirs.save_pretrained(tmp_path / "theirs")
    llama.write(tmp_path / "theirs", kind)
    pairs = load_huggingface_tokenizer(tmp_path / "theirs")
    assert pairs == tokenizer.pairs
    assert_same_logits(load_huggingface(tmp_path / "theirs", len(pairs.encoder)), ours)


def test_an_epsilon_that_a_llama_does_not_store_is_transformers_default(
    random_gpt: Build, tokenizer: BytePairTokenizer, tmp_path: Path
) -> None:
    save_huggingface(tmp_path, random_gpt(**LLAMA), tokenizer)
    rewrite_config(tmp_path, rms_norm_eps="absent")
    ours = load_huggingface(tmp_path)
    assert ours.config.rms_epsilon == 1e-6
    assert_same_logits(ours, AutoModelForCausalLM.from_pretrained(tmp_path))


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
    for kind in (["gpt2"], "mistral"):
        path = rewrite_config(exported, model_type=kind)
        assert refusal(exported) == f"{path}: model_type is {kind!r}; only gpt2, llama and qwen2 can be read"


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


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int32, torch.bool, torch.float8_e4m3fn])
def test_quantised_weights_are_refused_and_not_read_as_numbers(exported: Path, kind: torch.dtype) -> None:
    name = "transformer.h.0.mlp.c_fc.weight"
    path = spoil(exported, lambda weights: weights.update({name: weights[name].to(kind)}))
    rewrite_config(exported, quantization_config={"load_in_8bit": True})
    assert refusal(exported).startswith(f"{path}: tensor h.0.mlp.c_fc.weight is of type {str(kind)[6:]}, which no wei")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e300])
def test_numbers_that_float32_does_not_have_are_refused(exported: Path, number: float) -> None:
    name = "transformer.ln_f.bias"
    spoil(exported, lambda weights: weights.update({name: torch.full((32,), number, dtype=torch.float64)}))
    assert "tensor final_norm.shift holds NaN or infinite numbers" in refusal(exported)


def test_a_head_that_differs_from_the_embedding_stays_its_own_as_in_transformers(exported: Path) -> None:
    spoil(exported, lambda weights: weights.update({"lm_head.weight": weights["transformer.wte.weight"] * 2}))
    ours = load_huggingface(exported)
    assert not ours.config.tied_head
    assert_same_logits(ours, AutoModelForCausalLM.from_pretrained(exported))


def test_a_tied_model_may_store_its_matrix_twice_or_as_the_head_alone(exported: Path, tiny: GPTModel) -> None:
    spoil(exported, lambda weights: weights.update({"lm_head.weight": weights["transformer.wte.weight"].clone()}))
    both = load_huggingface(exported)
    spoil(exported, lambda weights: weights.pop("transformer.wte.weight"))
    for found in (both, load_huggingface(exported)):
        assert found.config.tied_head
        assert torch.equal(found.token_embedding.weight, tiny.token_embedding.weight)


@pytest.mark.parametrize("tied_head", [True, False])
def test_rows_beyond_the_tokenizer_are_left_out(random_gpt: Build, exported: Path, tied_head: bool) -> None:
    ours = random_gpt(tied_head=tied_head)
    theirs = random_transformers_gpt(ours.config)
    theirs.resize_token_embeddings(320, mean_resizing=False)
    theirs.save_pretrained(exported)
    again = load_huggingface(exported, 300)
    assert again.config.vocab_size == 300
    token_ids = torch.arange(60)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(token_ids), theirs(token_ids).logits[..., :300], atol=TOLERANCE, rtol=0)
    with pytest.raises(UserError, match="the model has 320 tokens, its tokenizer 321; take both from one model"):
        load_huggingface(exported, 321)


@pytest.mark.parametrize(
    "changes", [{"tied_head": True}, {"tied_head": False}, LLAMA, LLAMA | {"qkv_bias": True, "tied_head": False}]
)
def test_what_transformers_saves_is_read_back_whole_and_in_shards(
    changes: dict[str, Any], random_gpt: Build, tokenizer: BytePairTokenizer, tmp_path: Path
) -> None:
    """Its config, weights in bfloat16 and padded vocabulary, its tokenizer.json."""
    save_huggingface(tmp_path / "ours", random_gpt(**changes), tokenizer)
    theirs, auto = (kind.from_pretrained(tmp_path / "ours") for kind in (AutoModelForCausalLM, AutoTokenizer))
    expected = load_huggingface_tokenizer(tmp_path / "ours")
    theirs.resize_token_embeddings(pad_to_multiple_of=64, mean_resizing=False)
    theirs = theirs.bfloat16()
    auto.add_special_tokens({"pad_token": "<pad>"})  # with an id in the padding, but without a row of its own
    for size in ("1GB", "20KB"):
        folder = tmp_path / size
        theirs.save_pretrained(folder, max_shard_size=size)
        auto.save_pretrained(folder)
        assert not (folder / "vocab.json").exists()
        pairs = load_huggingface_tokenizer(folder)
        assert pairs.merges == expected.merges and list(pairs.encoder)[:300] == list(expected.encoder)
        ours = load_huggingface(folder, len(expected.encoder))
        assert ours.config.vocab_size == 300 and ours.config.tied_head == random_gpt(**changes).config.tied_head
        with torch.no_grad():
            logits = theirs.float()(torch.arange(60)[None]).logits[..., :300]
            torch.testing.assert_close(ours(torch.arange(60)[None]), logits, atol=TOLERANCE, rtol=0)
        theirs = theirs.bfloat16()


def test_the_index_says_which_shards_belong_to_a_model(exported: Path, tiny: GPTModel, tmp_path: Path) -> None:
    folder, theirs = tmp_path / "shards", AutoModelForCausalLM.from_pretrained(exported)
    theirs.save_pretrained(folder, max_shard_size="20KB")
    shards, index = sorted(folder.glob("model-*")), folder / f"{WEIGHTS}.index.json"
    save_file({"left.over": torch.zeros(1)}, folder / "model-00001-of-00099.safetensors")
    assert not (folder / WEIGHTS).exists() and len(shards) > 3
    assert_same_logits(load_huggingface(folder), tiny)
    shards[1].unlink()
    assert refusal(folder) == f"{shards[1]}: no such file; check the path"
    for content in ("{}", '{"weight_map": {}}', '{"weight_map": {"wte.weight": 5}}'):
        index.write_text(content)
        assert refusal(folder).startswith(f"{index}: weight_map does not name the file of each tensor; correct it")
    index.unlink()
    assert "is missing" in refusal(folder)


def test_a_pickle_is_not_read(exported: Path) -> None:
    (exported / WEIGHTS).rename(exported / "pytorch_model.bin")
    assert refusal(exported).startswith(f"{exported / 'pytorch_model.bin'}: weights in a pickle, which can run code")


def tokenizer_json(exported: Path, **changes: Any) -> None:
    vocabulary = json.loads((exported / "vocab.json").read_text())
    merges = (exported / "merges.txt").read_text().splitlines()[1:]
    model = {"type": "BPE", "vocab": vocabulary, "merges": merges} | changes.pop("model", {})
    before = {"type": "ByteLevel", "add_prefix_space": False}
    content = {"model": model, "pre_tokenizer": before, "normalizer": None, "added_tokens": []} | changes
    (exported / "tokenizer.json").write_text(json.dumps(content))


def tokenizer_refusal(folder: Path) -> str:
    with pytest.raises(UserError) as failure:
        load_huggingface_tokenizer(folder)
    return str(failure.value)


def test_a_tokenizer_json_may_hold_its_merges_as_texts_and_the_end_token_apart(exported: Path) -> None:
    expected = load_huggingface_tokenizer(exported)
    encoder = dict(expected[0])
    end = encoder.pop(END_OF_TEXT)
    added = [{"id": end, "content": END_OF_TEXT}, {"id": end + 1, "content": "<pad>"}]
    tokenizer_json(exported, model={"vocab": encoder}, added_tokens=added)
    (exported / "vocab.json").unlink()
    assert load_huggingface_tokenizer(exported) == expected


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"model": {"type": "Unigram"}}, "not a kind of tokenizer that can be read"),
        ({"normalizer": {"type": "NFC"}}, "not a kind of tokenizer that can be read"),
        (
            {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
            "not a kind of tokenizer that can be read",
        ),
        ({"pre_tokenizer": None}, "not a kind of tokenizer that can be read"),
        ({"model": {"vocab": 5}}, "not the file of a byte-pair tokenizer"),
        ({"model": {"merges": [1]}}, "not the file of a byte-pair tokenizer"),
        ({"model": {"merges": ["h"]}}, "vocabulary and merges"),
        ({"added_tokens": [{"id": "x", "content": END_OF_TEXT}]}, "vocabulary and merges"),
    ],
)
def test_another_kind_of_tokenizer_is_refused(exported: Path, changes: dict[str, Any], fault: str) -> None:
    tokenizer_json(exported, **changes)
    (exported / "vocab.json").unlink()
    assert fault in tokenizer_refusal(exported)


@pytest.mark.parametrize(
    ("file", "content", "fault"),
    [
        ("vocab.json", b"null", "vocab.json: expected an object of JSON, found NoneType"),
        ("vocab.json", b"\xff", "vocab.json: not valid JSON"),
        ("vocab.json", b'{"a": "x", "b": 1}', "vocabulary and merges do not belong together"),
        ("vocab.json", b'{"a": null, "b": [1]}', "vocabulary and merges do not belong together"),
        ("merges.txt", b"#v\n\xff \xfe\n", "merges.txt: not UTF-8 text"),
        ("merges.txt", b"#v\na b c\n", "merges.txt: every line but the first must hold two tokens"),
        ("tokenizer_config.json", b'{"add_prefix_space": true}', "add_prefix_space is true"),
    ],
)
def test_tokenizer_files_of_another_shape_are_refused(exported: Path, file: str, content: bytes, fault: str) -> None:
    (exported / file).write_bytes(content)
    assert fault in tokenizer_refusal(exported)


def test_a_file_in_the_folders_place_is_named(exported: Path) -> None:
    assert tokenizer_refusal(exported / "config.json").endswith("vocab.json: no such file; check the path")


@pytest.mark.parametrize("style", get_args(PromptStyle))
def test_the_chat_template_words_an_instruction_as_finetuning_does(
    style: PromptStyle, tiny: GPTModel, tokenizer: BytePairTokenizer, tmp_path: Path
) -> None:
    save_huggingface(tmp_path / "chat", tiny, tokenizer, chat_template(style, END_OF_TEXT))
    theirs = AutoTokenizer.from_pretrained(tmp_path / "chat")
    asked, then = (
        format_prompt({"instruction": text, "input": ""}, style) for text in ("Say {{ hi }}.\n", "  And {% if %}?")
    )
    # chatml words the system's message, too
    system = [] if style == "chatml" else [{"role": "system", "content": "Be kind."}]
    messages = [*system, {"role": "user", "content": "Say {{ hi }}.\n"}]
    assert theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == asked
    more = [*messages, {"role": "assistant", "content": "Hi!"}, {"role": "user", "content": "  And {% if %}?"}]
    if style == "chatml":
        then = "\n" + then[then.index("<|im_start|>user") :]
    answered = asked + "Hi!" + END_OF_TEXT + then
    assert theirs.apply_chat_template(more, tokenize=False, add_generation_prompt=True) == answered
    save_huggingface(tmp_path / "base", tiny, tokenizer)
    assert AutoTokenizer.from_pretrained(tmp_path / "base").chat_template is None
