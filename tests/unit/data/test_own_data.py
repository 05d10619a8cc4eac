"""One's own files in the form that tokenization reads."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scratchlm.data.catalogue import SourcesParams
from scratchlm.data.instructions import read_instructions
from scratchlm.data.labelled_texts import read_labelled_texts
from scratchlm.data.own_data import OwnSource, own_files, write_own
from scratchlm.data.preferences import read_preferences
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


def test_a_name_that_dvc_cannot_write_is_refused(mine: Path) -> None:
    (mine / os.fsdecode(b"a\xff.txt")).write_text("one")
    with pytest.raises(UserError, match=r"^'data/mine/a\\udcff.txt' is a name that is not UTF-8; rename the file$"):
        written("corpus", "data/mine/*.txt")


@pytest.mark.parametrize("path", ["data/mine/books", "data/mine/books/*.txt"])
def test_a_folder_that_may_not_be_read_is_refused_not_left_out(
    mine: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    (mine / "books" / "secret").mkdir(parents=True)
    (mine / "books" / "1.txt").write_text("one")
    scandir = os.scandir

    def refusing(folder: Path) -> Any:  # root may read all folders
        if Path(folder).name == "secret":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError, match="data/mine/books/secret"):
        written("corpus", path)


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
    with pytest.raises(UserError, match="x.csv: no column 'contxt' among instruction, output, context; name the"):
        written("instructions", "data/mine/x.csv", input="contxt")


def test_a_column_of_another_name_is_a_corpus(mine: Path) -> None:
    pq.write_table(pa.table({"body": ["a", "b"]}), mine / "x.parquet")
    assert written("corpus", "data/mine/x.parquet", text="body").read_text() == "a<|endoftext|>b"


ROWS = [
    {"review": "Good, very.", "stars": 5},
    {"review": 'Bad "indeed"', "stars": 1},
    {"review": "So so\nso", "stars": 3},
]


LINES, NUMBERS = ("line 2", "line 3", "line 4"), ("row 1", "row 2", "row 3")
PLACES = {
    "x.csv": LINES,
    "x.tsv": LINES,
    "x.jsonl": ("line 1", "line 2", "line 3"),
    "x.json": NUMBERS,
    "x.parquet": NUMBERS,
}


@pytest.mark.parametrize("name", PLACES)
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
    assert found == [
        {"text": row["review"], "label": str(row["stars"]), "place": f"data/mine/{name}: {place}"}
        for row, place in zip(ROWS, PLACES[name], strict=True)
    ]


def test_instructions_may_lack_the_column_input(mine: Path) -> None:
    (mine / "x.csv").write_text("question,answer\nWhy?,So.\n")
    found = read_json(written("instructions", "data/mine/x.csv", instruction="question", output="answer"), list)
    place = "data/mine/x.csv: line 2"
    assert found == [{"instruction": "Why?", "input": "", "output": "So.", "place": place}]


@pytest.mark.parametrize(
    ("content", "output"),
    [('[{"instruction": "a", "output": "b"}]', "b"), ('\ufeff[{"instruction": "a", "input": null, "output": 7}]', "7")],
)
def test_a_json_list_may_lack_inputs_and_have_integers(mine: Path, content: str, output: str) -> None:
    (mine / "x.json").write_text(content)
    found = read_json(written("instructions", "data/mine/x.json"), list)
    assert found == [{"instruction": "a", "input": "", "output": output, "place": "data/mine/x.json: row 1"}]


def test_the_size_of_a_corpus_bounds_its_tokens_unless_it_is_compressed(mine: Path) -> None:
    (mine / "x.txt").write_text("12345")
    pq.write_table(pa.table({"text": ["a" * 100_000]}), mine / "x.parquet")
    sizes = [
        SourcesParams.model_validate(NAMES | {"corpus": {"path": f"data/mine/{name}"}}).corpus_bytes
        for name in ("x.txt", "x.parquet")
    ]
    assert sizes == [(5, 5), (1 << 30, 1 << 30)]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("x.csv", "text,kind\na,b\n", "x.csv: no column 'class' among text, kind; name the column in params.yaml"),
        (
            "x.csv",
            'text,class\n"a,b\n',
            "x.csv: line 2: unexpected end of data; correct the line",
        ),
        (
            "x.csv",
            'text,class\n"a\nb",c\n\n"d"e,f\n',
            "x.csv: line 5: ',' expected after '\"'; correct the line",
        ),
        ("x.tsv", "text\tclass\n'a\tb\nc d\n", "x.tsv: line 3 has 1 of 2 columns; correct the line, or save the table"),
        (
            "x.csv",
            "text,class\n" + "a" * 140_000 + ",b\n",
            "x.csv: line 2: field larger than field limit (131072)",
        ),
        (
            "x.csv",
            b"text,class\nso,b\nd\xe9j\xe0,c\n",
            "x.csv: line 3 is not UTF-8 text (the byte 0xe9 after 'd')",
        ),
        (
            "x.jsonl",
            b'{"text": "\xff',
            'x.jsonl: line 1 is not UTF-8 text (the byte 0xff after \'{"text": "\'); convert',
        ),
        ("x.jsonl", "[1]\n", "x.jsonl: line 1 is no object with text, class; correct it"),
        ("x.jsonl", '{"text": "a", "class": "b"}\n\n{\n', "x.jsonl: line 3: Expecting property name"),
        ("x.csv", "text,class\nI liked it, really,good\n", "x.csv: line 2 has 3 of 2 columns; correct the line"),
        ("x.jsonl", '{"text": "a", "class": 1.5}', "x.jsonl: line 1 has 1.5 in the column 'class', which is neith"),
        ("x.csv", "text,class,class\na,b,c\n", "x.csv: more than one column is named 'class'; rename all but one"),
        ("x.csv", "text,class\n", "x.csv: there is no row; add some, or leave the file out"),
        ("x.jsonl", '{"text": "a \\ud800", "class": "b"}', "x.jsonl: line 1 has characters in the column 'text' that"),
        ("x.jsonl", '{"text": ' + "9" * 5000 + ', "class": "b"}', "x.jsonl: line 1: Exceeds the limit"),
        ("x.json", "[" * 100_000, "x.json: maximum recursion depth exceeded"),
        (
            "x.jsonl",
            '{"text": true, "class": "b"}',
            "x.jsonl: line 1 has True in the column 'text', which is neith",
        ),
        ("x.txt", "a", "x.txt: the name must end in .csv, .tsv, .jsonl, .json, .parquet; rename or convert the file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(mine: Path, name: str, content: str | bytes, sentence: str) -> None:
    (mine / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        written("messages", f"data/mine/{name}", label="class")
    assert str(caught.value).startswith(os.fspath(mine / sentence))


def own_table(path: Path, rows: list[dict[str, str]]) -> None:
    """The rows in the format that the name says; in CSV, TSV and JSON lines after an empty line."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix in (".json", ".jsonl"):
        path.write_text(json.dumps(rows) if path.suffix == ".json" else "\n" + "\n".join(map(json.dumps, rows)))
    else:
        mark = "," if path.suffix == ".csv" else "\t"
        path.write_text("\n".join([mark.join(rows[0]), "", *(mark.join(row.values()) for row in rows)]))


