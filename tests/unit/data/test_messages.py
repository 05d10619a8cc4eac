from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llms_from_scratch.ch06 import create_balanced_dataset, random_split

from scratchlm.data.byte_pairs import BytePairTokenizer
from scratchlm.data.labelled_texts import COLLECTION, Reading, read_labelled_texts
from scratchlm.data.messages import (
    MessagesParams,
    balance_by_undersampling,
    load_messages,
    pad,
    split_messages,
    write_messages,
)
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_table, sha256_of
from scratchlm.run.params import check_params
from tests.conftest import Inputs

BOOK = MessagesParams(
    reading="book", labels=None, deduplicate="none", balance=True, train_fraction=0.7, val_fraction=0.1
)
EVERY_LINE = r"; every line must be `ham` or `spam`, a tab and a text, in UTF-8; fetch the file again$"


def read_messages(path: Path, reading: Reading) -> pd.DataFrame:
    """The SMS spam collection."""
    messages, classes = read_labelled_texts(path, reading, None)
    assert classes == COLLECTION
    return messages


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_strict_reading_is_one_message_per_line(inputs: Inputs) -> None:
    lines = inputs.messages.read_text(encoding="utf-8").splitlines()
    messages = read_messages(inputs.messages, "strict")
    labels = messages["label"].map({0: "ham", 1: "spam"})
    assert [f"{label}\t{text}" for label, text in zip(labels, messages["text"], strict=True)] == lines


@pytest.mark.parametrize("reading", ["strict", "book"])
def test_a_mark_of_the_encoding_is_no_part_of_a_message(tmp_path: Path, reading) -> None:
    path = write(tmp_path / "messages", "\ufeffham\thi\nspam\tbuy\n".encode())
    assert read_messages(path, reading)["text"].tolist() == ["hi", "buy"]


def test_the_splits_are_the_books_row_by_row(inputs: Inputs) -> None:
    frame = pd.read_csv(inputs.messages, sep="\t", header=None, names=["Label", "Text"])  # section 6.2
    balanced = create_balanced_dataset(frame)
    book = random_split(balanced.assign(Label=balanced["Label"].map({"ham": 0, "spam": 1})), 0.7, 0.1)
    chosen = balance_by_undersampling(read_messages(inputs.messages, "book"), COLLECTION, 123)
    ours = split_messages(chosen, COLLECTION, BOOK, 123)
    assert list(ours) == ["train", "val", "test"]
    for split, theirs in zip(ours.values(), book, strict=True):
        assert split["text"].tolist() == theirs["Text"].tolist()
        assert split["label"].tolist() == theirs["Label"].tolist()


def test_another_seed_draws_and_shuffles_otherwise(inputs: Inputs) -> None:
    messages = read_messages(inputs.messages, "strict")
    one, two = (balance_by_undersampling(messages, COLLECTION, seed) for seed in (1, 2))
    assert set(one["id"]) != set(two["id"])
    assert (
        split_messages(one, COLLECTION, BOOK, 1)["train"]["id"].tolist()
        != split_messages(one, COLLECTION, BOOK, 2)["train"]["id"].tolist()
    )


def test_the_written_tables_hold_the_split_with_its_tokens(
    inputs: Inputs, gpt2: BytePairTokenizer, tmp_path: Path
) -> None:
    counts = write_messages(inputs.messages, gpt2, tmp_path / "a", BOOK, 123, print)
    rows = {split: read_table(tmp_path / "a" / f"{split}.parquet") for split in ("train", "val", "test")}
    assert counts["read"] == len(read_messages(inputs.messages, "book"))
    labels = [row["label"] for table in rows.values() for row in table]
    assert 0 < 2 * sum(labels) == len(labels) < counts["read"]  # balanced
    for split, table in rows.items():
        assert counts[split] == {
            "records": len(table),
            "spam": sum(row["label"] for row in table),
            "tokens": sum(len(row["token_ids"]) for row in table),
        }
        assert all(row["token_ids"] == gpt2.encode(row["text"]) for row in table)
    texts = [row["text"] for row in rows["train"]]
    crossing = [row for row in rows["val"] + rows["test"] if texts.count(row["text"])]
    assert counts["duplicates_across_splits"] == len(crossing) > 0
    write_messages(inputs.messages, gpt2, tmp_path / "b", BOOK, 123, print)
    assert [sha256_of(tmp_path / "a" / f"{name}.parquet") for name in rows] == [
        sha256_of(tmp_path / "b" / f"{name}.parquet") for name in rows
    ]


