"""The sources of data on the command line."""

import contextlib
import hashlib
import json
import re
import shutil
import subprocess
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scratchlm.data.catalogue import CATALOGUE, SourcesParams
from scratchlm.data.manifest import read_manifest
from scratchlm.data.sources import own_paths
from scratchlm.run.files import read_json
from scratchlm.run.params import check_params, load_yaml
from tests.clones import REPOSITORY
from tests.commands import interrupted, scratchlm
from tests.corpora import content
from tests.unit.test_stages import caller
from tests.web import web_server


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(REPOSITORY / "profiles" / "sample.yaml", tmp_path / "params.yaml")
    (tmp_path / "data" / "mine").mkdir(parents=True)
    (tmp_path / "data" / "mine" / "x.csv").write_text("review,stars\nGood,5\nBad,1\nBad again,1\n")
    return tmp_path


def sources_of(project: Path) -> SourcesParams:
    return check_params(load_yaml(project / "params.yaml")["sources"], SourcesParams, source="params.yaml")


def test_the_list_has_every_source_once_and_marks_those_in_use(project: Path) -> None:
    table = scratchlm(project, "sources").stdout.partition("\n\n")[0]
    rows = {line.split()[1]: line.split() for line in table.splitlines()[2:] if not line.startswith(" ")}
    assert rows.keys() == CATALOGUE.keys()
    used = {name for name, row in rows.items() if "yes" in row}
    assert used == {f"sample-{key}" for key in ("stories", "messages", "instructions", "preferences")} | {"gpt2-nano"}
    assert rows["sms-spam"] == ["messages", "sms-spam", "0.48", "CC", "BY", "4.0"]
    assert "over" in rows["gpt2-774M"]  # the size of one of its files is not known
    assert rows["gutenberg-en"][2:5] == ["to", "pin", "unknown"]
    (project / "params.yaml").write_text("sources: x\npretrained: 5\ngpt2_sizes: {a: [b]}\n")
    done = scratchlm(project, "sources")
    assert (done.returncode, "yes" in done.stdout, done.stderr) == (0, False, "")  # `preflight` refuses it


def test_a_table_is_added_with_its_columns_and_its_licence_and_the_change_is_shown(project: Path) -> None:
    before = (project / "params.yaml").read_text().splitlines()
    words = ("sources", "add", "data/mine/x.csv", "--as", "messages", "--column", "text=review")
    done = scratchlm(project, *words)
    assert done.returncode == 1 and (project / "params.yaml").read_text().splitlines() == before
    assert "x.csv: no column 'label' among review, stars" in done.stderr
    assert "name the column, as in --column label=NAME" in done.stderr

    for licence in ("CC BY 4.0", "ours"):  # the second call replaces the comment of the first
        done = scratchlm(project, *words, "--column", "label=stars", "--licence", licence)
        assert done.returncode == 0, done.stderr
        assert "data/mine/x.csv: 3 texts of 2 classes (1, 5), 38 bytes in 1 file\n" in done.stdout
        assert f"+  # licence of messages: {licence}\n" in done.stdout
    after = (project / "params.yaml").read_text().splitlines()
    new = [line for line in after if line not in before]
    assert [line.split(" # or")[0] for line in new] == [
        "  # licence of messages: ours",
        "  messages: {path: data/mine/x.csv, columns: {text: review, label: stars}}",
    ]
    assert len(after) == len(before) + 1
    assert re.search("messages +data/mine/x.csv +yes +ours", scratchlm(project, "sources").stdout)
    done = scratchlm(project, *words, "--column", "label=stars", "--licence", "ours")
    assert done.stdout.endswith("params.yaml has this entry already\n")
    assert scratchlm(project, *words, "--column", "label=stars").returncode == 0  # removes the comment
    assert re.search("messages +data/mine/x.csv +yes +not stated", scratchlm(project, "sources").stdout)


