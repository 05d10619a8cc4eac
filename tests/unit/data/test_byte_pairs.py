"""Byte-pair tokenizers whose rules differ from GPT-2's."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchlm.data.byte_pairs import (
    END_OF_TEXT,
    GPT2_SETTINGS,
    BytePairs,
    BytePairTokenizer,
    save_byte_pairs,
    train_byte_pairs,
)
from scratchlm.data.tokenizer import GPT2TokenizerParams, load_tokenizer, make_tokenizer
from scratchlm.run.errors import UserError
from tests import smollm


@pytest.fixture(scope="module")
def tiny() -> BytePairTokenizer:
    return BytePairTokenizer(*smollm.tiny_pairs())


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("12", ["1", "2"]),  # GPT-2's pattern keeps 12 together, and the merge applies
        (" 12", ["Ġ", "1", "2"]),
        ("  5", ["ĠĠ", "5"]),  # the digit ends the piece, so both spaces belong to it
        ("  a", ["Ġ", "Ġa"]),
        ("½²", ["Â", "½", "Â", "²"]),
        ("!\x04!", ["!!"]),  # the byte has no token, and its neighbours merge
        ("\x04", []),
        ("a\x04b", ["a", "b"]),
        ("\U00040000", ["Ģ", "Ģ", "Ģ"]),  # F1 80 80 80
        ("ab<|im_end|>", ["ab", *"<|im_end|>"]),
        ("", []),
    ],
)
def test_the_tokens_are_those_found_by_hand(text: str, tokens: list[str]) -> None:
    merges = [("1", "2"), ("Ġ", "Ġ"), ("Ġ", "a"), ("!", "!"), ("a", "b")]
    pairs = smollm.pairs_of(merges)
    tokenizer = BytePairTokenizer(*pairs)
    assert tokenizer.encode(text) == [pairs.encoder[token] for token in tokens]
    assert tokenizer.encode_documents(text).tolist() == tokenizer.encode(text)


@settings(deadline=None)
@given(st.lists(st.sampled_from(smollm.ODD)).map("".join) | st.text())
def test_the_ids_are_those_of_smollm2s_rules_in_hugging_faces_library(tiny: BytePairTokenizer, text: str) -> None:
    text = smollm.whole(text)
    expected = smollm.reference(tiny.pairs).encode(text).ids
    assert tiny.encode(text) == expected
    assert tiny._encode_slowly(text) == expected
    assert all(0 <= token_id < tiny.vocab_size for token_id in expected)
    documents = smollm.reference(tiny.pairs, special=True).encode(text.replace("<|im_end|>", END_OF_TEXT)).ids
    assert tiny.encode_documents(text.replace("<|im_end|>", END_OF_TEXT)).tolist() == documents


@pytest.mark.long
@pytest.mark.parametrize(("after", "n_last"), [("", 0), ("5", 0), ("x", 1), ("\x04", 1)])
def test_of_a_million_white_spaces_the_last_goes_to_the_text_that_follows(
    tiny: BytePairTokenizer, after: str, n_last: int
) -> None:
    """They overflow the stack of tiktoken's regular expression."""
    run = "x" + " " * 1_200_000
    expected = tiny.encode("x")
    spaces = BytePairTokenizer(*smollm.pairs_of([("Ġ", "Ġ")]))
    assert tiny.encode(run + after)[: len(expected)] == expected
    ids = spaces.encode(run + after)
    double, single = (spaces.pairs.encoder[token] for token in ("ĠĠ", "Ġ"))
    assert (ids.count(double), ids.count(single)) == ((1_200_000 - n_last) // 2, 2 * n_last)


def test_special_tokens_decode_to_their_names_and_text_never_becomes_one(tiny: BytePairTokenizer) -> None:
    assert tiny.special_tokens == {token: i for i, token in enumerate(smollm.SPECIAL)}
    assert tiny.end_token_id == 2
    assert tiny.decode([1, 2]) == "<|im_start|><|im_end|>"
    ids = tiny.encode("".join(smollm.SPECIAL))
    assert min(ids) > 3 and tiny.decode(ids) == "".join(smollm.SPECIAL)


@pytest.mark.parametrize(
    ("special", "separator"), [(smollm.SPECIAL, "<|endoftext|>"), (["<|im_start|>", "<|im_end|>"], "<|im_end|>")]
)
def test_documents_are_separated_by_the_token_of_that_name_or_by_the_end_token(
    special: list[str], separator: str
) -> None:
    tokenizer = BytePairTokenizer(*smollm.tiny_pairs(special_tokens=special))
    for start in ("one", "\ud800", "\x04!"):
        expected = [*tokenizer.encode(start), tokenizer.special_tokens[separator], *tokenizer.encode("two")]
        assert tokenizer.encode_documents(f"{start}<|endoftext|>two").tolist() == expected


def test_the_settings_are_a_third_file_only_where_they_differ_from_gpt2s(tmp_path: Path) -> None:
    save_byte_pairs(tmp_path / "gpt2", *train_byte_pairs([smollm.TEXT], 300), GPT2_SETTINGS)
    pairs = smollm.tiny_pairs(chat_template="{{ messages }} é")
    save_byte_pairs(tmp_path / "smollm", *pairs)
    assert sorted(path.name for path in (tmp_path / "gpt2").iterdir()) == ["encoder.json", "vocab.bpe"]
    assert sorted(path.name for path in (tmp_path / "smollm").iterdir()) == [
        "encoder.json", "settings.json", "vocab.bpe",
    ]  # fmt: skip
    loaded = load_tokenizer(tmp_path / "smollm")
    assert isinstance(loaded, BytePairTokenizer) and loaded.pairs == pairs
    copied = make_tokenizer(GPT2TokenizerParams(kind="gpt2"), tmp_path / "smollm", [], tmp_path / "copy")
    assert isinstance(copied, BytePairTokenizer) and copied.pairs == pairs


@pytest.mark.parametrize(
    "changes",
    [
        {"missing_bytes": smollm.MISSING[1:]},  # a byte that should have a token has none
        {"missing_bytes": [*smollm.MISSING, ord("a")]},
        {"special_tokens": smollm.SPECIAL[:-1]},
        {"special_tokens": [*smollm.SPECIAL, "<more>"]},
        {"special_tokens": [*smollm.SPECIAL, "<|im_end|>"]},
        {"end_token": "a"},
    ],
)
def test_settings_of_another_vocabulary_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    encoder, merges, _ = smollm.tiny_pairs()
    save_byte_pairs(tmp_path / "t", encoder, merges, smollm.settings(**changes))
    with pytest.raises(UserError, match=r"vocabulary and merges do not belong together: .* single bytes and \d spec"):
        load_tokenizer(tmp_path / "t")


@pytest.mark.parametrize("pair", [("▁", "x"), ("zz", "z"), ("<|im_end|>", "a")])
def test_a_merge_joins_bytes_and_earlier_merges_only(pair: tuple[str, str]) -> None:
    encoder, merges, chosen = smollm.pairs_of([("a", "b")])
    pairs = BytePairs(encoder | {"".join(pair): len(encoder)}, [*merges, pair], chosen)
    with pytest.raises(UserError, match="vocabulary and merges do not belong together"):
        BytePairTokenizer(*pairs)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("[]", "expected an object of JSON, found list"),
        (
            {"pattern": "llama"},
            "pattern: input should be 'gpt2', 'smollm', 'llama3', 'qwen2', 'sentencepiece' or 'metaspace'",
        ),
        ({"missing_bytes": [256]}, "missing_bytes.0: input should be less than 256"),
        ({"special_tokens": [""]}, "special_tokens.0: string should have at least 1 character"),
        ({"more": 1}, "more: extra inputs are not permitted"),
    ],
)
def test_damaged_settings_are_named(tmp_path: Path, content: Any, fault: str) -> None:
    save_byte_pairs(tmp_path / "t", *smollm.tiny_pairs())
    path = tmp_path / "t" / "settings.json"
    text = content if isinstance(content, str) else json.dumps(json.loads(path.read_text()) | content)
    path.write_text(text)
    with pytest.raises(UserError, match="settings.json: ") as failure:
        load_tokenizer(tmp_path / "t")
    assert fault in str(failure.value)
