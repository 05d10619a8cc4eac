import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Tokenizer

from scratchlm.data.byte_pairs import (
    END_OF_TEXT,
    BytePairTokenizer,
    encode_parts,
    read_merges,
    save_byte_pairs,
    train_byte_pairs,
)
from scratchlm.data.tokenizer import (
    UNKNOWN,
    GPT2TokenizerParams,
    TrainedTokenizerParams,
    WordTokenizer,
    WordTokenizerParams,
    collect_words,
    load_tokenizer,
    make_tokenizer,
)
from scratchlm.run.errors import UserError
from scratchlm.run.files import sha256_of
from tests.conftest import Inputs

TALES = ["The cat sat on the mat; the cat's hat's flat.", " It isn't that fat cat, 12 345 times over!\n\n"] * 3
TRAINED_SIZE = 290
PIECES = [
    *"abcXYZ019 \t\n\r\x0b\x0c.,;:!?'\"()[]{}<>|@#$%^&*-_=+~`\\/",
    *(chr(code) for code in (*range(0x20), 0x7F, 0x80, 0x85, 0x9F, 0xA0, 0xAD, 0x1680, 0x2003, 0x2028, 0x202F, 0x3000)),
    *"éßñøÅçœ中文漢字仮名カタカナ한국어русскийΕλληνικάעבריתالعربيةहिन्दीไทย",
    *"😀👩🏽‍🚀🇫🇷❤️✨🤖‍\u200b\u200d\ufeff\ufffd\u0301\u0300٣๔Ⅷ½²㊗€∑√",
    "'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "’s", "don't", " the", "  two", "\r\n", " \n", "ing", "1234",
]  # fmt: skip
HALVES = ["\ud800", "\udbff", "\udc00", "\udfff", "\ud83d", "\ude00"]


@pytest.fixture(scope="module")
def trained() -> BytePairTokenizer:
    return BytePairTokenizer(*train_byte_pairs(TALES, TRAINED_SIZE))


def random_strings(n: int, pieces: list[str], seed: int) -> list[str]:
    source = random.Random(seed)
    return ["".join(source.choices(pieces, k=source.randint(1, 40))) for _ in range(n)]


def repaired(text: str) -> str:
    """Half surrogate pairs replaced, whole ones joined."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@pytest.mark.long
def test_ten_thousand_odd_strings_get_the_ids_of_transformers(gpt2: BytePairTokenizer, inputs: Inputs) -> None:
    reference = GPT2Tokenizer(str(inputs.vocabulary / "encoder.json"), str(inputs.vocabulary / "vocab.bpe"))
    texts = random_strings(8_000, PIECES, 1) + random_strings(2_000, PIECES + HALVES * 5, 2)
    # transformers refuses half surrogate pairs, so it gets what we take them for
    expected = reference([repaired(text) for text in texts])["input_ids"]
    assert [gpt2.encode(text) for text in texts] == expected
    assert [gpt2.encode_documents(text).tolist() for text in texts] == expected


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("\ud800", "\ufffd"),
        ("a\udfff\ud800b", "a\ufffd\ufffdb"),
        ("x\ud83d\ude00", "x😀"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
    ],
)
def test_half_a_surrogate_pair_counts_as_the_replacement_character(
    gpt2: BytePairTokenizer, trained: BytePairTokenizer, text: str, same_as: str
) -> None:
    for tokenizer in (gpt2, trained):
        assert tokenizer.encode(text) == tokenizer.encode(same_as)
        assert tokenizer.encode_documents(text).tolist() == tokenizer.encode(same_as)


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8")) | st.lists(st.sampled_from(PIECES)).map("".join))
def test_decoding_gives_the_text_back(gpt2: BytePairTokenizer, trained: BytePairTokenizer, text: str) -> None:
    for tokenizer in (gpt2, trained):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode_documents(text).tolist() == ids
        assert all(0 <= token_id < tokenizer.vocab_size for token_id in ids)


def test_a_cut_character_decodes_to_the_replacement_character(gpt2: BytePairTokenizer) -> None:
    assert gpt2.decode(gpt2.encode("é🤖")[:-1]) == "é\ufffd"


def test_the_end_token_is_text_in_a_text_and_a_token_in_documents(
    gpt2: BytePairTokenizer, trained: BytePairTokenizer
) -> None:
    text = f"one{END_OF_TEXT}two"
    for tokenizer in (gpt2, trained):
        assert tokenizer.end_token_id == tokenizer.vocab_size - 1
        assert tokenizer.end_token_id not in tokenizer.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
        ids = tokenizer.encode_documents(text).tolist()
        assert ids == [*tokenizer.encode("one"), tokenizer.end_token_id, *tokenizer.encode("two")]
        assert tokenizer.decode(ids) == text


def test_a_trained_tokenizer_has_exactly_the_tokens_asked_for_and_knows_its_text(trained: BytePairTokenizer) -> None:
    assert trained.vocab_size == trained.encoding.n_vocab == TRAINED_SIZE
    assert len(trained.encode(" the cat")) == 2
    assert trained.encode("z") == [list(byte_order()).index(ord("z"))]


def byte_order() -> list[int]:
    """GPT-2's order of single bytes: those that print, then the others."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return printable + [byte for byte in range(256) if byte not in printable]


