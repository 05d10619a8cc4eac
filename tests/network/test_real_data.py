"""Real data has the published numbers, and what holds for the sample in tests/unit/data holds for it too."""

import json
from pathlib import Path
from typing import Any

import pytest

from scratchlm.data.byte_pairs import BytePairTokenizer
from scratchlm.data.catalogue import CATALOGUE
from scratchlm.data.corpus import CorpusParams, write_corpus
from scratchlm.data.duplicates import Deduplicate, comparable, count_crossing_duplicates
from scratchlm.data.instructions import read_instructions, split_instructions, write_instructions
from scratchlm.data.labelled_texts import COLLECTION
from scratchlm.data.messages import balance_by_undersampling, split_messages, write_messages
from scratchlm.data.tokenizer import WordTokenizer, collect_words
from scratchlm.data.windows import Corpus
from scratchlm.run.files import read_splits, read_table, sha256_of
from tests.conftest import Inputs
from tests.network.conftest import FILES
from tests.unit.data.test_corpus import (  # noqa: F401
    greedy,
    scratch,
    test_a_shard_written_as_its_tokens_come_has_the_bytes_of_one_written_at_once,
    test_the_same_text_gives_the_same_bytes,
    test_tokens_of_the_pieces_are_the_tokens_of_the_whole_text,
    test_what_is_read_back_is_what_tiktoken_makes_of_the_whole_text_at_once,
)
from tests.unit.data.test_instructions import BOOK as BOOKS_INSTRUCTIONS
from tests.unit.data.test_instructions import test_the_tasks_are_written_with_prompts_and_tokens  # noqa: F401
from tests.unit.data.test_messages import BOOK as BOOKS_MESSAGES
from tests.unit.data.test_messages import (  # noqa: F401
    read_messages,
    test_another_seed_draws_and_shuffles_otherwise,
    test_strict_reading_is_one_message_per_line,
    test_the_splits_are_the_books_row_by_row,
    test_the_written_tables_hold_the_split_with_its_tokens,
)
from tests.unit.data.test_tokenizer import (  # noqa: F401
    test_a_cut_character_decodes_to_the_replacement_character,
    test_gpt2s_files_are_kept_in_the_tokenizers_folder,
    test_ten_thousand_odd_strings_get_the_ids_of_transformers,
    test_the_word_tokenizer_equals_the_books,
)
from tests.unit.formats.test_huggingface import (  # noqa: F401
    random_gpt,
    test_the_auto_tokenizer_agrees_over_a_vocabulary_of_gpt2s_format,
)


@pytest.mark.parametrize(("source", "name"), [(source, name) for source, names in FILES.items() for name in names])
def test_every_file_is_the_pinned_one(real: Path, source: str, name: str) -> None:
    (file,) = [file for file in CATALOGUE[source].files if file.name == name]
    path = real / source / name
    assert file.sha256
    assert (sha256_of(path), path.stat().st_size) == (file.sha256, file.size_bytes)


@pytest.mark.parametrize(("reading", "rows", "ham"), [("book", 5_572, 4_825), ("strict", 5_574, 4_827)])
def test_the_messages_have_the_published_counts(inputs: Inputs, reading, rows: int, ham: int) -> None:
    messages = read_messages(inputs.messages, reading)
    assert len(messages) == rows
    assert messages["label"].value_counts().to_dict() == {0: ham, 1: 747}
    assert messages["id"].is_unique


def test_the_messages_are_split_as_in_the_book(inputs: Inputs, gpt2: BytePairTokenizer, tmp_path: Path) -> None:
    chosen = balance_by_undersampling(read_messages(inputs.messages, "book"), COLLECTION, 123)
    assert chosen["label"].value_counts().to_dict() == {0: 747, 1: 747}
    assert [len(split) for split in split_messages(chosen, COLLECTION, BOOKS_MESSAGES, 123).values()] == [
        1_045,
        149,
        300,
    ]
    write_messages(inputs.messages, gpt2, tmp_path / "messages", BOOKS_MESSAGES, 123, print)
    train = read_table(tmp_path / "messages" / "train.parquet")
    assert max(len(row["token_ids"]) for row in train) == 120  # section 6.3


def test_the_instructions_are_split_as_in_the_book(inputs: Inputs, gpt2: BytePairTokenizer, tmp_path: Path) -> None:
    data = json.loads(inputs.instructions.read_text())
    splits = split_instructions(read_instructions(inputs.instructions), BOOKS_INSTRUCTIONS)
    assert {name: len(split) for name, split in splits.items()} == {"train": 935, "val": 55, "test": 110}
    book = {"train": data[:935], "test": data[935:1045], "val": data[1045:]}  # section 7.2
    for name, split in splits.items():
        assert [{key: entry[key] for key in ("instruction", "input", "output")} for entry in split] == book[name]
    assert splits["test"][0]["id"] == "task-00935"
    counts = write_instructions(inputs.instructions, gpt2, tmp_path / "instructions", BOOKS_INSTRUCTIONS)
    assert counts["duplicates_across_splits"] == 6  # two of test and four of val repeat training entries


