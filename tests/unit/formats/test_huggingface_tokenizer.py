"""Tokenizers of Hugging Face folders whose rules differ from GPT-2's. test_huggingface.py has GPT-2's."""

import json
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from scratchlm.data.byte_pairs import (
    GPT2_SETTINGS,
    BytePairs,
    BytePairTokenizer,
    save_byte_pairs,
    train_byte_pairs,
)
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.formats.huggingface_tokenizer import load_huggingface_tokenizer, save_huggingface_tokenizer
from scratchlm.run.errors import UserError
from tests import llama, smollm

TEMPLATE = "{{ messages }} é"
GPT2 = BytePairs(*train_byte_pairs([smollm.TEXT], 300))
SMOLLM = smollm.tiny_pairs()


def saved(folder: Path, pairs: BytePairs = SMOLLM, template: str | None = TEMPLATE) -> Path:
    (folder / "theirs").mkdir()
    save_huggingface_tokenizer(folder / "theirs", BytePairTokenizer(*pairs), 256, template)
    return folder / "theirs"


@pytest.fixture(scope="module")
def auto_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = saved(tmp_path_factory.mktemp("huggingface"))
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    return AutoTokenizer.from_pretrained(folder)


@given(st.lists(st.sampled_from(smollm.ODD)).map("".join) | st.text())
def test_the_auto_tokenizer_of_an_export_gives_our_ids(auto_tokenizer: Any, text: str) -> None:
    ours = BytePairTokenizer(*SMOLLM)
    text = smollm.whole(text).replace("<|", "< |")
    ids = ours.encode(text)
    assert auto_tokenizer.encode(text) == ids
    assert auto_tokenizer.decode(ids) == ours.decode(ids)
    assert auto_tokenizer.encode(f"{text}<|im_end|>") == [*ids, ours.end_token_id]


def test_the_export_has_the_special_tokens_the_end_and_the_template(auto_tokenizer: Any, tmp_path: Path) -> None:
    assert auto_tokenizer.eos_token == "<|im_end|>"
    assert len(auto_tokenizer) == len(SMOLLM.encoder)
    assert auto_tokenizer.chat_template == TEMPLATE
    assert auto_tokenizer.decode([1, 65, 2], skip_special_tokens=True) == BytePairTokenizer(*SMOLLM).decode([65])
    assert sorted(path.name for path in saved(tmp_path).iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("by_transformers", [False, True])
def test_an_exported_tokenizer_reads_back(auto_tokenizer: Any, tmp_path: Path, by_transformers: bool) -> None:
    if by_transformers:
        auto_tokenizer.save_pretrained(tmp_path / "theirs")
    else:
        saved(tmp_path)
    expected = SMOLLM._replace(settings=smollm.settings(chat_template=TEMPLATE))
    assert load_huggingface_tokenizer(tmp_path / "theirs") == expected


def test_special_tokens_may_be_outside_the_model_and_the_end_token_an_object(tmp_path: Path) -> None:
    """GPT-2's folder with a tokenizer.json that is read before its two files."""
    folder = saved(tmp_path, template=None)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    for token in smollm.SPECIAL:
        del content["model"]["vocab"][token]
    path.write_text(json.dumps(content))
    (folder / "vocab.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}}))
    read = load_huggingface_tokenizer(folder)
    assert (read.settings, read.merges) == (SMOLLM.settings, SMOLLM.merges)
    assert read.encoder == SMOLLM.encoder


def test_gpt2s_template_is_kept(tmp_path: Path) -> None:
    folder = saved(tmp_path, GPT2)
    assert load_huggingface_tokenizer(folder).settings == GPT2_SETTINGS.model_copy(update={"chat_template": TEMPLATE})
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match="chat_template.jinja: not UTF-8 text"):
        load_huggingface_tokenizer(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": [{"name": "default"}]}
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_huggingface_tokenizer(folder) == GPT2


@pytest.mark.parametrize(
    ("section", "changes", "fault"),
    [
        ("model", {"unk_token": "<|endoftext|>"}, "not a kind of tokenizer that can be read"),
        ("pre_tokenizer", {"pretokenizers": []}, "not a kind of tokenizer that can be read"),
        ("pre_tokenizer", {"pretokenizers": [[5]]}, "not the file of a byte-pair tokenizer"),
        ("pre_tokenizer", {"pretokenizers": ["Digits"]}, "not the file of a byte-pair tokenizer"),
        ("pre_tokenizer", {"pretokenizers": None}, "not a kind of tokenizer that can be read"),
        ("model", {"vocab": {"a": "x"}}, "vocabulary and merges"),
    ],
)
def test_another_tokenizer_is_refused(tmp_path: Path, section: str, changes: dict[str, Any], fault: str) -> None:
    path = saved(tmp_path) / "tokenizer.json"
    content = json.loads(path.read_text())
    content[section] |= changes
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as failure:
        load_huggingface_tokenizer(path.parent)
    assert fault in str(failure.value)


# Llama 2, Llama 3 and Qwen2


@pytest.fixture(scope="module", params=llama.KINDS)
def kind(request: pytest.FixtureRequest) -> llama.Kind:
    return request.param


@pytest.fixture(scope="module")
def theirs(kind: llama.Kind) -> Any:
    return llama.reference(kind)


@pytest.fixture(scope="module")
def ours(kind: llama.Kind) -> BytePairTokenizer:
    return BytePairTokenizer(*llama.tiny_pairs(kind))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(llama.ODD)).map("".join) | st.text())