def test_crossing_duplicates_are_those_of_val_and_test_that_train_holds(
    gpt2: BytePairTokenizer, tmp_path: Path
) -> None:
    lines = [b"ham\tsame"] * 7 + [b"spam\tother"] * 3
    path = write(tmp_path / "sms", b"\n".join(lines) + b"\n")
    params = MessagesParams(
        reading="strict", labels=None, deduplicate="none", balance=False, train_fraction=0.5, val_fraction=0.2
    )
    counts = write_messages(path, gpt2, tmp_path / "out", params, 1, print)
    # of ten messages five train: "same" at least twice, "other" perhaps; both stand in train with this seed
    assert {row["text"] for row in read_table(tmp_path / "out" / "train.parquet")} == {"same", "other"}
    assert counts["duplicates_across_splits"] == 5


def test_the_book_reading_lets_a_quotation_mark_swallow_a_line_end(tmp_path: Path) -> None:
    path = write(tmp_path / "sms", b'ham\t"hi\nspam\tyo"\nham\tNA\n')
    assert read_messages(path, "book")["text"].tolist() == ["hi\nspam\tyo", "NA"]
    strict = read_messages(path, "strict")
    assert strict["label"].dtype == "int8"
    rows = strict[["id", "label", "text"]].to_numpy().tolist()
    assert rows == [["sms-00000", 0, '"hi'], ["sms-00001", 1, 'yo"'], ["sms-00002", 0, "NA"]]


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"ham\thi\nspma\tyo\n", "row 2 starts 'spma'"),
        (b"ham\thi\n\tyo\n", "row 2 starts ''"),
        (b"ham\nspam\n", "row 1 starts 'ham'"),
        (b"ham\thi\nspam\t\n", "row 2 starts 'spam'"),
        (b"ham\thi\tthere\nspam\tyo\tho\n", "row 1 has more than one tab"),
        (b"x\tham\thi\ny\tspam\tyo\n", "row 1 has more than one tab"),
        (b"1\t2\tham\thi\n3\t4\tspam\tyo\n", "row 1 has more than one tab"),
        (b"ham\thi\t\nspam\tyo\n", "row 1 has more than one tab"),
        (b"ham\thi\nspam\tyo\tho\n", "Error tokenizing data. C error: Expected 2 fields in line 2, saw 3"),
        (b"ham\thi \xa3\n", "'utf-8' codec can't decode byte 0xa3 in position 3: invalid start byte"),
    ],
)
@pytest.mark.parametrize("reading", ["strict", "book"])
def test_what_is_no_message_is_refused_with_its_place(tmp_path: Path, content: bytes, place: str, reading) -> None:
    with pytest.raises(UserError, match=f"sms: {place}{EVERY_LINE}"):
        read_messages(write(tmp_path / "sms", content), reading)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sms: no such file"):
        read_messages(tmp_path / "sms", "strict")


def test_the_larger_class_is_drawn_from_whichever_it_is(tmp_path: Path) -> None:
    """Where both have the same size, the order of the first class is drawn, as the book's code does it."""
    messages = read_messages(write(tmp_path / "sms", b"spam\ta\nspam\tb\nham\tc\n"), "strict")
    chosen = balance_by_undersampling(messages, COLLECTION, 1)
    assert chosen["label"].tolist() == [0, 1] and chosen["text"].iloc[1] in "ab"
    lines = "".join(f"{label}\t{label} {i}\n" for i in range(20) for label in COLLECTION)
    equal = balance_by_undersampling(read_messages(write(tmp_path / "equal", lines.encode()), "strict"), COLLECTION, 1)
    assert equal["text"].tolist()[20:] == [f"spam {i}" for i in range(20)]
    assert equal["text"].tolist()[:20] != [f"ham {i}" for i in range(20)]


@pytest.mark.parametrize("content", [b"ham\ta\nham\tb\n", b""])
def test_without_spam_there_is_nothing_to_balance(tmp_path: Path, content: bytes) -> None:
    messages = read_messages(write(tmp_path / "sms", content), "strict")
    absent = "spam" if content else "ham"
    with pytest.raises(
        UserError, match=f"^{len(messages)} messages but no {absent}, so there is nothing to balance; add some"
    ):
        balance_by_undersampling(messages, COLLECTION, 1)


def test_an_empty_split_names_the_parameters_behind_it(tmp_path: Path) -> None:
    messages = read_messages(write(tmp_path / "sms", b"spam\ta\nham\tb\nham\tc\n"), "strict")
    with pytest.raises(UserError) as caught:
        split_messages(messages, COLLECTION, BOOK, 1)
    assert str(caught.value) == (
        "the val split of the 3 records is empty; add records, or change the fractions in tokenize.messages"
    )  # fmt: skip


@pytest.mark.parametrize(("label", "other"), [("ham", "spam"), ("spam", "ham")])
def test_training_messages_of_one_class_are_refused_at_once(tmp_path: Path, label: str, other: str) -> None:
    lines = "".join(f"{label}\ttext {i}\n" for i in range(20))
    messages = read_messages(write(tmp_path / "messages", lines.encode()), "strict")
    with pytest.raises(UserError, match=f"^none of the 14 training messages is {other}, so .* of this class"):
        split_messages(messages, COLLECTION, BOOK, 1)


