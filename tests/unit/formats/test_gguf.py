from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import gguf
import numpy as np
import pytest
import requests
import torch

from scratchlm.data.byte_pairs import END_OF_TEXT, BytePairTokenizer, save_byte_pairs, train_byte_pairs
from scratchlm.data.prompts import PromptStyle, chat_template, format_prompt
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.formats.gguf import save_gguf
from scratchlm.formats.gguf_file import GGUFFile
from scratchlm.formats.gguf_reader import load_gguf
from scratchlm.model.generate import Stopping, generate
from scratchlm.model.gpt import GPTModel
from scratchlm.run.errors import UserError
from tests.perturbed import perturbed
from tests.unit.judge.ollama_stand_in import llama_server

TEXT = (
    "Sara was in the garden. She said: it's late, isn't it? Tom had 12 apples and 345 pears; naïve café 東京 🙂.\n\n"
    * 3
)
CONTEXT_LENGTH = 256
Build = Callable[..., GPTModel]
PROMPTS = [
    "Sara was",
    "Tom had 12",
    "\n\n",
    "She said: it's",
]  # llama.cpp rounds within GELU: a tie might fall otherwise


@pytest.fixture(scope="module")
def random_gpt(tiny_gpt: Build) -> Build:
    """Builds a GPT over the test tokenizer's vocabulary."""
    size = {"vocab_size": 320, "context_length": CONTEXT_LENGTH, "n_heads": 4, "emb_dim": 32}
    rest = {"tied_head": True, "initialisation": "gpt2", "attention": "sdpa"}
    return lambda **changes: perturbed(tiny_gpt(**size | rest | changes), 0.3)


def continued_by_llama(path: Path, prompt: list[int], n_tokens: int) -> list[int]:
    """Greedy tokens from llama.cpp's server, the end token among them."""
    server = llama_server(path, CONTEXT_LENGTH)
    reply = requests.post(
        f"{server.listening_address}/completion",
        json={"prompt": prompt, "n_predict": n_tokens, "temperature": 0, "return_tokens": True, "ignore_eos": False},
        timeout=60,
    )
    reply.raise_for_status()
    return reply.json()["tokens"]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "trained"
    save_byte_pairs(folder, *train_byte_pairs([TEXT], 320))
    return folder


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> BytePairTokenizer:
    found = load_tokenizer(tokenizer_folder)
    assert isinstance(found, BytePairTokenizer)
    return found


