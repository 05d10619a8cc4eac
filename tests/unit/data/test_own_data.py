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
    (mine / "books" / "0.txt.dvc").write_text("outs: no")
    assert written("corpus", path).read_text() == "<|endoftext|>".join(["one", "two", "three", "four"])


def test_a_link_to_a_folder_is_refused_since_dvc_does_not_follow_it(mine: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_text("a")
    (mine / "novel").mkdir()
    (mine / "novel" / "more").symlink_to(tmp_path / "elsewhere")
    for path in ("data/mine/novel", "data/mine/novel/more", "data/mine/novel/more/a.txt"):
        with pytest.raises(UserError, match="^data/mine/novel/more is a link to a folder, whose content DVC does not"):
            own_files(OwnSource(path=path))


def test_line_ends_are_kept_in_many_files_as_in_one(mine: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (mine / name).write_bytes(b"x\r\ny\n")
    assert written("corpus", "data/mine/*.txt").read_bytes() == b"x\r\ny\n<|endoftext|>x\r\ny\n"


def test_two_names_for_one_column_and_a_missing_column_of_inputs_are_refused(mine: Path) -> None:
    taken = {"path": "data/mine/x.csv", "columns": {"text": "label"}}
    assert "messages.columns takes two of text, label from one column; name others" in refusal(messages=taken)
    (mine / "x.csv").write_text("instruction,output,context\na,b,c\n")
    with pytest.raises(UserError, match="row 1 has no text in the column 'contxt'"):
        written("instructions", "data/mine/x.csv", input="contxt")


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


@pytest.mark.parametrize(
    ("content", "output"),
    [('[{"instruction": "a", "output": "b"}]', "b"), ('\ufeff[{"instruction": "a", "input": null, "output": 7}]', "7")],
)
def test_a_json_list_may_lack_inputs_and_have_integers(mine: Path, content: str, output: str) -> None:
    (mine / "x.json").write_text(content)
    found = read_json(written("instructions", "data/mine/x.json"), list)
    assert found == [{"instruction": "a", "input": "", "output": output}]


def test_a_table_of_messages_that_tokenization_reads_stays_as_it_is(mine: Path) -> None:
    (mine / "x.csv").write_bytes(b"label,other,text\r\na,1,b\r\n")
    assert written("messages", "data/mine/x.csv").read_bytes() == (mine / "x.csv").read_bytes()


def test_the_size_of_a_corpus_bounds_its_tokens_unless_it_is_compressed(mine: Path) -> None:
    (mine / "x.txt").write_text("12345")
    pq.write_table(pa.table({"text": ["a" * 100_000]}), mine / "x.parquet")
    sizes = [
        SourcesParams.model_validate(NAMES | {"corpus": {"path": f"data/mine/{name}"}}).corpus_bytes
        for name in ("x.txt", "x.parquet")
    ]
    assert sizes == [5, 1 << 30]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("x.csv", "text,kind\na,b\n", "x.csv: row 1 has no text in the column 'class' (it has text, kind); complete"),
        ("x.csv", 'text,class\n"a,b\n', "x.csv: unexpected end of data; correct the file, or save it as Parquet"),
        ("x.jsonl", "[1]\n", "x.jsonl: row 1 is no object with text, class; correct it"),
        ("x.jsonl", '{"text": "a", "class": "b"}\n\n{\n', "x.jsonl: line 3: Expecting property name"),
        ("x.csv", "text,class\nI liked it, really,good\n", "x.csv: line 2 has more or fewer columns than the first"),
        ("x.jsonl", '{"text": "a", "class": 1.5}', "x.jsonl: row 1 has 1.5 in the column 'class', which is neither a"),
        ("x.csv", "text,class,class\na,b,c\n", "x.csv: more than one column is named 'class'; rename all but one"),
        ("x.csv", "text,class\n", "x.csv: there is no row; add some, or leave the file out"),
        ("x.jsonl", '{"text": "a \\ud800", "class": "b"}', "x.jsonl: row 1 has characters in the column 'text' that"),
        ("x.jsonl", '{"text": ' + "9" * 5000 + ', "class": "b"}', "x.jsonl: line 1: Exceeds the limit"),
        ("x.json", "[" * 100_000, "x.json: maximum recursion depth exceeded"),
        ("x.jsonl", '{"text": true, "class": "b"}', "x.jsonl: row 1 has True in the column 'text', which is neither a"),
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
        ({"path": "s3://bucket/x"}, "path is an address, which must begin with https:// or http://, have no space"),
        ({"path": "https://me:hunter2@x.org/a", "sha256": "0" * 64}, "neither a name nor a password in it"),
        ({"path": "http://[", "sha256": "0" * 64}, "path is an address, which must begin with"),
        ({"path": "data/mine/**.txt"}, "path is 'data/mine/**.txt', but ** stands for whole folders"),
        ({"path": "https://x.org/a.txt"}, "a path that is an address needs the file's sha256 beside it"),
        ({"path": "data/mine/x", "sha256": "0" * 64}, "a path below data/mine needs no sha256, because DVC follows"),
        ({"path": "data/mine/x", "columns": {"label": "y"}}, "corpus.columns has 'label', but only text can be given"),
        ({"file": "data/mine/x"}, "unknown key file; allowed are path, sha256, columns"),
    ],
)
def test_a_description_that_cannot_work_is_answered_with_a_sentence(source: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal(corpus=source)
    assert "hunter2" not in refusal(corpus=source)
    assert "sample-stories" not in refusal(corpus=source)