def test_merges_are_learned_by_frequency() -> None:
    encoder, merges = train_byte_pairs(["ab ab ab"], 259)  # three times a b, then twice space ab
    assert merges == [("a", "b"), ("Ġ", "ab")]
    assert encoder["ab"] == 256
    assert encoder[END_OF_TEXT] == 258


def test_transformers_reads_a_trained_tokenizer_and_gives_the_same_ids(
    tmp_path: Path, trained: BytePairTokenizer
) -> None:
    save_byte_pairs(tmp_path / "t", *train_byte_pairs(TALES, TRAINED_SIZE))
    theirs = GPT2Tokenizer(str(tmp_path / "t" / "encoder.json"), str(tmp_path / "t" / "vocab.bpe"))
    texts = [*TALES, *random_strings(500, [*"thecasmfl'12 \n", "the", "cat", "at"], 3), *random_strings(200, PIECES, 4)]
    assert [trained.encode(text) for text in texts] == theirs(texts)["input_ids"]


def test_the_end_token_in_the_training_text_is_not_learned_from() -> None:
    encoder, _ = train_byte_pairs([END_OF_TEXT.join(["aa bb"] * 50)], 260)
    assert not any("<" in token or "end" in token for token in list(encoder)[256:-1])


TRAIN = """
import sys
from pathlib import Path
from scratchlm.data.tokenizer import WordTokenizerParams, TrainedTokenizerParams, make_tokenizer
texts, folder = eval(sys.argv[1]), Path(sys.argv[2])
make_tokenizer(TrainedTokenizerParams(kind="bpe", vocab_size=290), folder, texts, folder / "bpe")
make_tokenizer(WordTokenizerParams(kind="word"), folder, texts, folder / "word")
"""


def test_two_processes_train_the_same_bytes(tmp_path: Path) -> None:
    hashes = []
    for seed in ("1", "2"):
        command = [sys.executable, "-c", TRAIN, repr(TALES), str(tmp_path / seed)]
        subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": seed}, check=True)
        hashes.append({path.name: sha256_of(path) for path in sorted((tmp_path / seed).rglob("*.*"))})
    assert set(hashes[0]) == {"encoder.json", "vocab.bpe", "words.json"}
    assert hashes[0] == hashes[1]


def test_too_small_a_corpus_says_how_many_tokens_it_supports() -> None:
    with pytest.raises(UserError) as caught:
        train_byte_pairs(["aa aa"], 1000)
    assert str(caught.value) == (
        "tokenizer.vocab_size is 1000, but the corpus supports only 259 tokens; "
        "choose at most that many, or a larger corpus"
    )
    assert len(train_byte_pairs(["aa aa"], 259)[0]) == 259


