"""The rules of each kind of tokenizer, by hand. tests/unit/formats compares their ids with other programs."""

import pytest

from scratchlm.data.byte_pairs import GPT2_SETTINGS, BytePairs, BytePairTokenizer
from scratchlm.data.hub_tokenizer import BYTE_TOKENS, Rules, byte_alphabet, merges_by_score, scores_by_merge

SPECIAL = ["<unk>", "<s>", "</s>"]


def tokenizer_of(rules: Rules, single: list[str], merges: list[tuple[str, str]]) -> BytePairTokenizer:
    changes = {"pattern": rules, "end_token": "</s>", "begin_token": "<s>", "special_tokens": SPECIAL}
    tokens = dict.fromkeys([*SPECIAL, *single, *map("".join, merges)])
    encoder = {token: i for i, token in enumerate(tokens)}
    return BytePairTokenizer(*BytePairs(encoder, merges, GPT2_SETTINGS.model_copy(update=changes)))


def tokens_of(tokenizer: BytePairTokenizer, text: str) -> list[str]:
    names = {token_id: token for token, token_id in tokenizer.pairs.encoder.items()}
    return [names[token_id] for token_id in tokenizer.encode(text)]


@pytest.mark.parametrize(
    ("rules", "text", "tokens"),
    [
        ("sentencepiece", "ab", ["▁", "ab"]),
        ("sentencepiece", " ab", ["▁▁", "ab"]),
        ("metaspace", " ab", ["▁", "ab"]),
        ("sentencepiece", "a b", ["▁a", "▁", "b"]),
        ("sentencepiece", "cé", ["▁", "<0x63>", "<0xC3>", "<0xA9>"]),  # the characters have no tokens
        ("sentencepiece", "<s>", ["▁", "<0x3C>", "<0x73>", "<0x3E>"]),
        ("sentencepiece", "", []),
    ],
)
def test_characters_are_merged_and_the_others_become_bytes(rules: Rules, text: str, tokens: list[str]) -> None:
    merges = [("a", "b"), ("▁", "a"), ("▁", "▁")]
    assert tokens_of(tokenizer_of(rules, [*BYTE_TOKENS, "▁", "a", "b"], merges), text) == tokens


@pytest.mark.parametrize(
    ("rules", "text", "tokens"),
    [
        ("llama3", "12345", ["123", "4", "5"]),  # 1 and 23 are no merge, but a piece that is a token is taken whole
        ("qwen2", "123", ["1", "2", "3"]),
        ("llama3", "!\n", ["!Ċ"]),
        ("gpt2", "!\n", ["!", "Ċ"]),
        ("llama3", ".ab", [".a", "b"]),
        ("gpt2", ".ab", [".", "ab"]),
        ("llama3", "A'Ll", ["A", "'Ll"]),
        ("gpt2", "A'Ll", ["A", "'", "L", "l"]),
        ("qwen2", "e\u0301", ["Ã", "©"]),  # é as one character
        ("llama3", "e\u0301", ["e", "Ì", "ģ"]),
    ],
)
def test_bytes_are_merged_within_the_pieces_of_the_pattern(rules: Rules, text: str, tokens: list[str]) -> None:
    merges = [("!", "Ċ"), (".", "a"), ("a", "b"), ("L", "l"), ("'", "Ll"), ("2", "3"), ("1", "23")]
    if rules == "gpt2":
        merges = merges[:3]
    found = tokenizer_of(rules, list(byte_alphabet().values()), merges)
    assert tokens_of(found, text) == tokens
    assert found._encode_slowly(text) == found.encode(text)


def test_every_pair_of_tokens_is_a_merge_the_best_score_first() -> None:
    scores = {"a": 0.0, "b": 0.0, "ab": -2.0, "aba": -3.0, "ba": -1.0, "aa": -4.0, "aaa": -4.0, "aaaa": -4.0}
    expected = [
        ("b", "a"), ("a", "b"), ("a", "ba"), ("ab", "a"),  # one after the other
        ("a", "a"), ("aa", "aa"), ("a", "aa"), ("aa", "a"), ("a", "aaa"), ("aaa", "a"),  # equal scores: halves first
    ]  # fmt: skip
    assert merges_by_score(scores) == expected
    assert scores_by_merge(expected) == {"ba": -1.0, "ab": -2.0, "aba": -3.0, "aa": -4.0, "aaaa": -5.0, "aaa": -5.0}
    back = merges_by_score(dict.fromkeys("ab", 0.0) | scores_by_merge(expected))
    assert back[:6] == expected[:6] and sorted(back) == sorted(expected)
