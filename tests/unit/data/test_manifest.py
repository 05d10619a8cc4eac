"""The manifest of a corpus of many files: what is pinned, and what is refused."""

import hashlib
import os
import re
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from scratchlm.data import web
from scratchlm.data.addresses import Reader
from scratchlm.data.catalogue import SourcesParams
from scratchlm.data.manifest import changes, copy_manifest, read_manifest, write_manifest
from scratchlm.data.pinning import check_manifest, pin
from scratchlm.run.errors import UserError
from scratchlm.run.params import check_params
from tests.corpora import content

NAMES = {
    "messages": "sample-messages", "instructions": "sample-instructions", "preferences": "sample-preferences",
    "vocabulary": "gpt2-nano",
}  # fmt: skip


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in", "deep", "_part").mkdir(parents=True)
    for name in ("in/b.txt", "in/deep/a.txt.gz", "in/a.jsonl", "in/.hidden.txt", "in/_SUCCESS", "in/deep/_part/c.txt"):
        Path(name).write_bytes(content([name], name.partition(".")[2]))


def test_files_of_folders_and_patterns_are_pinned_once_in_order_and_read_back(tmp_path: Path) -> None:
    files = pin(["in/*.txt", "in", f"{tmp_path}/in/deep"], "body")
    assert [file.address for file in files] == ["in/a.jsonl", "in/b.txt", "in/deep/a.txt.gz"]
    for file in files:
        body = Path(file.address).read_bytes()
        assert (file.size_bytes, file.sha256) == (len(body), hashlib.sha256(body).hexdigest())
    Path("data/mine").mkdir(parents=True)
    Path("data/mine/.corpus.jsonl.1234.tmp").write_text("{")  # of a killed process
    write_manifest(Path("data/mine/corpus.jsonl"), files)
    assert [path.name for path in Path("data/mine").iterdir()] == ["corpus.jsonl"]
    assert read_manifest(Path("data/mine/corpus.jsonl")) == files
    lines = Path("data/mine/corpus.jsonl").read_text().splitlines()
    assert lines[1] == f'{{"address": "in/b.txt", "size_bytes": 8, "sha256": "{files[1].sha256}", "format": "txt"}}'
    assert pin(["in", "data/mine"], "body", "data/mine/corpus.jsonl") == files  # not the manifest itself
    Path("in/b.txt").write_text("changed")
    Path("in/c.txt").write_text("new")
    assert changes(files, pin(["in/*"], "body")) == "1 added, 1 removed, 1 changed"
    copy_manifest(Path("data/mine/corpus.jsonl"), Path("raw"))
    assert read_manifest(Path("raw/manifest.jsonl")) == files


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("in/*.csv", "in/*.csv: there is no file; correct the address or the pattern"),
        ("in/_SUCCESS", "in/_SUCCESS is no file of a corpus, whose name ends in .txt, .txt.gz, .txt.zst, .jsonl, "),
        ("none/a.txt", "none/a.txt: there is no file; correct"),
        ("https://me:secret@example.org/a.txt", "https://***@example.org/a.txt has a name or a password in it, which"),
        (
            "https://127.0.0.1:1/a.txt",
            "https://127.0.0.1:1/a.txt: connection refused, 4 attempts; correct the address, or",
        ),
        ("gs://texts/a.txt", "gs://texts/a.txt: Please install gcsfs to access Google Storage; install the package"),
        ("in/a.jsonl", "in/a.jsonl is the manifest itself; name the files of the corpus, or another --output"),
        ("s3://", "s3://: Cannot traverse all of S3; correct the address"),
        ("http://[::1/a.txt", "http://[::1/a.txt: Invalid IPv6 URL; correct the address"),
        (
            "ftp://me:secret@h/a.txt",
            "ftp://***@h/a.txt begins with ftp://, but must be a local path, s3://, gs://, http:",
        ),
        ("github://a.txt", "github://a.txt begins with github://, but must be a local path, s3://, gs://, http"),
    ],
)
def test_an_address_that_leads_to_no_text_is_named(
    monkeypatch: pytest.MonkeyPatch, address: str, sentence: str
) -> None:
    monkeypatch.setattr(web, "WAIT_SECONDS", 0)
    with pytest.raises(UserError, match=re.escape(sentence)):
        pin([address], "body", "in/a.jsonl")


