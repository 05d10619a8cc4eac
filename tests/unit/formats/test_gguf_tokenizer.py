"""Tokenizers of GGUF files."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from scratchlm.data.byte_pairs import BytePairs, BytePairTokenizer, save_byte_pairs, train_byte_pairs
from scratchlm.formats.gguf import _add_tokenizer, save_gguf
from scratchlm.formats.gguf_file import GGUFFile
from scratchlm.formats.gguf_tokenizer import read_gguf_tokenizer
from scratchlm.model.gpt import GPTModel
from scratchlm.run.errors import UserError
from tests import smollm
from tests.unit.judge.ollama_stand_in import llama_server

TEMPLATE = "{{ messages }} é"
GPT2 = BytePairs(*train_byte_pairs([smollm.TEXT], 300))
SMOLLM = smollm.tiny_pairs()


def written(path: Path, pairs: BytePairs = SMOLLM, template: str | None = TEMPLATE, **fields: Any) -> Path:
    """A GGUF file of a tokenizer alone; fields: those of the tokenizer that differ, None for one that is left out."""
    writer = gguf.GGUFWriter(path, "llama")
    _add_tokenizer(writer, BytePairTokenizer(*pairs), template)
    for name, value in fields.items():
        key = next(key for key in (f"tokenizer.ggml.{name}", f"tokenizer.{name}") if key in writer.kv_data[0])
        if value is None:
            del writer.kv_data[0][key]
        else:
            writer.kv_data[0][key].value = value
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("pairs", [SMOLLM, GPT2])
@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_a_gguf_file_gives_the_tokenizer_back(tmp_path: Path, pairs: BytePairs, template: str | None) -> None:
    read = read_gguf_tokenizer(GGUFFile(written(tmp_path / "t.gguf", pairs, template)))
    assert read == pairs._replace(settings=pairs.settings.model_copy(update={"chat_template": template}))


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        (
            {"model": "llama"},
            "its tokenizer is 'llama' with 'smollm'; only byte-pair encoding (gpt2) with gpt-2 or",
        ),
        ({"pre": "llama-bpe"}, "its tokenizer is 'gpt2' with 'llama-bpe'"),
        ({"pre": None}, "its tokenizer is 'gpt2' with None"),
        ({"add_bos_token": True}, "its tokenizer adds a token before every text"),
        ({"tokens": None}, "a tokenizer without tokens, their types, merges or end token; correct it, or take a sound"),
        ({"token_type": [1]}, "a tokenizer without tokens, their types"),
        ({"merges": None}, "vocabulary and merges do not belong together"),
        ({"merges": [1]}, "a tokenizer without tokens, their types"),
        ({"merges": ["a b c"]}, "vocabulary and merges do not belong together"),
        ({"merges": ["a b"]}, "vocabulary and merges do not belong together"),
        ({"eos_token_id": 5_000}, "a tokenizer without tokens, their types"),
        ({"eos_token_id": None}, "a tokenizer without tokens, their types"),
        ({"eos_token_id": 50}, "vocabulary and merges do not belong together"),
        (
            {"token_type": [4] * len(SMOLLM.encoder)},
            "its tokenizer has tokens that are neither text nor control",
        ),
    ],
)
def test_what_is_no_such_tokenizer_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], fault: str) -> None:
    path = written(tmp_path / "t.gguf", **fields)
    with pytest.raises(UserError) as failure:
        read_gguf_tokenizer(GGUFFile(path))
    assert str(failure.value).startswith(f"{path}: {fault}")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"no GGUF at all, but some bytes", b"GGUF\x03\0\0\0" + b"\xff" * 16])
def test_what_is_no_gguf_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.gguf").write_bytes(content)
    with pytest.raises(UserError, match="t.gguf: not a whole GGUF file"):
        read_gguf_tokenizer(GGUFFile(tmp_path / "t.gguf"))
    with pytest.raises(UserError, match="x.gguf: no such file; check the path"):
        read_gguf_tokenizer(GGUFFile(tmp_path / "x.gguf"))


@given(data=st.data())
def test_a_cut_file_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("cut")
    whole = written(folder / "t.gguf").read_bytes()
    (folder / "t.gguf").write_bytes(whole[: data.draw(st.integers(0, len(whole) - 40))])
    with pytest.raises(UserError, match="t.gguf: "):
        read_gguf_tokenizer(GGUFFile(folder / "t.gguf"))


def test_a_count_of_items_that_the_file_lacks_is_refused_at_once(tmp_path: Path) -> None:
    """gguf would collect as many empty items, until memory ends."""
    path = written(tmp_path / "t.gguf")
    kinds = b"tokenizer.ggml.token_type" + struct.pack("<II", gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32)
    content = path.read_bytes()
    assert content.count(kinds) == 1
    count = content.index(kinds) + len(kinds)
    path.write_bytes(content[:count] + struct.pack("<Q", 1 << 40) + content[count + 8 :])
    with pytest.raises(UserError, match="t.gguf: not a whole GGUF file"):
        read_gguf_tokenizer(GGUFFile(path))


def test_llama_cpp_splits_text_into_our_tokens(tiny_gpt: Callable[..., GPTModel], tmp_path: Path) -> None:
    """It merges no bytes across a missing one, as Hugging Face's library does."""
    save_byte_pairs(tmp_path / "t", *SMOLLM)
    tokenizer = BytePairTokenizer(*SMOLLM)
    model = tiny_gpt(
        vocab_size=tokenizer.vocab_size, context_length=256, n_heads=4, emb_dim=32, tied_head=True,
        initialisation="gpt2", attention="sdpa",
    )  # fmt: skip
    save_gguf(tmp_path / "model.gguf", model, tokenizer, half=False)
    server = llama_server(tmp_path / "model.gguf", 256)
    for text in (
        smollm.TEXT,
        "  5",
        " \n 12 ½²٣",
        "a  b\n\n c",
        "I'll we'd 'S",
        "e\u0301 👩\u200d💻 \u00a0x",
        "a\x04b",
    ):
        for special in (False, True):
            request = {"content": text + "<|im_end|>", "parse_special": special}
            reply = requests.post(f"{server.listening_address}/tokenize", json=request, timeout=60)
            end = [tokenizer.end_token_id] if special else tokenizer.encode("<|im_end|>")
            assert reply.json()["tokens"] == tokenizer.encode(text) + end, text