@pytest.mark.parametrize("first", [0.9, 0.95])
def test_fractions_must_leave_a_test_split(first: float) -> None:
    with pytest.raises(UserError) as caught:
        check_params(BOOK.model_dump() | {"train_fraction": first}, MessagesParams, source="params.yaml")
    assert str(caught.value) == (
        f"params.yaml: fractions {first} and 0.1 leave nothing for the third split; their sum must be below 1"
    )


def test_padding_cuts_fills_and_counts() -> None:
    token_ids, lengths = pad([[1, 2], [], [3, 4, 5, 6]], 9, 3)
    assert token_ids.tolist() == [[1, 2, 9], [9, 9, 9], [3, 4, 5]]
    assert lengths.tolist() == [2, 1, 3]
    assert token_ids.dtype == lengths.dtype == "int64"


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 8), max_size=6), min_size=1, max_size=4), st.integers(1, 7))
def test_padded_rows_start_with_their_tokens_and_end_with_padding(sequences: list[list[int]], width: int) -> None:
    token_ids, lengths = pad(sequences, 9, width)
    assert token_ids.shape == (len(sequences), width)
    for sequence, row, length in zip(sequences, token_ids.tolist(), lengths, strict=True):
        assert [token for token in row if token != 9] == sequence[:width]
        assert length == max(1, width - row.count(9))


# more than two classes


THREE = ["sport"] * 9 + ["art"] * 12 + ["law"] * 30


def table(folder: Path) -> Path:
    lines = [f"about {label} number {i},{label}\n" for i, label in enumerate(THREE)]
    return write(folder / "news.csv", ("text,label\n" + "".join(lines)).encode())


@pytest.mark.parametrize("balance", [True, False])
def test_any_number_of_classes_is_balanced_split_and_counted(
    gpt2: BytePairTokenizer, tmp_path: Path, balance: bool
) -> None:
    params = BOOK.model_copy(update={"labels": ["law", "sport", "art"], "balance": balance})
    counts = write_messages(table(tmp_path), gpt2, tmp_path / "out", params, 3, print)
    found = load_messages(tmp_path / "out")
    assert found.classes == ("law", "sport", "art")
    everyone = [row for rows in found.splits.values() for row in rows]
    assert all(row["text"].split()[1] == found.classes[row["label"]] for row in everyone)
    assert counts["read"] == 51
    totals = {name: sum(counts[split]["classes"][name] for split in found.splits) for name in found.classes}
    assert totals == (dict.fromkeys(found.classes, 9) if balance else {"law": 30, "sport": 9, "art": 12})
    assert {split: counts[split]["records"] for split in counts if split in found.splits} == {
        split: len(rows) for split, rows in found.splits.items()
    }
    write_messages(table(tmp_path), gpt2, tmp_path / "again", params, 3, print)
    assert {path.name: sha256_of(path) for path in (tmp_path / "out").iterdir()} == {
        path.name: sha256_of(path) for path in (tmp_path / "again").iterdir()
    }


def test_a_class_without_a_training_message_is_refused_by_name(gpt2: BytePairTokenizer, tmp_path: Path) -> None:
    path = table(tmp_path)
    path.write_text(path.read_text() + "rare,rare\n")
    with pytest.raises(UserError) as caught:  # with this seed it is in test
        write_messages(path, gpt2, tmp_path / "out", BOOK.model_copy(update={"balance": False}), 2, print)
    assert str(caught.value) == (
        f"none of the 36 training messages is rare (1 of val and test, such as {path}: line 53), so it cannot be "
        "learnt; add messages of this class, or raise tokenize.messages.train_fraction"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (["a"], "labels is ['a']: "),
        (["a", "a"], "labels has 'a' 2 times; each must be different"),
        ([1, "1"], "labels has '1' 2 times; each must be different"),
        ([" a", "b"], "labels has the label ' a'; a label has 1 to 100 printable characters, and no space at"),
        ([False, True], "labels.0 is False: must be"),
        ([str(i) for i in range(129)], "labels is ['0', '1', "),
    ],
)  # fmt: skip
def test_labels_that_name_no_classes_are_refused(labels: list, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        check_params(BOOK.model_dump() | {"labels": labels}, MessagesParams, source="params.yaml")
    assert str(caught.value).startswith(f"params.yaml: {sentence}")


@pytest.mark.parametrize("content", ['["ham"]', '["ham", 2]', '["ham", "spam", "ham", "x", "y", "z"', "{}"])
def test_damaged_names_of_classes_are_refused(
    inputs: Inputs, gpt2: BytePairTokenizer, tmp_path: Path, content: str
) -> None:
    write_messages(inputs.messages, gpt2, tmp_path / "out", BOOK, 123, print)
    (tmp_path / "out" / "classes.json").write_text(content)
    with pytest.raises(UserError, match=r"classes\.json: "):
        load_messages(tmp_path / "out")