def test_the_ids_of_a_llama_are_those_of_the_library(ours: BytePairTokenizer, theirs: Any, text: str) -> None:
    text = smollm.whole(text)
    expected = theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode(text) == ours._encode_slowly(text) == expected
    assert ours.decode(expected) == theirs.decode(expected)
    assert not set(expected) & set(ours.special_tokens.values())
    assert ours.begin_ids + expected == theirs.encode(text).ids


def test_text_comes_back_with_its_spaces(ours: BytePairTokenizer, kind: llama.Kind) -> None:
    for text in (llama.TEXT, " two  spaces ", "\n\nlines\n", "<s>", "Ḁ\u200d👩"):
        expected = text.removeprefix(" ") if kind == "metaspace" else text
        assert ours.decode(ours.encode(text)) == (normalize("NFC", text) if kind == "qwen2" else expected)


def test_documents_are_separated_by_the_end_and_begin_again(ours: BytePairTokenizer, kind: llama.Kind) -> None:
    end = ours.special_tokens.get("<|endoftext|>", ours.end_token_id)
    expected = [*ours.encode("one\u0338"), end, *ours.begin_ids, *ours.encode("\u0338two")]
    assert ours.encode_documents("one\u0338<|endoftext|>\u0338two").tolist() == expected
    assert len(ours.begin_ids) == (kind != "qwen2")


def test_a_llamas_tokenizer_is_written_and_read_back(ours: BytePairTokenizer, theirs: Any, tmp_path: Path) -> None:
    found = load_huggingface_tokenizer(saved(tmp_path, ours.pairs))
    assert found == ours.pairs._replace(settings=ours.pairs.settings.model_copy(update={"chat_template": TEMPLATE}))
    (tmp_path / "theirs" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    auto = AutoTokenizer.from_pretrained(tmp_path / "theirs")
    for text in (*llama.ODD, llama.TEXT, "Hello"):
        text = smollm.whole(text)
        if text not in ours.special_tokens:
            assert auto.encode(text) == theirs.encode(text).ids
            assert auto.decode(auto.encode(text), skip_special_tokens=True) == ours.decode(ours.encode(text))
    assert (auto.bos_token, auto.eos_token) == (ours.pairs.settings.begin_token, ours.pairs.settings.end_token)
    save_byte_pairs(tmp_path / "ours", *ours.pairs)
    assert load_tokenizer(tmp_path / "ours").pairs == ours.pairs  # type: ignore[attr-defined]


def test_tokens_without_a_row_of_the_embedding_are_left_out(tmp_path: Path) -> None:
    folder = llama.write(tmp_path, "qwen2")
    whole = load_huggingface_tokenizer(folder)
    added = llama.tokenizer_json("qwen2")["added_tokens"]
    more = {"id": len(whole.encoder), "content": "<more>"}
    llama.write(tmp_path, "qwen2", added_tokens=[*added, more])
    assert load_huggingface_tokenizer(folder).settings.special_tokens == [*whole.settings.special_tokens, "<more>"]
    (folder / "config.json").write_text(json.dumps({"vocab_size": len(whole.encoder)}))
    assert load_huggingface_tokenizer(folder) == whole


@pytest.mark.parametrize(
    ("kind", "section", "changes", "fault"),
    [
        ("llama3", "model", {"ignore_merges": False}, "not a kind of tokenizer that can be read; its norm"),
        ("llama2", "model", {"byte_fallback": False}, "not a kind of tokenizer that can be read"),
        ("qwen2", "normalizer", {"type": "NFKC"}, "not a kind of tokenizer that can be read"),
        ("llama2", "normalizer", {"normalizers": []}, "not a kind of tokenizer that can be read"),
        ("llama2", "normalizer", {"normalizers": [{"type": "Prepend", "prepend": "_"}]}, "not a kind of tokenizer"),
        ("llama2", "post_processor", {"single": [{"Sequence": {}}, {"SpecialToken": {"id": "</s>"}}]}, "adds more to"),
        ("llama2", "post_processor", {"single": [{"SpecialToken": {"id": "<a>"}}, {"Sequence": {}}]}, "vocabulary and"),
        ("llama2", "post_processor", {"single": 5}, "not the file of a byte-pair tokenizer"),
        ("llama2", "model", {"vocab": {"<unk>": 0, "<s>": 1, "</s>": 2}, "merges": []}, "256 single bytes and c"),
    ],
)  # fmt: skip
def test_a_llama_with_other_rules_is_refused(
    kind: llama.Kind, section: str, changes: dict[str, Any], fault: str, tmp_path: Path
) -> None:
    llama.write(tmp_path, kind, **{section: llama.tokenizer_json(kind)[section] | changes})
    with pytest.raises(UserError) as failure:
        load_huggingface_tokenizer(tmp_path)
    assert fault in str(failure.value)
