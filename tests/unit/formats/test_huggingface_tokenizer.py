"""Tokenizers of Hugging Face folders whose rules differ from GPT-2's. test_huggingface.py has GPT-2's."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from scratchlm.data.byte_pairs import GPT2_SETTINGS, BytePairs, BytePairTokenizer, train_byte_pairs
from scratchlm.formats.huggingface_tokenizer import load_huggingface_tokenizer, save_huggingface_tokenizer
from scratchlm.run.errors import UserError
from tests import smollm

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
        ("model", {"unk_token": "<|endoftext|>"}, "not GPT-2's kind of tokenizer"),
        ("pre_tokenizer", {"pretokenizers": []}, "not GPT-2's kind of tokenizer"),
        ("pre_tokenizer", {"pretokenizers": [[5]]}, "not the file of a byte-pair tokenizer"),
        ("pre_tokenizer", {"pretokenizers": ["Digits"]}, "not the file of a byte-pair tokenizer"),
        ("pre_tokenizer", {"pretokenizers": None}, "not the file of a byte-pair tokenizer"),
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
