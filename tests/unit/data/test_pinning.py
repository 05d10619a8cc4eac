"""A corpus is pinned: from servers that fail, after an interruption, and from a mirror."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from scratchlm.data import pinning, web
from scratchlm.data.addresses import files_at
from scratchlm.data.catalogue import PUBLIC
from scratchlm.data.documents import documents
from scratchlm.data.manifest import FORMATS, format_of
from scratchlm.data.pinning import pin
from scratchlm.data.sources import at_nearest
from scratchlm.run.errors import UserError
from tests.corpora import content
from tests.web import Server, web_server


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(web, "WAIT_SECONDS", 0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with web_server() as server:
        yield server


def test_every_format_is_read_from_a_server_that_cuts_connections_as_from_the_disk(server: Server) -> None:
    texts = [f"Document {n}: " + "word " * n for n in range(300)]
    for kind in FORMATS:
        server.files["/cdn/a"] = content(texts, kind)
        server.bodies[f"/a.{kind}"], server.headers = (lambda: iter([])), {"Location": "/cdn/a"}
        n_bytes = len(server.files["/cdn/a"])
        server.cuts = [n_bytes, n_bytes // 2, n_bytes, n_bytes // 3, 0]  # for the size, the hash, and the documents
        (file,) = pin([server.url(f"a.{kind}")], "body")
        assert list(documents(file, lambda _: None)) == texts
        assert not server.cuts


def test_a_file_in_chunks_is_read_once_and_resumed_after_a_cut(server: Server) -> None:
    texts = [f"Document {n}." for n in range(300)]
    body = server.files["/a.jsonl"] = content(texts, "jsonl")
    server.lengths, server.chunked = False, True
    server.cuts = [len(body), len(body) // 2]  # of the request for the size, and of the one for the hash
    (file,) = pin([server.url("a.jsonl")], "body")
    assert (file.size_bytes, file.sha256) == (len(body), hashlib.sha256(body).hexdigest())
    assert [asked.get("Range") for asked in server.asked] == [None, None, f"bytes={len(body) // 2}-"]
    assert list(documents(file, lambda _: None)) == texts


@pytest.mark.parametrize("kind", ["txt", "jsonl", "txt.gz", "jsonl.zst", "parquet"])
def test_a_file_that_a_server_without_sizes_cuts_short_is_not_pinned(server: Server, kind: str) -> None:
    body = server.files[f"/a.{kind}"] = content([f"Document {n}." for n in range(300)], kind)
    server.lengths, n_bytes, half = False, len(body), len(body) // 2
    (file,) = pin([server.url(f"a.{kind}")], "body")
    assert (file.size_bytes, file.sha256) == (n_bytes, hashlib.sha256(body).hexdigest())
    faults = {(half, n_bytes): f"has {n_bytes:,} bytes with sha256"}  # of the hash, and of the second read
    if kind != "txt":
        faults[half, half] = "line [0-9]+: " if kind == "jsonl" else "cannot be read as"
    for cuts, fault in faults.items():
        server.cuts = [n_bytes, *cuts]
        with pytest.raises(
            UserError, match=rf"^a server that states neither size nor end may have cut .* http.*/a.{kind}:? {fault}"
        ):
            pin([server.url(f"a.{kind}")], "body")


def test_after_an_interruption_finished_files_of_the_same_size_are_not_read_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinning, "FILES_AT_ONCE", 1)
    server.files = {f"/{name}.jsonl": content([name * 9], "jsonl") for name in "abc"}
    addresses, kept = [server.url(name[1:]) for name in server.files], Path(".scratchlm/pins/corpus.jsonl")
    server.cuts = [99, 99, 99, 99, 99, *[0] * web.ATTEMPTS]  # their sizes, a, b, and then nothing of c
    with pytest.raises(UserError, match="/c.jsonl: connection lost, 4 attempts; correct the address, or run this ag"):
        pin(addresses, "boddy", "", kept)

    with kept.open("a") as file:  # another `pin` at the same time, and a full disk
        file.write(kept.read_text() + '{"address": "htt')
    server.files["/b.jsonl"] = content(["longer than before"], "jsonl")
    server.requests.clear()
    files = pin(addresses, "body", "", kept)
    assert server.requests == [*server.files, "/b.jsonl", "/c.jsonl"]  # the sizes of all, then what is missing
    assert files == pin(addresses, "body")  # without what was kept


def test_files_of_public_corpora_are_read_from_the_mirror_under_their_public_addresses(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = PUBLIC["tinystories"]
    for file in public.files:
        path = tmp_path / "mirror" / public.name / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content([f"A story of {file.name}."], "parquet"))
        server.files[f"/m/{public.name}/{file.name}"] = path.read_bytes()
    addresses = [file.addresses[0] for file in public.files]
    for mirror in (str(tmp_path / "mirror"), server.url("m")):
        monkeypatch.setenv("SCRATCHLM_MIRROR", mirror)
        files = pin(addresses, "body")
        assert [file.address for file in files] == addresses
        texts = [text for file in files for text in documents(file, lambda _: None)]
        assert texts == [f"A story of {file.name}." for file in public.files]
    paths = [f"/m/{public.name}/{file.name}" for file in public.files]
    assert sorted(server.requests) == sorted(3 * paths)  # for its size, its hash and its documents


def test_a_file_that_the_mirror_lacks_is_read_at_its_public_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, asked = PUBLIC["tinystories"].files[0].addresses[0], []

    def listed(near: str) -> dict[str, int]:
        asked.append(near)
        return {} if near == address else files_at(near)

    monkeypatch.setenv("SCRATCHLM_MIRROR", str(tmp_path))
    copy = tmp_path / "tinystories" / PUBLIC["tinystories"].files[0].name
    assert at_nearest(address, listed) == {} and asked == [str(copy), address]
    asked.clear()
    copy.parent.mkdir()
    copy.write_bytes(b"text")
    assert at_nearest(address, listed) == {str(copy): 4} and asked == [str(copy)]


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_corpus_has_addresses_of_one_commit_that_can_be_pinned(name: str) -> None:
    addresses = [address for file in PUBLIC[name].files for address in file.addresses]
    assert all(format_of(address) == "parquet" for address in addresses)
    (folder,) = {address.rpartition("/")[0] for address in addresses}
    assert [part for part in folder.split("/") if len(part) == 40]  # a commit, as `main` may change
