import json
import random
import re
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers.trainers import BpeTrainer

from scratchlm.data import corpus
from scratchlm.data.byte_pairs import END_OF_TEXT, GPT2_SETTINGS, BytePairTokenizer, train_byte_pairs
from scratchlm.data.corpus import CorpusParams, split_chunks, text_chunks, write_corpus, write_shards
from scratchlm.data.hub_tokenizer import byte_alphabet, hub_tokenizer
from scratchlm.data.tokenizer import WordTokenizer, collect_words
from scratchlm.data.windows import SHARD_SCHEMA, Corpus
from scratchlm.run.errors import UserError
from scratchlm.run.files import PARQUET_OPTIONS, sha256_of
from tests.conftest import Inputs

MARK = "\ufeff"  # of the encoding, at the start of a file
SIGNS = [
    *"aB1 '.!-_\n\t\r\x0b\x0c\x00\x1c\x1d\x1e\x1f\x85\xa0\u2028\u3000\u200b\ufeff", *"éß中文😀👩🏽‍",
    "\r\n", "\n\n", "  ", "'s", " the", "word", END_OF_TEXT,
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(SIGNS), min_size=1, max_size=25).map("".join)  # at most 25 * 13 characters


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corpus") / "text.txt"


@pytest.fixture(scope="session")
def greedy() -> list[BytePairTokenizer]:
    """One of each pattern, with tokens for whatever it lets stand together in the texts of these tests."""
    source = random.Random(1)
    texts = ["".join(source.choices(SIGNS, k=25)) for _ in range(300)]
    found = [BytePairTokenizer(*train_byte_pairs(texts, 1_200))]
    for rules in ("llama3", "qwen2"):
        hub = hub_tokenizer(rules, {}, [])
        alphabet = sorted(byte_alphabet().values())
        hub.train_from_iterator(texts, BpeTrainer(vocab_size=1_199, initial_alphabet=alphabet, show_progress=False))
        merges = [tuple(pair) for pair in json.loads(hub.to_str())["model"]["merges"]]
        assert ("!", "Ċ") in merges
        settings = GPT2_SETTINGS.model_copy(update={"pattern": rules})
        found.append(BytePairTokenizer(hub.get_vocab() | {END_OF_TEXT: hub.get_vocab_size()}, merges, settings))
    return found


@settings(deadline=None, max_examples=200)
@given(TEXTS, st.integers(21, 100))
def test_tokens_of_the_pieces_are_the_tokens_of_the_whole_text(
    gpt2: BytePairTokenizer, greedy: list[BytePairTokenizer], scratch: Path, text: str, chunk_characters: int
) -> None:
    scratch.write_bytes(text.encode("utf-8-sig" if text[0] == MARK else "utf-8"))
    words = WordTokenizer(collect_words(["word the aB1 .!"]))
    with mock.patch.object(corpus, "CHUNK_CHARACTERS", chunk_characters):
        chunks = list(text_chunks(scratch))
    assert "".join(chunks) == text
    for tokenizer in (gpt2, *greedy, words):
        pieces = [token for chunk in chunks for token in tokenizer.encode_documents(chunk)]
        assert pieces == tokenizer.encode_documents(text).tolist()


@settings(deadline=None)
@given(TEXTS, st.integers(1, 40))
def test_no_character_is_lost_whatever_the_size_of_a_piece(scratch: Path, text: str, chunk_characters: int) -> None:
    scratch.write_bytes(text.encode("utf-8-sig" if text[0] == MARK else "utf-8"))
    with mock.patch.object(corpus, "CHUNK_CHARACTERS", chunk_characters):
        assert "".join(text_chunks(scratch)) == text


@pytest.mark.long
@settings(deadline=None)
@given(
    st.lists(st.sampled_from([*SIGNS, "x" * 90, "中文" * 40]), min_size=1, max_size=25).map("".join),
    st.integers(16, 100),
    st.integers(1, 60),
    st.integers(1, 20),
)
def test_what_is_read_back_is_what_tiktoken_makes_of_the_whole_text_at_once(
    gpt2: BytePairTokenizer, scratch: Path, text: str, chunk_characters: int, shard_tokens: int, row_group_tokens: int
) -> None:
    scratch.write_bytes(text.encode("utf-8-sig" if text[0] == MARK else "utf-8"))
    sizes = {"CHUNK_CHARACTERS": chunk_characters, "ROW_GROUP_TOKENS": row_group_tokens}
    runs = re.split(r"[^\S\x1c-\x1f\r\n]|(?<=[^\W_])[\r\n]", text)
    longest = max(map(len, runs))  # a run longer than sixteen pieces may be cut inside
    assume(longest < 16 * chunk_characters)
    with mock.patch.multiple(corpus, **sizes):
        counts = write_shards(text_chunks(scratch), gpt2, scratch.parent / "read" / "train", shard_tokens)
    expected = gpt2.encoding.encode(text, allowed_special={END_OF_TEXT})
    assert Corpus(scratch.parent / "read").tokens("train").tolist() == expected
    assert (counts["tokens"], counts["bytes"]) == (len(expected), len(text.encode()))


