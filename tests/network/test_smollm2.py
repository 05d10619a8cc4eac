"""SmolLM2's real tokenizer: our ids are those of Hugging Face's library and of llama.cpp."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from scratchlm.data.byte_pairs import BytePairTokenizer
from scratchlm.data.catalogue import CATALOGUE
from scratchlm.data.prompts import chat_template, encode_prompt, format_prompt
from scratchlm.formats.gguf_file import GGUFFile
from scratchlm.formats.gguf_tokenizer import read_gguf_tokenizer
from scratchlm.formats.huggingface_tokenizer import load_huggingface_tokenizer, save_huggingface_tokenizer
from scratchlm.run.files import sha256_of
from tests import smollm
from tests.network.conftest import FILES
from tests.unit.judge.ollama_stand_in import llama_server

CORPORA = [(source, name) for source, names in FILES.items() for name in names if not name.endswith((".index", ".bpe"))]
ENTRY = {"instruction": "Name  3 colours.\n", "input": "bright"}


@pytest.fixture(scope="session")
def ours(smollm2: Path) -> BytePairTokenizer:
    return BytePairTokenizer(*read_gguf_tokenizer(GGUFFile(smollm2)))


@pytest.fixture(scope="session")
def rules(ours: BytePairTokenizer) -> Tokenizer:
    """SmolLM2's tokenizer.json. transformers' `gguf_file=` lacks its digits and keeps GPT-2's pattern."""
    return smollm.reference(ours.pairs)


@pytest.fixture(scope="session")
def auto_tokenizer(ours: BytePairTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("smollm2")
    save_huggingface_tokenizer(folder, ours, 8192, ours.pairs.settings.chat_template)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def server(smollm2: Path) -> Any:
    return llama_server(smollm2, 256)


def by_llama(server: Any, text: str, special: bool = False) -> list[int]:
    request = {"content": text, "add_special": False, "parse_special": special}
    reply = requests.post(f"{server.listening_address}/tokenize", json=request, timeout=120)
    reply.raise_for_status()
    return reply.json()["tokens"]


def test_the_tokenizer_is_the_published_one(ours: BytePairTokenizer) -> None:
    chosen = ours.pairs.settings
    assert (ours.vocab_size, ours.end_token_id, chosen.end_token) == (49_152, 2, "<|im_end|>")
    assert list(ours.special_tokens.values()) == list(range(17))
    assert len(chosen.missing_bytes) == 21
    assert chosen.chat_template == chat_template("chatml", "<|im_end|>")


def test_the_published_tokenizer_json_is_the_one_in_the_gguf_file(ours: BytePairTokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(smollm.tokenizer_json(ours.pairs), encoding="utf-8")
    pinned = {file.name: file.sha256 for file in CATALOGUE["smollm2-360m"].files}
    assert sha256_of(tmp_path / "tokenizer.json") == pinned["tokenizer.json"]
    config = {"eos_token": "<|im_end|>", "chat_template": ours.pairs.settings.chat_template}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_huggingface_tokenizer(tmp_path) == ours.pairs


@pytest.mark.parametrize(("source", "name"), CORPORA)
def test_real_texts_get_the_ids_of_hugging_face_and_of_llama_cpp(
    ours: BytePairTokenizer, rules: Tokenizer, auto_tokenizer: Any, server: Any, real: Path, source: str, name: str
) -> None:
    text = (real / source / name).read_text("utf-8")
    ids = ours.encode(text)
    assert ids == rules.encode(text).ids
    assert ours.decode(ids) == text
    documents = ours.encode_documents(text).tolist()
    assert documents == auto_tokenizer.encode(text)  # special tokens are found in it, as encode_documents does
    assert ids == by_llama(server, text)


@settings(deadline=None, max_examples=2_000)
@given(st.text() | st.lists(st.sampled_from(smollm.ODD)).map("".join) | st.text(st.sampled_from(smollm.ODD[:20])))
def test_any_text_gets_the_ids_of_hugging_face(ours: BytePairTokenizer, rules: Tokenizer, text: str) -> None:
    text = smollm.whole(text)
    assert ours.encode(text) == rules.encode(text).ids
    assert ours.encode_documents(text).tolist() == ours.encode(text)


def test_ten_thousand_random_strings_get_the_ids_of_hugging_face_and_of_llama_cpp(
    ours: BytePairTokenizer, rules: Tokenizer, server: Any
) -> None:
    """llama.cpp merges no bytes across a missing one, so it gets the strings without any."""
    source = random.Random(1)

    def character() -> str:
        code = source.randrange(0x110000)
        drawn = chr(code if not 0xD800 <= code < 0xE000 else 0xE9)
        common = (source.choice(" \n\t\r5٣½²Ⅷ!'stred0aA_\u3000\xa0\x85"), chr(source.randrange(7, 0x3000)))
        return source.choice((drawn, *common))

    texts = ["".join(character() for _ in range(source.randint(1, 12))) for _ in range(10_000)]
    expected = [found.ids for found in rules.encode_batch(texts)]
    assert [ours.encode(text) for text in texts] == expected
    missing = {bytes([byte]) for byte in ours.pairs.settings.missing_bytes}
    complete = [(text, ids) for text, ids in zip(texts, expected, strict=True)
                if not any(byte in text.encode() for byte in missing)]  # fmt: skip
    assert len(complete) > 3_000
    for text, ids in complete[:3_000]:
        assert by_llama(server, text) == ids, text


def test_a_prompt_has_the_ids_of_the_chat_template(ours: BytePairTokenizer, auto_tokenizer: Any, server: Any) -> None:
    asked = [{"role": "user", "content": f"{ENTRY['instruction']}\n{ENTRY['input']}"}]
    ids = encode_prompt(ENTRY, "chatml", ours)
    theirs = auto_tokenizer.apply_chat_template(asked, add_generation_prompt=True)
    assert ids == theirs["input_ids"]
    assert ids == by_llama(server, format_prompt(ENTRY, "chatml"), special=True)
    reply = requests.post(f"{server.listening_address}/apply-template", json={"messages": asked}, timeout=60)
    assert reply.json()["prompt"] == format_prompt(ENTRY, "chatml")


def test_the_tokenizer_goes_through_hugging_faces_files(
    ours: BytePairTokenizer, auto_tokenizer: Any, tmp_path: Path
) -> None:
    auto_tokenizer.save_pretrained(tmp_path)
    assert load_huggingface_tokenizer(tmp_path) == ours.pairs