def test_a_corpus_is_added_with_the_number_of_its_documents_and_the_characters_of_their_text(project: Path) -> None:
    folder = project / "data" / "mine" / "novel"
    folder.mkdir()
    (folder / "one.txt").write_text("Grüße, ein Anfang.")
    (folder / "two.txt").write_text("Mitte.<|endoftext|>Ende.")
    done = scratchlm(project, "sources", "add", "data/mine/novel", "--as", "corpus")
    assert done.stdout.startswith("data/mine/novel: 3 documents, 29 characters, 44 bytes in 2 files\n"), done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("params.yaml", "--as", "corpus"), "params.yaml is not below data/mine, whose content DVC follows; copy it"),
        (("a b.txt", "--as", "corpus"), "follows; copy it there: cp 'a b.txt' data/mine/\n"),
        (("data", "--as", "corpus"), "data is not below data/mine, whose content DVC follows; put the data there\n"),
        (("data/mine/none", "--as", "corpus"), "there is no file data/mine/none; put one there"),
        (("data/mine/empty", "--as", "corpus"), "there is no file in data/mine/empty; put one there"),
        (("data/mine/x.csv", "--as", "corpus", "--column", "text"), "--column is 'text', but must be OURS=THEIRS"),
        (("data/mine/x.csv", "--as", "corpus", "--column", "a=b"), "corpus.columns has 'a', but only text can"),
        (("data/mine/b.txt", "--as", "corpus"), "b.txt: line 1 is not UTF-8 text"),
        (("data/mine/b.txt", "--as", "instructions"), "b.txt: the name must end in .csv, .tsv"),
        (("s3://x/y", "--as", "corpus"), "path is an address, which must begin with https://"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_changes_nothing(project: Path, words: tuple[str, ...], sentence: str) -> None:
    (project / "data" / "mine" / "b.txt").write_bytes(b"\xff\xfe")
    (project / "data" / "mine" / "empty").mkdir()
    (project / "a b.txt").touch()
    before = (project / "params.yaml").read_bytes()
    done = scratchlm(project, "sources", "add", *words)
    assert done.returncode == 1 and sentence in done.stderr
    assert (project / "params.yaml").read_bytes() == before


def pin_texts(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return scratchlm(project, "sources", "pin", "texts", "--column", "body", *words)


@pytest.fixture
def texts(project: Path) -> list[str]:
    """The documents of two files in the folder texts of the project."""
    found = [f"Sara saw {n} red birds by the lake. " * 9 for n in range(120)]
    (project / "texts").mkdir()
    (project / "texts" / "a.jsonl.zst").write_bytes(content(found[:60], "jsonl.zst"))
    (project / "texts" / "b.txt.gz").write_bytes(content(found[60:], "txt.gz"))
    return found


def test_many_files_are_pinned_and_what_changed_since_is_counted(project: Path, texts: list[str]) -> None:
    done = scratchlm(project / "texts", "sources", "pin", ".")
    assert done.returncode == 1 and "texts is not in a clone of the project; run scratchlm inside one" in done.stderr
    assert not list((project / "texts").glob(".scratchlm/pins/*"))  # refused before it reads

    before = (project / "params.yaml").read_text()
    done = scratchlm(project, "sources", "pin", "texts")
    assert done.returncode == 1 and (project / "params.yaml").read_text() == before
    assert "texts/a.jsonl.zst: line 1 has no text in the column 'text' (it has body)" in done.stderr
    assert not (project / "data" / "mine" / "corpus.jsonl").exists()

    done = pin_texts(project, "--licence", "CC0")
    assert done.returncode == 0, done.stderr
    size = sum(path.stat().st_size for path in (project / "texts").iterdir())
    assert done.stdout.startswith(f"data/mine/corpus.jsonl: {size:,} bytes in 2 files\n")
    new = [line for line in (project / "params.yaml").read_text().splitlines() if line not in before.splitlines()]
    assert [line[:2] + line[2:].partition(" #")[0].rstrip() for line in new] == [
        "  # licence of corpus: CC0", "  corpus: {manifest: data/mine/corpus.jsonl}", "    split: documents"
    ]  # fmt: skip
    assert "data/mine/corpus.jsonl" in scratchlm(project, "sources").stdout

    (project / "texts" / "b.txt.gz").write_bytes(content(texts, "txt.gz"))
    done = pin_texts(project, "--licence", "CC0")
    assert "in 2 files (0 added, 0 removed, 1 changed)\nparams.yaml has this entry already\n" in done.stdout
    (project / "data" / "mine" / "corpus.jsonl").write_text('{"text": "Not a manifest."}\n')
    for words, sentence in {
        ("texts", "--output", "corpus.jsonl"): "corpus.jsonl is not below data/mine, .*; name another --output\n",
        ("texts",): "corpus.jsonl: line 1: .*; it is not overwritten: remove it, or name another --output\n",
        ("tinystory",): r"tinystory is neither a file nor a public corpus \(did you mean tinystories\?\); correct the ",
        ("tinystory/*.txt", "--output", "data/mine/new.jsonl"): "there is no file; correct the address or the pattern",
        ("", "--output", "data/mine/new.jsonl"): "an address is empty; name a file, a folder or a pattern\n",
    }.items():
        done = scratchlm(project, "sources", "pin", *words)
        assert done.returncode == 1 and re.search(sentence, done.stderr), done.stderr


def test_a_public_corpus_is_pinned_by_its_name_with_its_column_and_licence(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public, mirror = CATALOGUE["tinystories"], project / "mirror"
    (mirror / public.name).mkdir(parents=True)
    for file in public.files:
        table = pa.table({"text": [f"A story of {file.name}."]})
        pq.write_table(table, mirror / public.name / file.name)
    monkeypatch.setenv("SCRATCHLM_MIRROR", str(mirror))
    done = scratchlm(project, "sources", "pin", "tinystories", "texts")
    assert done.returncode == 1 and "tinystories is a public corpus, which is pinned alone; name" in done.stderr
    done = scratchlm(project, "sources", "pin", "tinystories")
    assert done.returncode == 0, done.stderr
    assert " bytes in 4 files\n" in done.stdout and "+  # licence of corpus: CDLA-Sharing-1.0\n" in done.stdout
    assert "+  corpus: {manifest: data/mine/tinystories.jsonl}" in done.stdout
    (first, *_) = read_manifest(project / "data" / "mine" / "tinystories.jsonl")
    assert (first.address, first.column) == (public.files[0].addresses[0], "text")
    (row,) = [line for line in scratchlm(project, "sources").stdout.splitlines() if "tinystories" in line]
    assert row.split()[:3] == ["corpus", "tinystories", "yes"]
    assert not list((project / ".scratchlm" / "pins").iterdir())
    done = scratchlm(project, "sources", "pin", "params.yaml", "--output", "data/mine/tinystories.jsonl")
    assert done.returncode == 1 and "is the manifest of the public corpus tinystories; name another" in done.stderr

    (project / "data" / "sample").symlink_to(REPOSITORY / "data" / "sample")
    (project / "dvc.yaml").write_bytes((REPOSITORY / "dvc.yaml").read_bytes())
    with contextlib.chdir(project):
        caller(Path(), Path())("download")
    assert read_json(project / "data" / "sources.json")["tinystories"]["files"] == 4


def test_ctrl_c_does_not_wait_for_a_server_that_sends_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with web_server() as server:
        words = ("-m", "scratchlm.cli.main", "sources", "pin", server.url("slow.jsonl"))
        done = interrupted(project, server, "/slow.jsonl", *words)
    assert done.stderr == "scratchlm: interrupted; run this again to resume after the files that were read\n"
    assert done.returncode == 1 and not list((project / "data" / "mine").glob("*.jsonl"))


@pytest.mark.long
def test_the_stages_copy_no_pinned_file_and_tokenize_each(project: Path, texts: list[str]) -> None:
    assert pin_texts(project).returncode == 0
    (project / "data" / "sample").symlink_to(REPOSITORY / "data" / "sample")
    (project / "dvc.yaml").write_bytes((REPOSITORY / "dvc.yaml").read_bytes())
    with contextlib.chdir(project):
        call = caller(Path(), Path())
        call("download")
        call("tokenize")
    manifest = (project / "data" / "mine" / "corpus.jsonl").read_bytes()
    assert [path.read_bytes() for path in (project / "data" / "raw" / "corpus").iterdir()] == [manifest]
    found = read_json(project / "data" / "sources.json")["own-corpus"]
    assert found["sha256"] == {"corpus.jsonl": hashlib.sha256(manifest).hexdigest()}
    assert (found["files"], found["bytes"]) == (2, sum(it.stat().st_size for it in (project / "texts").iterdir()))
    counts = read_json(project / "metrics" / "tokenize.json")["corpus"]
    assert counts["train"]["documents"] + counts["val"]["documents"] == len(texts)


def test_what_is_at_an_address_is_fetched_once_and_pinned(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCRATCHLM_MIRROR", raising=False)
    site = project / "site"
    site.mkdir()
    (site / "a.json").write_text(json.dumps([{"instruction": "Say a.", "output": "a"}] * 9))
    (site / "page.json").write_text("<!DOCTYPE html><title>a.json</title>")
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *given: object) -> None:
            super().__init__(*given, directory=str(site))  # type: ignore[arg-type]

        def log_request(self, *given: object) -> None:
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever).start()
        address = f"http://127.0.0.1:{server.server_port}"
        done = scratchlm(project, "sources", "add", f"{address}/a.json", "--as", "instructions")
        assert done.returncode == 0, done.stderr
        assert "9 instructions" in done.stdout
        monkeypatch.chdir(project)
        source = sources_of(project).own["instructions"]
        (stored,) = own_paths("instructions", source, Path(".scratchlm/downloads"), None)
        assert stored.read_bytes() == (site / "a.json").read_bytes()
        assert asked == ["/a.json"]
        done = scratchlm(project, "sources", "add", f"{address}/page.json", "--as", "instructions")
        assert done.returncode == 1 and "page.json is a web page, not a file of data" in done.stderr
        server.shutdown()