@pytest.mark.parametrize("chunk_characters", [1, 2, 5, 100])
def test_a_mark_of_the_encoding_is_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_characters: int
) -> None:
    monkeypatch.setattr(corpus, "CHUNK_CHARACTERS", chunk_characters)
    (tmp_path / "text").write_text(f"{MARK}a b{MARK}", encoding="utf-8")
    assert "".join(text_chunks(tmp_path / "text")) == f"a b{MARK}"


def test_a_separator_that_only_python_takes_for_white_space_is_no_place_to_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = BytePairTokenizer(*train_byte_pairs(["!\x1c?"] * 3, 259))
    assert tokenizer.encode("!\x1c?") == [257]
    (tmp_path / "text").write_text("!\x1c?")
    monkeypatch.setattr(corpus, "CHUNK_CHARACTERS", 2)
    assert list(text_chunks(tmp_path / "text")) == ["!\x1c?"]


@pytest.mark.parametrize("chunks", [[], [""]])
def test_a_split_without_tokens_is_refused(gpt2: BytePairTokenizer, tmp_path: Path, chunks: list[str]) -> None:
    with pytest.raises(UserError, match="^the val split of the corpus has no tokens; use a longer corpus$"):
        write_shards(chunks, gpt2, tmp_path / "val", 10)


def test_a_run_without_white_space_is_cut_after_sixteen_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "CHUNK_CHARACTERS", 4)
    (tmp_path / "text").write_text("x" * 64)
    assert list(map(len, text_chunks(tmp_path / "text"))) == [64]
    (tmp_path / "text").write_text("x" * 72)
    assert list(map(len, text_chunks(tmp_path / "text"))) == [68, 4]


@pytest.mark.parametrize(
    ("size", "pieces"),
    [
        (6, ["aa bb", "  cc", " dd"]),
        (4, ["aaaa", " bbb"]),  # between what is read at once and what is read next
        (4, ["é", " xyyyyy"]),  # seen before there was enough for a piece
        (4, ["aaaa", "\nbbb!\nc", " dd"]),  # punctuation and the end of its line can be one token
    ],
)
def test_a_piece_ends_where_white_space_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, pieces: list[str]
) -> None:
    monkeypatch.setattr(corpus, "CHUNK_CHARACTERS", size)
    (tmp_path / "text").write_text("".join(pieces), encoding="utf-8")
    assert list(text_chunks(tmp_path / "text")) == pieces


@pytest.mark.parametrize("content", [b"abc\xff", b"abc\xe4\xb8", b"ab\xe4\xb8cdef", b"\xe4"])
@pytest.mark.parametrize("chunk_characters", [1, 2, 5, 100])
def test_what_is_not_utf8_is_refused_wherever_a_piece_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, chunk_characters: int
) -> None:
    monkeypatch.setattr(corpus, "CHUNK_CHARACTERS", chunk_characters)
    (tmp_path / "text").write_bytes(content)
    with pytest.raises(
        UserError, match=r"text: line 1 is not UTF-8 text \(the byte 0x.*\); convert the file to UTF-8$"
    ):
        list(text_chunks(tmp_path / "text"))


def test_shards_hold_exactly_what_was_asked_for(gpt2: BytePairTokenizer, tmp_path: Path) -> None:
    text = "a b c d e f g"  # a token each
    counts = write_shards([text[:5], text[5:]], gpt2, tmp_path / "train", 3)
    shards = sorted((tmp_path / "train").iterdir())
    assert [path.name for path in shards] == ["00000.parquet", "00001.parquet", "00002.parquet"]
    assert [pq.read_table(path).num_rows for path in shards] == [3, 3, 1]
    assert Corpus(tmp_path).tokens("train").tolist() == gpt2.encode(text)
    assert counts == {"tokens": 7, "bytes": 13, "documents": 1, "bytes_per_token": 13 / 7}


def test_a_shard_written_as_its_tokens_come_has_the_bytes_of_one_written_at_once(
    gpt2: BytePairTokenizer, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "ROW_GROUP_TOKENS", 1_000)
    text = inputs.corpus.read_text(encoding="utf-8")
    write_shards([text[i : i + 700] for i in range(0, len(text), 700)], gpt2, tmp_path / "train", 2_300)
    token_ids = Corpus(tmp_path).tokens("train")
    for i, shard in enumerate(sorted((tmp_path / "train").iterdir())):
        table = pa.table([token_ids[i * 2_300 : (i + 1) * 2_300]], schema=SHARD_SCHEMA)
        pq.write_table(table, tmp_path / "once", row_group_size=1_000, use_dictionary=False, **PARQUET_OPTIONS)
        assert shard.read_bytes() == (tmp_path / "once").read_bytes()
    assert i == 2