@pytest.mark.parametrize(
    ("name", "place"), [("x.csv", "line 4"), ("x.tsv", "line 4"), ("x.jsonl", "line 3"), ("x.json", "row 2"),
                        ("x.parquet", "row 2")],
)  # fmt: skip
def test_what_tokenization_refuses_is_named_by_the_user_s_own_file_and_row(mine: Path, name: str, place: str) -> None:
    (mine / "all").mkdir()
    own_table(mine / "all" / "a.csv", [{"it": "One", "is": "number"}, {"it": "Two", "is": "number"}])
    names = {"text": "it", "label": "is"}
    cases = [
        ("Red", "colour", ["colour", "x"], "/a.csv: line 3 has the unknown label 'number' (and 2 more); add it to tok"),
        ("Red", "colour", ["number", "x"], f"/{name}: {place} has the unknown label 'colour'; add it to tokenize.mes"),
        ("Red", "colour", ["colour", "number", "x"], f"/a.csv, data/mine/all/{name}: no row has the label 'x'; remove"),
        ("Red", "number", None, f"/a.csv, data/mine/all/{name}: every row has the label 'number', so there is nothing"),
        ("  ", "number", None, f"/{name}: {place} has no text; remove it, or give it one"),
        ("Red", " a", None, f"/{name}: {place} has the label ' a'; a label has 1 to 100 printable characters, and no"),
    ]  # fmt: skip
    for text, label, labels, sentence in cases:
        own_table(mine / "all" / name, [{"it": "Three", "is": "number"}, {"it": text, "is": label}])
        raw = written("messages", "data/mine/all", **names)
        with pytest.raises(UserError) as caught:
            read_labelled_texts(raw, "strict", labels)
        assert str(caught.value).startswith("data/mine/all" + sentence)
        shutil.rmtree("raw")


@pytest.mark.parametrize(("name", "places"), [("x.csv", ("line 3", "line 4")), ("x.jsonl", ("line 2", "line 3"))])
def test_entries_without_a_text_or_a_preference_are_named_by_the_user_s_own_file(
    mine: Path, name: str, places: tuple[str, str]
) -> None:
    task = {"instruction": "Say hi.", "answer": " "}
    own_table(mine / name, [task, task | {"answer": "Hi."}, task])
    raw = written("instructions", f"data/mine/{name}", output="answer")
    with pytest.raises(UserError) as caught:
        read_instructions(raw)
    sentence = f"data/mine/{name}: {places[0]} has no text for output (and 1 more); complete it or remove it"
    assert str(caught.value) == sentence
    shutil.rmtree("raw")
    pair = {"instruction": "Say hi.", "chosen": "Hi.", "rejected": "Hi."}
    own_table(mine / name, [pair, pair])
    raw = written("preferences", f"data/mine/{name}")
    with pytest.raises(UserError, match=f"^data/mine/{name}: chosen and rejected are equal in each of its 2 entries"):
        read_preferences(raw)
    own_table(mine / name, [pair, pair | {"rejected": "No."}])
    shutil.rmtree("raw")
    assert [row["place"] for row in read_preferences(written("preferences", f"data/mine/{name}"))] == [
        f"data/mine/{name}: {place}" for place in places
    ]


def test_a_text_that_is_empty_or_not_utf_8_is_named_with_its_line(mine: Path) -> None:
    for content, sentence in ((b"", "there is no text; add some"), (b"One\nd\xe9j\xe0", "line 2 is not UTF-8 text")):
        (mine / "novel.txt").write_bytes(content)
        with pytest.raises(UserError, match=f"^data/mine/novel.txt: {sentence}"):
            written("corpus", "data/mine/novel.txt")
        shutil.rmtree("raw")


def test_a_file_that_is_not_there_is_named(mine: Path) -> None:
    with pytest.raises(UserError, match=r"^there is no file data/mine/\*.txt; put one there, or correct"):
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