def mismatch(change: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    encoder, merges = train_byte_pairs(TALES, TRAINED_SIZE)
    tokens = list(encoder)
    if change == "a merge more":
        merges = [*merges, ("q", "q")]
    elif change == "a merge less":
        merges = merges[:-1]
    elif change == "merges swapped":
        merges = [merges[1], merges[0], *merges[2:]]
    elif change == "the last merge is another":
        encoder["zzz"] = encoder.pop(tokens[-2])
    elif change == "a byte is missing":
        encoder["zzz"] = encoder.pop("!")
    elif change == "a sign that stands for no byte":
        encoder["▁the"] = encoder.pop(tokens[-2])
    elif change == "an id twice":
        encoder[tokens[-2]] = encoder[tokens[-3]]
    elif change == "a gap in the ids":
        encoder[END_OF_TEXT] += 1
    elif change == "no end token":
        del encoder[END_OF_TEXT]
    return encoder, merges


@pytest.mark.parametrize(
    "change",
    [
        "a merge more", "a merge less", "merges swapped", "the last merge is another", "a byte is missing",
        "a sign that stands for no byte", "an id twice", "a gap in the ids", "no end token",
    ],
)  # fmt: skip
def test_files_that_do_not_belong_together_are_refused_by_name(tmp_path: Path, change: str) -> None:
    save_byte_pairs(tmp_path / "mixed", *mismatch(change))
    with pytest.raises(UserError) as caught:
        load_tokenizer(tmp_path / "mixed")
    assert str(caught.value) == (
        f"{tmp_path / 'mixed'}: vocabulary and merges do not belong together: each merge must have an id, in "
        "order, besides 256 single bytes and <|endoftext|>; take both from one tokenizer"
    )


def test_files_of_one_vocabulary_are_taken() -> None:
    assert BytePairTokenizer(*mismatch("nothing")).vocab_size == TRAINED_SIZE


def test_a_line_of_merges_must_hold_two_tokens(tmp_path: Path) -> None:
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\na b\na b c\n")
    with pytest.raises(UserError, match=r"vocab.bpe: every line but the first must hold two tokens; correct it, or"):
        read_merges(tmp_path / "vocab.bpe")


@pytest.mark.parametrize("left", ["encoder.json", "vocab.bpe"])
def test_a_missing_file_of_a_tokenizer_is_named(tmp_path: Path, left: str) -> None:
    save_byte_pairs(tmp_path / "t", *train_byte_pairs(TALES, TRAINED_SIZE))
    (tmp_path / "t" / left).unlink()
    with pytest.raises(UserError, match=rf"{left}: no such file; check the path"):
        load_tokenizer(tmp_path / "t")


def test_gpt2s_files_are_kept_in_the_tokenizers_folder(inputs: Inputs, tmp_path: Path) -> None:
    made = make_tokenizer(GPT2TokenizerParams(kind="gpt2"), inputs.vocabulary, [], tmp_path / "t")
    assert made.decode(made.encode("Hello, I am")) == "Hello, I am"
    assert (tmp_path / "t" / "vocab.bpe").read_bytes() == (inputs.vocabulary / "vocab.bpe").read_bytes()
    theirs = json.loads((inputs.vocabulary / "encoder.json").read_text())
    assert json.loads((tmp_path / "t" / "encoder.json").read_text()) == theirs


def test_a_trained_tokenizer_survives_its_files(tmp_path: Path, trained: BytePairTokenizer) -> None:
    made = make_tokenizer(
        TrainedTokenizerParams(kind="bpe", vocab_size=TRAINED_SIZE), tmp_path, iter(TALES), tmp_path / "t"
    )
    assert [made.encode(text) for text in TALES] == [trained.encode(text) for text in TALES]


class SimpleTokenizerV2:
    """The book's, section 2.4, word for word."""

    def __init__(self, vocab: dict[str, int]) -> None:
        self.str_to_int = vocab
        self.int_to_str = {i: s for s, i in vocab.items()}

    def encode(self, text: str) -> list[int]:
        preprocessed = re.split(r'([,.:;?_!"()\']|--|\s)', text)
        preprocessed = [item.strip() for item in preprocessed if item.strip()]
        preprocessed = [item if item in self.str_to_int else "<|unk|>" for item in preprocessed]
        return [self.str_to_int[s] for s in preprocessed]

    def decode(self, ids: list[int]) -> str:
        text = " ".join([self.int_to_str[i] for i in ids])
        return re.sub(r'\s+([,.:;?!"()\'])', r"\1", text)


def test_the_end_token_of_the_word_tokenizer_needs_no_spaces_around_it() -> None:
    """The book's takes a<|endoftext|>b for one unknown word: it joins documents with spaces."""
    assert collect_words([f"a{END_OF_TEXT}b"]) == ["a", "b", END_OF_TEXT, UNKNOWN]
    words = WordTokenizer(["a", "b", END_OF_TEXT, UNKNOWN])
    for text in (f"a{END_OF_TEXT}b", f"a {END_OF_TEXT} b"):
        assert words.encode_documents(text).tolist() == [0, 2, 1]


JOINT = f" {END_OF_TEXT} "


@settings(deadline=None)
@given(st.lists(st.sampled_from([*PIECES, "the ", "--", "--", " _", JOINT, UNKNOWN, "picture "])).map("".join))
def test_the_word_tokenizer_equals_the_books(inputs: Inputs, text: str) -> None:
    ours = WordTokenizer(collect_words([inputs.corpus.read_text(encoding="utf-8")]))
    book = SimpleTokenizerV2({word: i for i, word in enumerate(ours.words)})
    ids = ours.encode_documents(text).tolist()
    assert ids == book.encode(text)
    assert ours.decode(ids) == book.decode(book.encode(text))


def test_a_word_tokenizer_survives_its_file(tmp_path: Path) -> None:
    made = make_tokenizer(WordTokenizerParams(kind="word"), tmp_path, ["b a.", f"é {END_OF_TEXT}"], tmp_path / "t")
    assert json.loads((tmp_path / "t" / "words.json").read_text()) == [".", "a", "b", "é", END_OF_TEXT, UNKNOWN]
    assert made.encode("é a new b.") == [3, 1, 5, 2, 0]
    assert made.end_token_id == 4


@pytest.mark.parametrize("words", [[], ["a", UNKNOWN], ["a", END_OF_TEXT], ["a", 1, END_OF_TEXT, UNKNOWN]])
def test_a_list_of_words_that_is_none_is_refused(tmp_path: Path, words: list[object]) -> None:
    (tmp_path / "words.json").write_text(json.dumps(words))
    with pytest.raises(UserError, match=r"words.json: expected a list of texts with <\|endoftext\|> and <\|unk\|>; "):
        load_tokenizer(tmp_path)


# long runs and words

WHITE_SPACES = " \t\n\r\x0b\x0c\x85\xa0\u2003\u2028\u3000"


@pytest.mark.long
@pytest.mark.parametrize(
    ("before", "run", "after"),
    [("x", " ", "x"), ("", "\n", ""), ("<|endoftext|>", " \t\u3000", "<|endoftext|>"), ("\ud800", "\r\n", "'s")],
)
def test_a_million_white_spaces_are_encoded_in_both_ways(
    gpt2: BytePairTokenizer, before: str, run: str, after: str
) -> None:
    """They overflow the stack of tiktoken's regular expression."""
    text = before + run * (1_200_000 // len(run)) + after
    token_ids = gpt2.encode(text)
    assert gpt2.decode(token_ids) == text.replace("\ud800", "\ufffd")
    last = gpt2.encode(run[-1] + after) if after else []
    assert token_ids[len(token_ids) - len(last) :] == last
    ends = [gpt2.end_token_id] * text.count(END_OF_TEXT)
    documents = gpt2.encode_documents(text)
    assert documents[documents == gpt2.end_token_id].tolist() == ends
    assert gpt2.decode(documents.tolist()) == text.replace("\ud800", "\ufffd")


@settings(deadline=None)
@given(
    st.lists(
        st.text(st.sampled_from(WHITE_SPACES), max_size=9)
        | st.text(max_size=5)
        | st.sampled_from(["it's", " the", "\x1c\x1f", "\ud800", "<|endoftext|>"])
    ).map("".join)
)
def test_the_slow_way_gives_the_tokens_of_the_fast_one(gpt2: BytePairTokenizer, text: str) -> None:
    assert gpt2._encode_slowly(text) == gpt2.encode(text)
    assert encode_parts(gpt2, text).tolist() == gpt2.encode_documents(text).tolist()


def test_training_takes_time_in_proportion_to_a_word_and_learns_from_all_of_it() -> None:
    """With time growing as the square this would take minutes."""
    letters = "".join(random.Random(0).choices("ACGT", k=500_000))
    start = time.process_time()
    _, merges = train_byte_pairs([letters, " " * 1_500_000, "x"], 300)
    assert time.process_time() - start < 20
    assert {"".join(pair) for pair in merges} >= {"GT", "ĠĠ"}
