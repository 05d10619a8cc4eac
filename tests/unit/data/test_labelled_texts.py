"""Tables of text and label: what is read, and one sentence for each mistake."""

import gzip
import io
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scratchlm.data.labelled_texts import read_labelled_texts
from scratchlm.run.errors import UserError

TABLE = {"label": ["b", "a", "b"], "text": ["one", 'two, "2"', "three\nlines"]}
CSV = 'id,text,label\n1,one,b\n\n2,"two, ""2""",a\n3,"three\nlines",b\n'


def file(folder: Path, name: str, content: bytes | str | dict[str, Any]) -> Path:
    path = folder / name
    if isinstance(content, dict):
        pq.write_table(pa.table(content), path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def archive(folder: Path, members: dict[str, bytes]) -> Path:
    path = folder / "reviews.tar.gz"
    with tarfile.open(path, "w:gz") as out:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
    return path


def rows(path: Path, labels: list[str] | None = None) -> list[tuple[str, str, str]]:
    """Id, name of the class and text."""
    found, classes = read_labelled_texts(path, "strict", labels)
    assert found["label"].dtype == "int8"
    return [(each.id, classes[each.label], each.text) for each in found.itertuples()]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", CSV),
        ("a.CSV", "\ufeff" + CSV.replace("\n", "\r\n").replace("three\r\nlines", "three\nlines")),
        ("a.tsv", CSV.replace(",", "\t").replace("two\t ", "two, ")),
        ("a.parquet", TABLE),
        (
            "a.parquet",
            {"text": TABLE["text"], "label": pa.array(TABLE["label"]).dictionary_encode(), "more": [1, 2, 3]},
        ),
        ("a.parquet", {name: pa.array(column, pa.large_string()) for name, column in TABLE.items()}),
    ],
)
def test_a_table_is_read_by_the_names_of_its_columns(tmp_path: Path, name: str, content: Any) -> None:
    path = file(tmp_path, name, content)
    assert rows(path) == [
        ("row-00000", "b", "one"), ("row-00001", "a", 'two, "2"'), ("row-00002", "b", "three\nlines"),
    ]  # fmt: skip
    assert read_labelled_texts(path, "strict", None)[1] == ("a", "b")
    found, classes = read_labelled_texts(path, "strict", ["b", "a"])
    assert classes == ("b", "a") and found["label"].tolist() == [0, 1, 0]


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint8(), pa.string()])
def test_integers_are_classes_in_the_order_of_their_values(tmp_path: Path, kind: pa.DataType) -> None:
    labels = pa.array([10, 2, 9, 2]).cast(kind)
    assert read_labelled_texts(file(tmp_path, "a.parquet", {"label": labels, "text": [*"abcd"]}), "strict", None)[
        1
    ] == ("2", "9", "10")
    csv = "text,label\na,10\nb,-2\nc,9\n"
    assert read_labelled_texts(file(tmp_path, "a.csv", csv), "strict", None)[1] == ("-2", "9", "10")
    mixed = "text,label\na,10\nb,2\nc,x\n"
    assert read_labelled_texts(file(tmp_path, "b.csv", mixed), "strict", None)[1] == ("10", "2", "x")


def test_reviews_are_read_from_their_folders_in_the_order_of_their_names(tmp_path: Path) -> None:
    path = archive(
        tmp_path,
        {
            "aclImdb/train/pos/9_7.txt": "good é".encode(), "aclImdb/test/neg/1_2.txt": b"bad",
            "aclImdb/train/unsup/0_0.txt": b"?", "aclImdb/train/urls_pos.txt": b"http", "aclImdb/README": b"x",
        },
    )  # fmt: skip
    assert rows(path) == [("test/neg/1_2", "neg", "bad"), ("train/pos/9_7", "pos", "good é")]
    assert read_labelled_texts(path, "strict", None)[1] == ("neg", "pos")


