"""One's own files in the form that tokenization reads."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scratchlm.data.catalogue import SourcesParams
from scratchlm.data.own_data import OwnSource, own_files, write_own
from scratchlm.run.errors import UserError
from scratchlm.run.files import only_file, read_json, read_table
from scratchlm.run.params import check_params

NAMES = {
    "corpus": "sample-stories", "messages": "sample-messages", "instructions": "sample-instructions",
    "preferences": "sample-preferences", "vocabulary": "gpt2-nano",
}  # fmt: skip


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """data/mine in a project."""
    monkeypatch.chdir(tmp_path)
    folder = Path("data", "mine")
    folder.mkdir(parents=True)
    return folder


def written(purpose: str, path: str, **columns: str) -> Path:
    """What tokenization reads of the files at `path`."""
    source, folder = OwnSource(path=path, columns=columns), Path("raw")
    folder.mkdir()
    write_own(purpose, source, own_files(source), folder)
    return only_file(folder)


def refusal(**changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        check_params(NAMES | changes, SourcesParams, source="params.yaml")
    return str(caught.value)


def test_a_single_text_is_copied_and_never_linked(mine: Path) -> None:
    novel = mine / "novel.txt"
    novel.write_bytes(b"One\r\nday.")
    found = written("corpus", "data/mine/novel.txt")
    assert (found.name, found.read_bytes()) == ("novel.txt", novel.read_bytes())
    assert novel.stat().st_nlink == 1 and not found.is_symlink()


@pytest.mark.parametrize("path", ["data/mine/books", "data/mine/books/*", "data/mine/**/*.*"])
def test_many_files_are_documents_in_the_order_of_their_names(mine: Path, path: str) -> None:
    (mine / "books" / "b").mkdir(parents=True)
    (mine / "books" / "2.txt").write_text("two")
    (mine / "books" / "1.txt").write_text("one", encoding="utf-8-sig")
    (mine / "books" / "3.jsonl").write_text('{"text": "three"}\n\n{"text": "four"}\n')
    (mine / "books" / ".hidden").write_text("no")
    assert written("corpus", path).read_text() == "<|endoftext|>".join(["one", "two", "three", "four"])


def test_a_column_of_another_name_is_a_corpus(mine: Path) -> None:
    pq.write_table(pa.table({"body": ["a", "b"]}), mine / "x.parquet")
    assert written("corpus", "data/mine/x.parquet", text="body").read_text() == "a<|endoftext|>b"


ROWS = [
    {"review": "Good, very.", "stars": 5},
    {"review": 'Bad "indeed"', "stars": 1},
    {"review": "So so\nso", "stars": 3},
]


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.jsonl", "x.json", "x.parquet"])
def test_messages_of_every_format_with_columns_of_any_name(mine: Path, name: str) -> None:
    quoted = [json.dumps(row["review"]).replace("\\n", "\n").replace('\\"', '""') for row in ROWS]
    mark = "\t" if name == "x.tsv" else ","
    lines = [f"review{mark}stars", *(f"{text}{mark}{row['stars']}" for text, row in zip(quoted, ROWS, strict=True))]
    if name == "x.parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), mine / name)
    elif name == "x.json":
        (mine / name).write_text(json.dumps(ROWS))
    else:
        (mine / name).write_text("\n".join(map(json.dumps, ROWS)) if name == "x.jsonl" else "\n".join(lines))
    found = read_table(written("messages", f"data/mine/{name}", text="review", label="stars"))
    assert found == [{"text": row["review"], "label": str(row["stars"])} for row in ROWS]


def test_instructions_may_lack_the_column_input(mine: Path) -> None:
    (mine / "x.csv").write_text("question,answer\nWhy?,So.\n")
    found = read_json(written("instructions", "data/mine/x.csv", instruction="question", output="answer"), list)
    assert found == [{"instruction": "Why?", "input": "", "output": "So."}]


def test_a_file_that_tokenization_reads_stays_as_it_is(mine: Path) -> None:
    (mine / "x.json").write_text('[{"instruction": "a", "input": "", "chosen": "b", "rejected": "c", "n": 1}]')
    assert written("preferences", "data/mine/x.json").read_bytes() == (mine / "x.json").read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("x.csv", "text,kind\na,b\n", "x.csv: row 1 has no text in the column 'class' (it has text, kind); complete"),
        ("x.csv", 'text,class\n"a,b\n', "x.csv: unexpected end of data; correct the file, or save it as Parquet"),
        ("x.jsonl", "[1]\n", "x.jsonl: row 1 is no object with text, class; correct it"),
        ("x.jsonl", "{\n", "x.jsonl: Expecting property name enclosed in double quotes"),
        ("x.txt", "a", "x.txt: the name must end in .csv, .tsv, .jsonl, .json, .parquet; rename or convert the file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(mine: Path, name: str, content: str, sentence: str) -> None:
    (mine / name).write_text(content)
    with pytest.raises(UserError) as caught:
        written("messages", f"data/mine/{name}", label="class")
    assert str(caught.value).startswith(os.fspath(mine / sentence))


def test_a_file_that_is_not_there_is_named(mine: Path) -> None:
    with pytest.raises(UserError, match=r"^params.yaml: there is no file data/mine/\*.txt; put one there, or correct"):
        written("corpus", "data/mine/*.txt")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ({"path": "novel.txt"}, "path is 'novel.txt', but must be below data/mine, or an address; put the data there"),
        ({"path": "data/mine"}, "path is 'data/mine', but must be below data/mine"),
        ({"path": "data/mine/../x"}, "path is 'data/mine/../x', but must be below data/mine"),
        ({"path": "/data/mine/x"}, "path is '/data/mine/x', but must be below data/mine"),
        ({"path": "s3://bucket/x"}, "path is 's3://bucket/x', but an address begins with https:// or http://"),
        ({"path": "https://x.org/a.txt"}, "a path that is an address needs the file's sha256 beside it"),
        ({"path": "data/mine/x", "sha256": "0" * 64}, "a path below data/mine needs no sha256, because DVC follows"),
        ({"path": "data/mine/x", "columns": {"label": "y"}}, "corpus.columns has 'label', but only text can be given"),
        ({"file": "data/mine/x"}, "unknown key file; allowed are path, sha256, columns"),
    ],
)
def test_a_description_that_cannot_work_is_answered_with_a_sentence(source: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal(corpus=source)
    assert "sample-stories" not in refusal(corpus=source)