LLAMA = {
    "position": "rope", "norm": "rms", "feed_forward": "swiglu", "n_kv_heads": 2, "qkv_bias": False, "bias": False,
}  # fmt: skip
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context_length": 8192}
KINDS = [
    {"tied_head": True}, {"tied_head": False}, {"tied_head": True, "qkv_bias": False},
    {"tied_head": False, "qkv_bias": False}, LLAMA, LLAMA | {"tied_head": False, "head_dim": 16, "rope_base": 500.0},
    LLAMA | {"rope_scaling": LLAMA3, "rope_base": 5e5}, LLAMA | {"rms_epsilon": 0.01},
    LLAMA | {"qkv_bias": True, "rms_epsilon": 1e-6}, LLAMA | {"qkv_bias": True, "n_kv_heads": 4, "tied_head": False},
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("changes", KINDS)
def test_llama_cpp_continues_a_prompt_as_we_do_token_for_token(
    changes: dict[str, Any],
    random_gpt: Build,
    tokenizer: BytePairTokenizer,
    tmp_path: Path,
) -> None:
    model = random_gpt(**changes)
    save_gguf(tmp_path / "model.gguf", model, tokenizer)
    for text in PROMPTS:
        prompt = tokenizer.encode(text)
        (ours,) = generate(model, [prompt], Stopping(60, tokenizer.end_token_id))
        theirs = continued_by_llama(tmp_path / "model.gguf", prompt, 60)
        assert theirs[: len(ours.token_ids)] == ours.token_ids
        assert theirs[len(ours.token_ids) :] in ([], [tokenizer.end_token_id])


@pytest.mark.parametrize("changes", KINDS)
def test_a_file_gives_the_model_back_bit_for_bit(
    changes: dict[str, Any], random_gpt: Build, tokenizer: BytePairTokenizer, tmp_path: Path
) -> None:
    model = random_gpt(**changes)
    save_gguf(tmp_path / "model.gguf", model, tokenizer)
    again = load_gguf(GGUFFile(tmp_path / "model.gguf"))
    fixed = {"attention": "eager", "qkv_bias": model.config.qkv_bias}
    assert again.config.model_copy(update=fixed) == model.config.model_copy(update=fixed)
    found = again.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(found[name], tensor), name


MATRICES = ("blk.0.attn_qkv.weight", "token_embd.weight", "blk.1.ffn_down.weight", "position_embd.weight")
VECTORS = ("blk.0.attn_qkv.bias", "output_norm.weight", "blk.1.ffn_down.bias")


def types_in(path: Path, *names: str) -> set[str]:
    """The types of these tensors."""
    return {tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors if tensor.name in names}


def rewrite(source: Path, target: Path, convert: Callable[[np.ndarray], tuple[np.ndarray, str]]) -> None:
    """Copy a GGUF file of a Llama, with what `convert` makes of each matrix: numbers, and the name of their type."""
    whole, writer = gguf.GGUFReader(source), gguf.GGUFWriter(target, "llama")
    for name, field in whole.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            element = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], element)
    for tensor in whole.tensors:
        data, kind = convert(tensor.data) if tensor.data.ndim == 2 else (tensor.data, "F32")
        writer.add_tensor(tensor.name, data, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(("kind", "error"), [("Q8_0", 0.01), ("Q4_1", 0.15), ("F16", 1e-3)])
def test_quantised_weights_are_the_numbers_that_they_stand_for(
    kind: str, error: float, random_gpt: Build, tokenizer: BytePairTokenizer, tmp_path: Path
) -> None:
    model, type_ = random_gpt(**LLAMA, hidden_dim=64), gguf.GGMLQuantizationType[kind]
    save_gguf(tmp_path / "model.gguf", model, tokenizer)
    rewrite(tmp_path / "model.gguf", tmp_path / "small.gguf", lambda data: (gguf.quantize(data, type_), kind))
    found, expected = load_gguf(GGUFFile(tmp_path / "small.gguf")).state_dict(), model.state_dict()
    for name in ("blocks.0.attention.qkv.weight", "blocks.1.feed_forward.expansion.weight", "token_embedding.weight"):
        spread = expected[name].std()
        assert 0 < (found[name] - expected[name]).square().mean().sqrt() < error * spread


def test_weights_of_a_type_that_cannot_be_read_are_refused(
    random_gpt: Build, tokenizer: BytePairTokenizer, tmp_path: Path
) -> None:
    save_gguf(tmp_path / "model.gguf", random_gpt(**LLAMA, hidden_dim=64), tokenizer)
    rewrite(tmp_path / "model.gguf", tmp_path / "odd.gguf", lambda data: (data.astype(np.int8), "I8"))
    with pytest.raises(UserError, match=r"odd\.gguf: tensor \S+ is of type I8, which .*; take a file of another type"):
        load_gguf(GGUFFile(tmp_path / "odd.gguf"))


def test_what_is_not_a_model_of_ours_is_refused(
    random_gpt: Build, tokenizer: BytePairTokenizer, tmp_path: Path
) -> None:
    def refusal(path: Path) -> str:
        with pytest.raises(UserError) as refused:
            load_gguf(GGUFFile(path))
        return str(refused.value)

    assert refusal(tmp_path / "none.gguf").startswith(f"{tmp_path / 'none.gguf'}")
    (tmp_path / "text.gguf").write_text("no model" * 100)
    assert "not a whole GGUF file" in refusal(tmp_path / "text.gguf")
    save_gguf(tmp_path / "model.gguf", random_gpt(**LLAMA), tokenizer)
    whole = (tmp_path / "model.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:-1000])
    assert "not a whole GGUF file" in refusal(tmp_path / "cut.gguf")
    (tmp_path / "other.gguf").write_bytes(whole.replace(b"llama", b"lambs"))
    assert refusal(tmp_path / "other.gguf").endswith(
        "a model of architecture 'lambs'; only gpt2, llama and qwen2 can be read"
    )


@pytest.mark.parametrize("changes", [{"original_context_length": 4096}, {"low_freq_factor": 2.0}])
def test_scaled_rope_whose_settings_a_file_does_not_tell_is_refused(
    changes: dict[str, Any], random_gpt: Build, tokenizer: BytePairTokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    save_gguf(path, random_gpt(**LLAMA, rope_base=5e5, rope_scaling=LLAMA3 | changes), tokenizer)
    with pytest.raises(UserError, match=f"{path}: its rope is scaled, but not as in Llama 3.1; import"):
        load_gguf(GGUFFile(path))


def test_llama_cpp_stops_at_the_end_token(random_gpt: Build, tokenizer: BytePairTokenizer, tmp_path: Path) -> None:
    """The end token's own head row, made the likeliest after a while, ends both continuations at one place."""
    model = random_gpt(tied_head=False)
    prompt = tokenizer.encode("Sara was")
    (free,) = generate(model, [prompt], Stopping(20, None))
    with torch.no_grad():  # the end token takes the place of the token that comes seventh
        model.head.weight[tokenizer.end_token_id] = 1.01 * model.head.weight[free.token_ids[6]]
    (ours,) = generate(model, [prompt], Stopping(40, tokenizer.end_token_id))
    assert ours.finished and len(ours.token_ids) < 40
    save_gguf(tmp_path / "model.gguf", model, tokenizer)
    theirs = continued_by_llama(tmp_path / "model.gguf", prompt, 40)
    assert theirs in (ours.token_ids, [*ours.token_ids, tokenizer.end_token_id])


def test_llama_cpp_splits_text_into_our_tokens(random_gpt: Build, tokenizer: BytePairTokenizer, tmp_path: Path) -> None:
    save_gguf(tmp_path / "model.gguf", random_gpt(), tokenizer)
    server = llama_server(tmp_path / "model.gguf", CONTEXT_LENGTH)
    for text in (TEXT, " ", "a  b\n\n c", "I'll we'd 'S 007", "e\u0301 👩\u200d💻 \u00a0x"):
        reply = requests.post(f"{server.listening_address}/tokenize", json={"content": text}, timeout=60)
        assert reply.json()["tokens"] == tokenizer.encode(text), text


@pytest.mark.parametrize("style", get_args(PromptStyle))
def test_llama_cpp_words_an_instruction_as_finetuning_does(
    style: PromptStyle, random_gpt: Build, tokenizer: BytePairTokenizer, tmp_path: Path
) -> None:
    template = chat_template(style, END_OF_TEXT)
    save_gguf(tmp_path / "model.gguf", random_gpt(), tokenizer, template)
    server = llama_server(tmp_path / "model.gguf", CONTEXT_LENGTH)
    messages = [{"role": "user", "content": "Write the opposite of hot."}]
    reply = requests.post(f"{server.listening_address}/apply-template", json={"messages": messages}, timeout=60)
    assert reply.json()["prompt"] == format_prompt({"instruction": messages[0]["content"], "input": ""}, style)


def test_weights_beyond_float16_are_refused_and_not_made_infinite(
    random_gpt: Build, tokenizer: BytePairTokenizer, tmp_path: Path
) -> None:
    model = random_gpt()
    with torch.no_grad():
        model.blocks[1].feed_forward.expansion.weight[3, 4] = -70_000
    with pytest.raises(UserError, match="tensor blk.1.ffn_up.weight has numbers beyond float16; exp"):
        save_gguf(tmp_path / "half.gguf", model, tokenizer, storage="float16")
    assert not list(tmp_path.glob("*half.gguf*"))


def test_half_precision_halves_the_matrices_and_runs(
    random_gpt: Build, tokenizer: BytePairTokenizer, tmp_path: Path
) -> None:
    model = random_gpt()
    save_gguf(tmp_path / "whole.gguf", model, tokenizer)
    save_gguf(tmp_path / "half.gguf", model, tokenizer, storage="float16")
    assert types_in(tmp_path / "half.gguf", *MATRICES) == {"F16"}
    assert types_in(tmp_path / "half.gguf", *VECTORS) == {"F32"}
    assert (tmp_path / "half.gguf").stat().st_size < 0.7 * (tmp_path / "whole.gguf").stat().st_size
    prompt = tokenizer.encode("Sara was")
    theirs = continued_by_llama(tmp_path / "half.gguf", prompt, 20)
    (ours,) = generate(load_gguf(GGUFFile(tmp_path / "half.gguf")), [prompt], Stopping(5, tokenizer.end_token_id))
    assert theirs[: len(ours.token_ids)] == ours.token_ids


@pytest.mark.parametrize(("emb_dim", "blocks", "rest"), [(64, "Q8_0", "Q8_0"), (40, "Q8_0", "F16")])
def test_eight_bits_are_for_matrices_of_whole_blocks_and_run(
    emb_dim: int, blocks: str, rest: str, random_gpt: Build, tokenizer: BytePairTokenizer, tmp_path: Path
) -> None:
    """Of 40 channels and 160 in the feed-forward layer, blocks of 32 divide only the latter."""
    model, path = random_gpt(emb_dim=emb_dim), tmp_path / "small.gguf"
    save_gguf(path, model, tokenizer, storage="q8_0")
    assert types_in(path, "blk.1.ffn_down.weight") == {blocks}
    assert types_in(path, "blk.0.attn_qkv.weight", "token_embd.weight", "blk.0.ffn_up.weight") == {rest}
    assert types_in(path, "position_embd.weight") == {"F16"}
    assert types_in(path, *VECTORS) == {"F32"}
    found = load_gguf(GGUFFile(path)).state_dict()
    for name, weights in model.state_dict().items():
        largest = weights.abs().max()
        assert (found[name] - weights).abs().max() <= (0.51 / 127) * largest, name
    name = "blocks.1.feed_forward.projection.weight"
    assert (found[name] - model.state_dict()[name]).abs().max() > 1e-4  # float16 would be nearer
    assert len(continued_by_llama(path, tokenizer.encode("Sara was"), 10)) > 0


@pytest.mark.parametrize("tied_head", [True, False])
def test_a_file_holds_every_tensor_and_what_llama_cpp_must_know(
    tied_head: bool, random_gpt: Build, tokenizer: BytePairTokenizer, tmp_path: Path
) -> None:
    model = random_gpt(qkv_bias=False, tied_head=tied_head)
    general = {"name": "finetune_instruct", "license": "cc0-1.0"}
    save_gguf(tmp_path / "model.gguf", model, tokenizer, general=general)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    weights = model.state_dict()
    assert len(tensors) == 4 + 12 * 2 + (not tied_head)
    assert ("output.weight" in tensors) != tied_head
    assert np.array_equal(tensors["blk.1.ffn_up.weight"], weights["blocks.1.feed_forward.expansion.weight"])
    assert np.array_equal(tensors["blk.0.attn_norm.bias"], weights["blocks.0.norm1.shift"])
    assert tensors["blk.0.attn_qkv.bias"].shape == (96,) and not tensors["blk.0.attn_qkv.bias"].any()
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "gpt2"
    assert (fields["general.name"], fields["general.license"]) == ("finetune_instruct", "cc0-1.0")
    assert fields["general.sampling.temp"] == 0
    assert fields["gpt2.block_count"] == 2
    assert fields["gpt2.context_length"] == CONTEXT_LENGTH
    assert fields["gpt2.embedding_length"] == 32
    assert fields["gpt2.feed_forward_length"] == 128
    assert fields["gpt2.attention.head_count"] == 4
    assert fields["gpt2.attention.layer_norm_epsilon"] == pytest.approx(1e-5)
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.end_token_id
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert len(fields["tokenizer.ggml.tokens"]) == 320
    kinds = fields["tokenizer.ggml.token_type"]
    assert [i for i, kind in enumerate(kinds) if kind == gguf.TokenType.CONTROL] == [tokenizer.end_token_id]


def test_the_same_model_gives_the_same_bytes(random_gpt: Build, tokenizer: BytePairTokenizer, tmp_path: Path) -> None:
    for name in ("one.gguf", "two.gguf"):
        save_gguf(tmp_path / name, random_gpt(), tokenizer, storage="float16")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.gguf", "two.gguf"]