class Faltering:
    """Encodes a text of digits as their sum; a text holding 0 only once another was encoded."""

    def __init__(self) -> None:
        self.another = threading.Event()

    def encode_documents(self, text: str) -> np.ndarray:
        if "x" in text:
            raise ValueError("x is no digit")
        if "0" in text:
            assert self.another.wait(timeout=60)
        else:
            self.another.set()
        return np.array([sum(map(int, text))], dtype=np.uint32)


def test_tokens_stay_in_order_though_a_later_piece_is_ready_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus.os, "cpu_count", lambda: 2)
    pieces = ["90", *map(str, range(11, 99, 11)), "7"]
    write_shards(pieces, Faltering(), tmp_path / "train", 2)  # type: ignore[arg-type]
    assert Corpus(tmp_path).tokens("train").tolist() == [9, 2, 4, 6, 8, 10, 12, 14, 16, 7]


def test_a_piece_that_cannot_be_tokenized_stops_the_work_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^x is no digit$"):
        write_shards(["1"] * 50 + ["x"] + ["2"] * 50, Faltering(), tmp_path / "train", 10)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_no_empty_shard_follows_a_full_one(gpt2: BytePairTokenizer, tmp_path: Path) -> None:
    write_shards(["a b c d"], gpt2, tmp_path / "train", 2)
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == ["00000.parquet", "00001.parquet"]


def test_documents_are_the_pieces_between_end_tokens_and_bytes_those_of_utf8(
    gpt2: BytePairTokenizer, tmp_path: Path
) -> None:
    counts = write_shards([f"é{END_OF_TEXT}b", f" c{END_OF_TEXT}d"], gpt2, tmp_path / "t", 100)
    assert counts["documents"] == 3
    assert counts["bytes"] == len(f"é{END_OF_TEXT}b c{END_OF_TEXT}d".encode())
    assert Corpus(tmp_path).tokens("t").tolist().count(gpt2.end_token_id) == 2


def test_the_cut_is_counted_in_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "CHUNK_CHARACTERS", 3)
    (tmp_path / "text").write_text("ää öö üü éé")  # 11 characters, 19 bytes
    parts = {split: "".join(chunks) for split, chunks in split_chunks(tmp_path / "text", 0.5).items()}
    assert parts == {"train": "ää öö", "val": " üü éé"}


def test_too_short_a_corpus_and_a_missing_one_are_named(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a")
    with pytest.raises(UserError, match="text: 1 characters cannot be split at 0.5; use a longer corpus"):
        split_chunks(tmp_path / "text", 0.5)
    with pytest.raises(UserError, match="none: no such file; check the path"):
        split_chunks(tmp_path / "none", 0.5)
    with pytest.raises(UserError, match=r"\*.parquet: no such file; check the path"):
        Corpus(tmp_path).tokens("train")


def test_the_same_text_gives_the_same_bytes(gpt2: BytePairTokenizer, inputs: Inputs, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        params = CorpusParams(split="position", deduplicate="none", train_fraction=0.9, shard_tokens=2_000)
        write_corpus(inputs.corpus, gpt2, tmp_path / folder, params)
    hashes = [
        {str(path.relative_to(tmp_path / folder)): sha256_of(path) for path in (tmp_path / folder).rglob("*.*")}
        for folder in ("a", "b")
    ]
    assert hashes[0] == hashes[1]
    assert len(hashes[0]) == 3 + 1 + 1


WRITE = """
import os, resource, sys
from pathlib import Path
from scratchlm.data import corpus
from scratchlm.data.byte_pairs import BytePairTokenizer, train_byte_pairs
corpus.CHUNK_CHARACTERS = corpus.ROW_GROUP_TOKENS = 1 << 16
corpus.os.cpu_count = lambda: 2
for path in map(Path, sys.argv[1:]):
    child = os.fork()  # a process' peak counts from its fork
    if not child:
        tokenizer = BytePairTokenizer(*train_byte_pairs(["the cat sat on the mat"] * 3, 260))
        params = corpus.CorpusParams(split="position", deduplicate="none", train_fraction=0.9, shard_tokens=10**9)
        corpus.write_corpus(path, tokenizer, path.with_suffix(""), params)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.long
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    line = "It sat there, and there it sat; nobody knew for how long.\n"
    paths = [tmp_path / "small.txt", tmp_path / "large.txt"]
    for path, n_bytes in zip(paths, (2_000_000, 24_000_000), strict=True):
        path.write_text(line * (n_bytes // len(line)))
    command = [sys.executable, "-c", WRITE, *map(str, paths)]
    peaks = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    # KiB; what the larger text adds would be 20,000, its tokens as uint32, all in one shard, 60,000
    assert int(peaks[1]) - int(peaks[0]) < 15_000, peaks