BIG = "x" * 140_000
MISTAKES: list[tuple[str, Any, str]] = [
    ("a.csv", "", "the first line names no columns; write their names there"),
    ("a.csv", "text,lable\na,b\n", "no column 'label' among text, lable; name one column"),
    ("a.csv", "text;label\na;b\n", "no column 'label' among text;label; name"),
    ("a.csv", "label,text,text\na,b,c\n", "more than one column is named 'text'; rename all but one"),
    ("a.csv", "text,label\n", "there is no row; add some, or leave the file out"),
    ("a.csv", "text,label\na,x\nb,x\n", "every row has the label 'x', so there is nothing to tell apart; add texts"),
    ("a.csv", "text,label\na,x\n ,y\n", "line 3 has no text; remove it, or give it one"),
    ("a.csv", "text,label\na,x\nb,\n", "line 3 has the label ''; a label has 1 to 100 printable characters, and no"),
    ("a.csv", "text,label\na, x\n", "line 2 has the label ' x'; a label has"),
    ("a.csv", 'text,label\na,"x\ny"\n', r"line 2 has the label 'x\ny'; a label has"),
    ("a.csv", f"text,label\na,{'x' * 101}\n", "line 2 has the label 'xxx"),
    ("a.csv", "text,label\na,x\nb\n", "line 3 has 1 of 2 columns; correct the line, or save the"),
    ("a.csv", "text,label\na, b,x\n", "line 2 has 3 of 2 columns; correct"),
    ("a.csv", 'text,label\n"a" b,x\n', "line 2: ',' expected after '\"'; correct the line"),
    ("a.csv", 'text,label\n"a,x\n', "line 2: unexpected end of data; correct the line"),
    ("a.csv", f"text,label\n{BIG},x\n", "line 2: field larger than field limit (131072); correct the line, or save"),
    ("a.csv", b"text,label\n\xe9,x\n", "line 2 is not UTF-8 text (the byte 0xe9 after ''); convert the file to UTF-8"),
    ("a.tsv", "text,label\na,x\n", "no column 'label' among text,label; name"),
    ("a.csv", "text,label\n" + "".join(f"a,{i}\n" for i in range(129)), "129 different labels, and at most 128 are"),
    ("a.csv", "text,label\na,x\nb,x_as_x\n", "labels that contain `_as_` make equal names of confusions; rename one"),
    ("a.parquet", {"text": ["a"]}, "no column 'label' among text; name"),
    ("a.parquet", {"text": ["a", None], "label": ["x", "y"]}, "row 2 has no text in the column 'text' (it"),
    ("a.parquet", {"text": ["a", "b"], "label": ["x", None]}, "row 2 has no text in the column 'label' (it"),
    ("a.parquet", {"text": ["a"], "label": [1.0]}, "the column label has the type double, not strings or integers"),
    ("a.parquet", {"text": [["a"]], "label": ["x"]}, "the column text has the type list<element: string>, not"),
    ("a.parquet", "text,label\n", "cannot be read as Parquet (Parquet magic bytes not found"),
    ("a.tar.gz", b"text", "cannot be read as an archive of reviews (Not a gzipped file (b'te'))"),
    ("a.tar.gz", b"\x1f\x8b\x08\x04", "cannot be read as an archive of reviews (Compressed file ended before"),
    ("a.tar.gz", gzip.compress(b"text", mtime=0), "cannot be read as an archive of reviews (truncated header)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "sentence"), MISTAKES)
def test_every_mistake_is_one_sentence_with_its_place(tmp_path: Path, name: str, content: Any, sentence: str) -> None:
    path = file(tmp_path, name, content)
    with pytest.raises(UserError) as caught:
        read_labelled_texts(path, "strict", None)
    assert str(caught.value).startswith(f"{path}: {sentence}")
    assert "\n" not in str(caught.value)


def test_strings_of_a_parquet_file_that_are_not_text_are_refused(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xe9\xe9")])
    path = file(tmp_path, "a.parquet", {"label": ["x"], "text": broken})
    with pytest.raises(UserError, match="a.parquet: cannot be read as Parquet .*can't decode byte 0xe9"):
        read_labelled_texts(path, "strict", None)


def test_the_name_of_a_column_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = file(tmp_path, "a.parquet", {"label": ["x"], "text": ["y"], "zzzz": ["z"]})
    path.write_bytes(path.read_bytes().replace(b"zzzz", b"zz\xa8z"))
    with pytest.raises(UserError, match="a.parquet: cannot be read as Parquet .*can't decode byte 0xa8"):
        read_labelled_texts(path, "strict", None)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"aclImdb/train/pos/1.txt": b"a"}, "every row has the label 'pos', so"),
        ({"aclImdb/README": b"a"}, "there is no row, so"),
        ({"aclImdb/train/pos/1.txt": b"\xe9"}, "cannot be read as an archive of reviews ('utf-8' codec"),
        ({"aclImdb/train/pos/1.txt": b" "}, "train/pos/1 has no text; remove it, or give it one"),
    ],
)
def test_reviews_that_are_none_are_refused(tmp_path: Path, content: dict[str, bytes], sentence: str) -> None:
    path = archive(tmp_path, content)
    with pytest.raises(UserError) as caught:
        read_labelled_texts(path, "strict", None)
    assert str(caught.value).startswith(f"{path}: {sentence}")


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.tar.gz"])
def test_a_missing_table_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: no such file"):
        read_labelled_texts(tmp_path / name, "strict", None)


def test_labels_of_params_and_of_the_table_must_be_the_same(tmp_path: Path) -> None:
    path = file(tmp_path, "a.csv", CSV)
    with pytest.raises(UserError) as caught:
        read_labelled_texts(path, "strict", ["a", "c"])
    assert str(caught.value) == (
        f"{path}: line 2 has the unknown label 'b' (and 1 more); add it to tokenize.messages.labels, or remove its rows"
    )
    with pytest.raises(UserError) as caught:
        read_labelled_texts(path, "strict", ["a", "b", "c"])
    assert str(caught.value) == f"{path}: no row has the label 'c'; remove it from tokenize.messages.labels"
    collection = file(tmp_path, "sms", "ham\thi\nspam\tbuy\n")
    assert read_labelled_texts(collection, "strict", ["spam", "ham"])[0]["label"].tolist() == [1, 0]