def test_names_with_signs_of_patterns_are_names_and_those_that_are_no_text_are_refused() -> None:
    for folder in ("in [v1]", "in*", "in?", "a::b"):
        Path(folder).mkdir()
        Path(folder, "a.txt").write_text("a")
        assert [file.address for file in pin([folder], "body")] == [f"{folder}/a.txt"]
    Path("in", os.fsdecode(b"\xff.txt")).write_text("a")
    with pytest.raises(UserError, match=r"\\udcff.txt' is a name that is not UTF-8; rename the file"):
        pin(["in"], "body")


def test_a_file_that_cannot_be_read_ends_the_reading_of_larger_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    began = Event()

    class Endless(Reader):
        """Of the first file: it has no end, and the other one fails when its reading has begun."""

        def readinto(self, buffer: Any) -> int:
            if self.address != "in/a.jsonl":
                assert began.wait(60)
                raise UserError("no more")
            self._advance(1)
            began.set()
            return 1

    monkeypatch.setattr("scratchlm.data.pinning.Reader", Endless)
    with pytest.raises(UserError, match="no more"):
        pin(["in"], "body")


GOOD = f'{{"address": "in/b.txt", "size_bytes": 8, "sha256": "{"0" * 64}", "format": "txt"}}\n'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "c.jsonl: there is no file in it; write the manifest again with scratchlm sources pin"),
        ("\n" + GOOD + "\n{", "c.jsonl: line 4: the object: invalid json"),
        (GOOD.replace("8", '"8"'), "c.jsonl: line 1: size_bytes: input should be a valid integer; write"),
        (GOOD.replace(': "txt"', ': "csv"'), "c.jsonl: line 1: format: input should be 'txt', 'txt.gz'"),
        (GOOD.replace("0000", "x", 1), "c.jsonl: line 1: sha256: string should match pattern"),
        (GOOD.replace('"format"', '"kind"'), "c.jsonl: line 1: format: field required"),
        (GOOD + GOOD, "c.jsonl: line 2 names in/b.txt again"),
        (GOOD.replace("b.txt", "b.jsonl").replace(': "txt"', ': "jsonl"'), "c.jsonl: line 1: a jsonl needs a column"),
        (GOOD.replace('"txt"}', '"txt", "column": "a"}'), "c.jsonl: line 1: a txt has no column"),
        (GOOD.replace("in/b.txt", "gs://b/c.txt"), "gs://b/c.txt: Please install gcsfs"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused_before_any_work(text: str, sentence: str) -> None:
    Path("c.jsonl").write_text(text)
    with pytest.raises(UserError, match=re.escape(sentence)):
        check_manifest(Path("c.jsonl"), "documents")


def test_files_that_are_read_independently_have_no_split_by_position() -> None:
    write_manifest(Path("data/mine/c.jsonl"), pin(["in"], "body"))
    with pytest.raises(UserError, match=r"^tokenize.corpus.split is position, but sources.corpus is a manifest, whose"):
        check_manifest(Path("data/mine/c.jsonl"), "position")
    check_manifest(Path("data/mine/c.jsonl"), "documents")


def test_a_missing_manifest_is_named() -> None:
    with pytest.raises(UserError, match="^data/mine/none.jsonl: no such file; check the path$"):
        read_manifest(Path("data/mine/none.jsonl"))


def test_a_source_may_be_a_manifest_whose_sizes_bound_the_tokens() -> None:
    write_manifest(Path("data/mine/c.jsonl"), pin(["in"], "body"))
    entry = {"corpus": {"manifest": "data/mine/c.jsonl"}}
    sources = check_params(NAMES | entry, SourcesParams, source="params.yaml")
    assert sources.corpus_name == "data/mine/c.jsonl" and not sources.own
    sizes = [Path(name).stat().st_size for name in ("in/a.jsonl", "in/b.txt", "in/deep/a.txt.gz")]
    assert sources.corpus_bytes == (sum(sizes), sizes[0] + sizes[1] + 5 * sizes[2])


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"manifest": "c.jsonl"}, "corpus.manifest is 'c.jsonl': must be a path below data/mine that ends in .jsonl"),
        ({"manifest": "data/mine/../c.jsonl"}, "must be a path below data/mine that ends in .jsonl; write it with"),
        ({"manifest": "data/mine/c.jsonl", "path": "x"}, "corpus unknown key path; allowed are manifest"),
        ({"paht": "x"}, "corpus unknown key paht (did you mean path?); allowed are path, sha256, columns"),
    ],
)
def test_an_entry_that_is_no_manifest_is_refused_in_a_sentence(entry: dict[str, str], sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        check_params(NAMES | {"corpus": entry}, SourcesParams, source="params.yaml")