@pytest.mark.parametrize(
    ("how", "crossing", "removed", "records"),
    [("exact", (50, 6), (403, 25), (1_306, 1_075)), ("normalised", (57, 6), (438, 31), (1_268, 1_069))],
)
def test_the_duplicates_are_as_docs_data_says(
    inputs: Inputs, gpt2: BytePairTokenizer, tmp_path: Path, how: Deduplicate, crossing, removed, records
) -> None:
    """Of messages and instructions, in the book's splits."""

    def write(how: Deduplicate) -> tuple[dict[str, Any], dict[str, Any]]:
        change = {"deduplicate": how}
        messages, tasks = (p.model_copy(update=change) for p in (BOOKS_MESSAGES, BOOKS_INSTRUCTIONS))
        return (
            write_messages(inputs.messages, gpt2, tmp_path / "messages", messages, 123, pytest.fail),
            write_instructions(inputs.instructions, gpt2, tmp_path / "instructions", tasks),
        )

    write("none")
    found = []
    for folder, fields in (("messages", ["text"]), ("instructions", ["instruction", "input"])):
        splits = read_splits(tmp_path / folder)
        keys = {name: [comparable(tuple(row[it] for it in fields), how) for row in splits[name]] for name in splits}
        found.append(count_crossing_duplicates(keys))
    counts = write(how)
    assert tuple(found) == crossing
    assert tuple(each["removed_duplicates"] for each in counts) == removed
    assert tuple(each["duplicates_across_splits"] for each in counts) == (0, 0)
    assert tuple(sum(each[split]["records"] for split in ("train", "val", "test")) for each in counts) == records


def test_known_texts_get_gpt2s_published_ids(gpt2: BytePairTokenizer) -> None:
    assert gpt2.vocab_size == 50257
    assert gpt2.end_token_id == 50256
    assert gpt2.encode("Hello, I am") == [15496, 11, 314, 716]  # the book, section 4.7
    assert gpt2.encode("Akwirw ier") == [33901, 86, 343, 86, 220, 959]  # the book, exercise 2.1
    text = "Hello, do you like tea? <|endoftext|> In the sunlit terraces of someunknownPlace."  # section 2.5
    assert gpt2.encode_documents(text).tolist() == [
        15496, 11, 466, 345, 588, 8887, 30, 220, 50256, 554, 262, 4252, 18250, 8812, 2114, 286, 617, 34680, 27271, 13,
    ]  # fmt: skip


def test_the_word_tokenizer_gives_the_books_ids(inputs: Inputs) -> None:
    words = WordTokenizer(collect_words([inputs.corpus.read_text("utf-8")]))
    assert words.vocab_size == 1132
    text = "Hello, do you like tea? <|endoftext|> In the sunlit terraces of the palace."  # section 2.4
    ids = [1131, 5, 355, 1126, 628, 975, 10, 1130, 55, 988, 956, 984, 722, 988, 1131, 7]
    assert words.encode_documents(text).tolist() == ids
    assert words.decode(ids) == "<|unk|>, do you like tea? <|endoftext|> In the sunlit terraces of the <|unk|>."


def test_the_verdict_has_the_books_numbers(gpt2: BytePairTokenizer, inputs: Inputs, tmp_path: Path) -> None:
    text = inputs.corpus.read_text("utf-8")
    assert (len(text), len(gpt2.encode(text))) == (20_479, 5_145)  # section 2.2 and 5.1.2
    counts = write_corpus(
        inputs.corpus,
        gpt2,
        tmp_path,
        CorpusParams(split="position", deduplicate="none", train_fraction=0.9, shard_tokens=1_000),
    )
    for split, part in (("train", text[: int(0.9 * 20_479)]), ("val", text[int(0.9 * 20_479) :])):
        ids = gpt2.encode(part)
        assert Corpus(tmp_path).tokens(split).tolist() == ids
        assert counts[split] == {
            "tokens": len(ids), "bytes": len(part), "documents": 1, "bytes_per_token": len(part) / len(ids),
        }  # fmt: skip
    assert (counts["train"]["tokens"], counts["val"]["tokens"]) == (4_612, 534)
    assert Corpus(tmp_path).counts["val"]["bytes_per_token"] == round(2_048 / 534, 5)
    # 9 and 1 batches of 2 × 256 tokens (section 5.1.3)
    assert [len(Corpus(tmp_path).windows(s, 256, 256)) // 2 for s in ("train", "val")] == [9, 1]
