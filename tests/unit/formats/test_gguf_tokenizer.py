"""Tokenizers of GGUF files."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unicodedata import normalize

import gguf
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from scratchlm.data.byte_pairs import BytePairs, BytePairTokenizer, train_byte_pairs
from scratchlm.formats import gguf as gguf_writer
from scratchlm.formats.gguf import _add_tokenizer, save_gguf
from scratchlm.formats.gguf_file import GGUFFile
from scratchlm.formats.gguf_tokenizer import read_gguf_tokenizer
from scratchlm.model.gpt import GPTModel
from scratchlm.run.errors import UserError
from tests import llama, smollm
from tests.unit.judge.ollama_stand_in import llama_server

TEMPLATE = "{{ messages }} é"
GPT2 = BytePairs(*train_byte_pairs([smollm.TEXT], 300))
SMOLLM = smollm.tiny_pairs()
LLAMA2, LLAMA3, QWEN2 = map(llama.tiny_pairs, ("llama2", "llama3", "qwen2"))


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


@pytest.mark.parametrize("pairs", [SMOLLM, GPT2, LLAMA3, QWEN2])
@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_a_gguf_file_gives_the_tokenizer_back(tmp_path: Path, pairs: BytePairs, template: str | None) -> None:
    read = read_gguf_tokenizer(GGUFFile(written(tmp_path / "t.gguf", pairs, template)))
    assert read == pairs._replace(settings=pairs.settings.model_copy(update={"chat_template": template}))


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        (
            {"model": "bert"},
            "its tokenizer is 'bert' with 'smollm'; only byte-pair encoding (gpt2) with gpt-2, smollm, llama-bpe, qw",
        ),
        ({"pre": "deepseek-llm"}, "its tokenizer is 'gpt2' with 'deepseek-llm'"),
        ({"pre": None}, "its tokenizer is 'gpt2' with None"),
        (
            {"add_bos_token": True},
            "a tokenizer without tokens, their types, merges or scores, or without end or begin tok",
        ),
        ({"tokens": None}, "a tokenizer without tokens, their types"),
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


@pytest.mark.long
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


def add_scores(writer: Any, pairs: BytePairs, **fields: Any) -> None:
    """Write a tokenizer of SentencePiece's kind as llama.cpp's converter does. fields: those that differ."""
    tokens = list(pairs.encoder)
    characters = [i for i, token in enumerate(tokens) if len(token) == 1]
    scores = [-1e9 if not token.strip("▁") else -float(i) for i, token in enumerate(tokens)]
    kinds = [gguf.TokenType.UNKNOWN] + [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.BYTE] * 256
    kinds += [gguf.TokenType.NORMAL] * (len(tokens) - len(kinds))
    assert tokens[258] == "<0xFF>" and characters[0] > 259
    values = {"tokens": tokens, "scores": scores, "token_type": kinds, "eos_token_id": 2, "bos_token_id": 1} | fields
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    for name, add in (
        ("tokens", writer.add_token_list), ("scores", writer.add_token_scores), ("token_type", writer.add_token_types),
        ("eos_token_id", writer.add_eos_token_id), ("bos_token_id", writer.add_bos_token_id),
        ("add_bos_token", writer.add_add_bos_token), ("add_space_prefix", writer.add_add_space_prefix),
    ):  # fmt: skip
        if values.get(name) is not None:
            add(values[name])


def scored(path: Path, **fields: Any) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    add_scores(writer, LLAMA2, **fields)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_scores_become_merges(tmp_path: Path) -> None:
    found = read_gguf_tokenizer(GGUFFile(scored(tmp_path / "t.gguf")))
    assert (found.encoder, found.settings) == (LLAMA2.encoder, LLAMA2.settings)
    assert sorted(found.merges) == sorted(LLAMA2.merges)
    runs = [pair for pair in found.merges if not "".join(pair).strip("▁")]
    assert sorted(runs[:8]) == [("▁" * n, "▁" * n) for n in range(1, 9)]
    silent = read_gguf_tokenizer(GGUFFile(scored(tmp_path / "t.gguf", add_bos_token=False)))
    assert silent.settings.begin_token is None


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"add_space_prefix": False}, "its tokenizer is 'llama' with 'default'; only"),
        ({"scores": None}, "a tokenizer without tokens, their types, merges or scores"),
        (
            {"bos_token_id": None},
            "a tokenizer without tokens, their types, merges or scores, or without end or begin t",
        ),
        ({"token_type": [4] * len(LLAMA2.encoder)}, "its tokenizer has tokens that are neither text nor control"),
        ({"token_type": [1] * len(LLAMA2.encoder)}, "vocabulary and merges do not belong together"),
    ],
)
def test_scores_of_another_kind_are_refused(tmp_path: Path, fields: dict[str, Any], fault: str) -> None:
    path = scored(tmp_path / "t.gguf", **fields)
    with pytest.raises(UserError) as failure:
        read_gguf_tokenizer(GGUFFile(path))
    assert str(failure.value).startswith(f"{path}: {fault}")


def test_merges_are_written_as_scores_only_if_they_come_back(tiny_gpt: Callable[..., GPTModel], tmp_path: Path) -> None:
    back = read_gguf_tokenizer(GGUFFile(written(tmp_path / "t.gguf", LLAMA2, None)))
    assert (back.encoder, back.settings) == (LLAMA2.encoder, LLAMA2.settings)
    assert sorted(back.merges) == sorted(LLAMA2.merges)
    assert read_gguf_tokenizer(GGUFFile(written(tmp_path / "t.gguf", back, None))) == back
    fewer = LLAMA2._replace(merges=[pair for pair in LLAMA2.merges if pair != ("▁▁", "▁")])
    for pairs in (fewer, llama.tiny_pairs("metaspace")):
        with pytest.raises(
            UserError, match="GGUF has no form of this tokenizer's rules or merges; export with --format"
        ):
            save_gguf(tmp_path / "model.gguf", tiny_gpt(), BytePairTokenizer(*pairs))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.gguf"]


@pytest.mark.parametrize(
    ("pairs", "theirs"), [(SMOLLM, False), (LLAMA2, True), (LLAMA2, False), (LLAMA3, False), (QWEN2, False)]
)
def test_llama_cpp_splits_text_into_our_tokens(
    pairs: BytePairs, theirs: bool, tiny_gpt: Callable[..., GPTModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It merges no bytes across a missing one, as Hugging Face's library does. It does not normalise Qwen2's text."""
    model = tiny_gpt(
        vocab_size=len(pairs.encoder), context_length=256, n_heads=4, emb_dim=32, tied_head=True,
        initialisation="gpt2", attention="sdpa",
    )  # fmt: skip
    if theirs:
        monkeypatch.setattr(gguf_writer, "_add_tokenizer", lambda writer, *_: add_scores(writer, LLAMA2))
    save_gguf(tmp_path / "model.gguf", model, BytePairTokenizer(*pairs))
    tokenizer = BytePairTokenizer(*read_gguf_tokenizer(GGUFFile(tmp_path / "model.gguf")))
    assert set(tokenizer.pairs.merges) == set(pairs.merges)
    server = llama_server(tmp_path / "model.gguf", 256)
    end, begin = pairs.settings.end_token, tokenizer.begin_ids
    for text in (
        smollm.TEXT,
        "  5",
        " \n 12 ½²٣",
        "a  b\n\n c",
        "I'll we'd 'S",
        "e\u0301 👩\u200d💻 \u00a0x",
        "a\x04b",
        "so: \n\n\n  (12345)!\r\n 'LL",
        "x" + " " * 3 + "y" + " " * 20 + "." + " " * 47,
        "",
    ):
        text = normalize("NFC", text) if pairs == QWEN2 else text
        for special in (False, True):
            request = {"content": text + end, "parse_special": special, "add_special": special}
            reply = requests.post(f"{server.listening_address}/tokenize", json=request, timeout=60)
            expected = [*begin, *tokenizer.encode(text), tokenizer.end_token_id]
            assert reply.json()["tokens"] == (expected if special else tokenizer.encode(text + end)), text
