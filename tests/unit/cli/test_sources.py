"""The sources of data on the command line."""

import json
import shutil
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from scratchlm.data.catalogue import CATALOGUE, SourcesParams
from scratchlm.data.sources import own_paths
from scratchlm.run.params import check_params, load_yaml
from tests.clones import REPOSITORY
from tests.commands import scratchlm


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(REPOSITORY / "profiles" / "sample.yaml", tmp_path / "params.yaml")
    (tmp_path / "data" / "mine").mkdir(parents=True)
    (tmp_path / "data" / "mine" / "x.csv").write_text("review,stars\nGood,5\nBad,1\nBad again,1\n")
    return tmp_path


def sources_of(project: Path) -> SourcesParams:
    return check_params(load_yaml(project / "params.yaml")["sources"], SourcesParams, source="params.yaml")


def test_the_list_has_every_source_once_and_marks_those_in_use(project: Path) -> None:
    rows = {line.split()[1]: line.split() for line in scratchlm(project, "sources").stdout.splitlines()[2:-2]}
    assert rows.keys() == CATALOGUE.keys()
    used = {name for name, row in rows.items() if "yes" in row}
    assert used == {f"sample-{key}" for key in ("stories", "messages", "instructions", "preferences")} | {"gpt2-nano"}
    assert rows["sms-spam"] == ["messages", "sms-spam", "0.48", "CC", "BY", "4.0"]
    assert "over" in rows["gpt2-774M"]  # the size of one of its files is not known


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
    assert "data/mine/x.csv" in scratchlm(project, "sources").stdout
    done = scratchlm(project, *words, "--column", "label=stars", "--licence", "ours")
    assert done.stdout.endswith("params.yaml has this entry already\n")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("params.yaml", "--as", "corpus"), "params.yaml is not below data/mine, whose content DVC follows; copy it"),
        (("data/mine/none", "--as", "corpus"), "there is no file data/mine/none; put one there"),
        (("data/mine/x.csv", "--as", "corpus", "--column", "text"), "--column is 'text', but must be OURS=THEIRS"),
        (("data/mine/x.csv", "--as", "corpus", "--column", "a=b"), "corpus.columns has 'a', but only text can"),
        (("data/mine/b.txt", "--as", "corpus"), "b.txt: line 1 is not UTF-8 text"),
        (("data/mine/b.txt", "--as", "instructions"), "b.txt: the name must end in .csv, .tsv"),
        (("s3://x/y", "--as", "corpus"), "path is an address, which must begin with https://"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_changes_nothing(project: Path, words: tuple[str, ...], sentence: str) -> None:
    (project / "data" / "mine" / "b.txt").write_bytes(b"\xff\xfe")
    before = (project / "params.yaml").read_bytes()
    done = scratchlm(project, "sources", "add", *words)
    assert done.returncode == 1 and sentence in done.stderr
    assert (project / "params.yaml").read_bytes() == before


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
