import hashlib
import os
import random
import re
import socket
import struct
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import requests

from scratchlm.data import transfer, web
from scratchlm.data.catalogue import CATALOGUE, File, Source
from scratchlm.data.own_data import OwnSource
from scratchlm.data.sources import addresses_to_try, fetch, own_paths, place
from scratchlm.data.transfer import Part
from scratchlm.run.errors import UserError
from scratchlm.run.files import sha256_of
from tests.web import Server, web_server

REPOSITORY = Path(__file__).resolve().parents[3]
CONTENT = random.Random(1).randbytes(300_000)
OTHER = random.Random(2).randbytes(300_000)
CUT = 1000  # the first bytes count, too


@pytest.fixture
def server() -> Iterator[Server]:
    with web_server() as server:
        yield server


@pytest.fixture(autouse=True)
def no_waiting_and_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "WAIT_SECONDS", 0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def a_source(*urls: str, content: bytes = CONTENT, **changes: object) -> tuple[Source, File]:
    digest = hashlib.sha256(content).hexdigest()
    file = replace(File("book.txt", digest, len(content), urls), **changes)
    return Source("books", "A book", "none", "nobody", (file,)), file


def a_zip(name: str, content: bytes, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def left_in(store: Path) -> list[str]:
    return sorted(path.name for path in store.rglob("*") if path.is_file())


def failure_of(source: Source, file: File, store: Path, mirror: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        fetch(source, file, store, mirror)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Whole transfers


def test_a_fresh_fetch_puts_the_file_into_the_store(server: Server, tmp_path: Path) -> None:
    server.files["/a"] = CONTENT
    source, file = a_source(server.url("a"))
    stored = fetch(source, file, tmp_path, None)
    assert stored == tmp_path / "books" / "book.txt"
    assert stored.read_bytes() == CONTENT
    assert left_in(tmp_path) == ["book.txt"]


def test_ones_own_data_at_an_address_are_fetched_once_for_each_content(server: Server, tmp_path: Path) -> None:
    content = CONTENT * 60  # more than is taken of a file without a hash
    server.files["/books/novel.txt"] = content
    address = server.url("books/novel.txt")
    for _ in range(2):
        found = own_paths("corpus", OwnSource(path=address, sha256=hashlib.sha256(content).hexdigest()), tmp_path, None)
        assert [(path.name, path.read_bytes()) for path in found] == [("novel.txt", content)]
    assert len(server.requests) == 1
    with pytest.raises(UserError, match="cannot get own-corpus/novel.txt: tried http://127.0.0.1"):
        own_paths("corpus", OwnSource(path=address, sha256=hashlib.sha256(OTHER).hexdigest()), tmp_path, None)


def test_a_second_fetch_makes_no_request(server: Server, tmp_path: Path) -> None:
    server.files["/a"] = CONTENT
    source, file = a_source(server.url("a"))
    fetch(source, file, tmp_path, None)
    fetch(source, file, tmp_path, None)
    assert server.requests == ["/a"]


def test_a_corrupted_file_in_the_store_is_fetched_again(server: Server, tmp_path: Path) -> None:
    server.files["/a"] = CONTENT
    source, file = a_source(server.url("a"))
    stored = fetch(source, file, tmp_path, None)
    stored.write_bytes(OTHER)
    assert fetch(source, file, tmp_path, None).read_bytes() == CONTENT


def test_the_transfer_is_asked_for_uncompressed(server: Server, tmp_path: Path) -> None:
    server.files["/a"] = CONTENT
    fetch(*a_source(server.url("a")), tmp_path, None)
    assert server.asked[0]["Accept-Encoding"] == "identity"


# Broken transfers


def test_a_broken_transfer_is_resumed_and_only_the_missing_bytes_travel(server: Server, tmp_path: Path) -> None:
    server.files["/a"], server.cuts = CONTENT, [CUT]
    stored = fetch(*a_source(server.url("a")), tmp_path, None)
    assert stored.read_bytes() == CONTENT
    assert server.asked[1]["Range"] == f"bytes={CUT}-"
    assert sum(server.sent_bytes) == len(CONTENT)


def test_what_an_interrupted_fetch_left_is_resumed_by_the_next_one(server: Server, tmp_path: Path) -> None:
    server.files["/a"], server.cuts = CONTENT, [CUT, 0, 0, 0]
    source, file = a_source(server.url("a"))
    failure_of(source, file, tmp_path)
    assert left_in(tmp_path) == ["book.txt.part", "book.txt.part.etag"]
    assert fetch(source, file, tmp_path, None).read_bytes() == CONTENT
    assert server.sent_bytes[-1] == len(CONTENT) - CUT
    assert left_in(tmp_path) == ["book.txt"]


def test_the_next_address_continues_where_the_broken_one_stopped(server: Server, tmp_path: Path) -> None:
    server.files |= {"/a": CONTENT, "/b": CONTENT}
    server.cuts = [CUT, 0, 0, 0]
    fetch(*a_source(server.url("a"), server.url("b")), tmp_path, None)
    assert server.requests[-1] == "/b"
    assert server.sent_bytes[-1] == len(CONTENT) - CUT


def test_a_server_that_ignores_range_sends_all_again(server: Server, tmp_path: Path) -> None:
    server.files["/a"], server.cuts, server.ranges = CONTENT, [CUT], False
    assert fetch(*a_source(server.url("a")), tmp_path, None).read_bytes() == CONTENT
    assert server.sent_bytes == [CUT, len(CONTENT)]


def test_a_server_that_answers_another_range_sends_all_again(server: Server, tmp_path: Path) -> None:
    server.files["/a"], server.etag, server.cuts = CONTENT, '"one"', [CUT]
    server.wrong_range = True
    file = a_source(server.url("a"), sha256=None, size_bytes=None)
    assert fetch(*file, tmp_path, None).read_bytes() == CONTENT
    assert "Range" not in server.asked[-1]


def test_a_stale_part_is_given_up_after_its_hash_and_fetched_afresh(server: Server, tmp_path: Path) -> None:
    server.files["/a"] = CONTENT
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "book.txt.part").write_bytes(OTHER[:70_000])
    assert fetch(*a_source(server.url("a")), tmp_path, None).read_bytes() == CONTENT
    assert ["Range" in asked for asked in server.asked] == [True, False]


def test_a_part_longer_than_the_file_is_started_again(server: Server, tmp_path: Path) -> None:
    server.files["/a"] = CONTENT
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "book.txt.part").write_bytes(CONTENT + b"more")
    assert fetch(*a_source(server.url("a")), tmp_path, None).read_bytes() == CONTENT
    assert ["Range" in asked for asked in server.asked] == [True, False]


def test_a_complete_part_needs_no_request(server: Server, tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "book.txt.part").write_bytes(CONTENT)
    assert fetch(*a_source(server.url("a")), tmp_path, None).read_bytes() == CONTENT
    assert server.requests == []


def test_a_file_that_changed_at_its_address_is_not_patched_together(server: Server, tmp_path: Path) -> None:
    server.files["/a"], server.etag, server.cuts = OTHER, '"old"', [CUT, 0, 0, 0]
    source, file = a_source(server.url("a"))
    failure_of(source, file, tmp_path)
    server.files["/a"], server.etag = CONTENT, '"new"'
    assert fetch(source, file, tmp_path, None).read_bytes() == CONTENT
    assert server.asked[-1]["If-Range"] == '"old"'
    assert server.sent_bytes[-1] == len(CONTENT)


def test_without_a_hash_a_part_is_resumed_if_its_etag_vouches_for_it(server: Server, tmp_path: Path) -> None:
    server.files["/a"], server.etag, server.cuts = CONTENT, '"one"', [CUT]
    stored = fetch(*a_source(server.url("a"), sha256=None), tmp_path, None)
    assert stored.read_bytes() == CONTENT
    assert sum(server.sent_bytes) == len(CONTENT)


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_a_hash_and_a_strong_etag_nothing_is_resumed(server: Server, tmp_path: Path, etag: str) -> None:
    server.files["/a"], server.etag, server.cuts = CONTENT, etag, [CUT]
    stored = fetch(*a_source(server.url("a"), sha256=None), tmp_path, None)
    assert stored.read_bytes() == CONTENT
    assert server.sent_bytes == [CUT, len(CONTENT)]


def test_without_a_hash_bytes_of_two_addresses_are_not_mixed(server: Server, tmp_path: Path) -> None:
    server.files |= {"/a": OTHER, "/b": CONTENT}
    server.etag, server.cuts = '"one"', [CUT, 0, 0, 0]
    file = a_source(server.url("a"), server.url("b"), sha256=None)
    assert fetch(*file, tmp_path, None).read_bytes() == CONTENT


# Retries


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.files["/a"], server.statuses = CONTENT, [503, 429]
    assert fetch(*a_source(server.url("a")), tmp_path, None).read_bytes() == CONTENT
    assert len(server.requests) == 3


def test_retries_are_bounded(server: Server, tmp_path: Path) -> None:
    server.statuses = [503] * 100
    message = failure_of(*a_source(server.url("a")), tmp_path)
    assert len(server.requests) == web.ATTEMPTS
    assert f"(HTTP 503, {web.ATTEMPTS} attempts)" in message


def test_the_waits_double(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(web, "WAIT_SECONDS", 1.5)
    monkeypatch.setattr(web.time, "sleep", waits.append)
    server.files["/a"], server.statuses = CONTENT, [500, 502, 504]
    fetch(*a_source(server.url("a")), tmp_path, None)
    assert waits == [1.5, 3, 6]


@pytest.mark.parametrize(
    ("asked", "wait"),
    [("7", 7), ("0", 1.5), ("soon", 1.5), ("", 1.5), ("Wed, 01 Jan 2020 00:00:00 GMT", 1.5), ("-3", 1.5)],
)
def test_a_server_says_how_long_to_wait(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, wait: float
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(web, "WAIT_SECONDS", 1.5)
    monkeypatch.setattr(web.time, "sleep", waits.append)
    server.files["/a"], server.statuses, server.headers = CONTENT, [429], {"Retry-After": asked}
    fetch(*a_source(server.url("a")), tmp_path, None)
    assert waits == [wait]


@pytest.mark.parametrize("asked", ["3600", "9" * 400, "Fri, 01 Jan 2100 00:00:00 GMT"])
def test_a_server_that_wants_too_long_a_wait_is_left(server: Server, tmp_path: Path, asked: str) -> None:
    server.statuses, server.headers = [503] * 9, {"Retry-After": asked}
    assert "(HTTP 503, to be asked again in " in failure_of(*a_source(server.url("a")), tmp_path)
    assert len(server.requests) == 1


def test_a_server_that_drips_is_left_and_what_came_is_kept(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drip() -> Iterator[bytes]:
        for n in range(1000):
            time.sleep(0.01)
            yield CONTENT[n : n + 1]

    monkeypatch.setattr(web, "RATE_SECONDS", 0.1)
    monkeypatch.setattr(web, "ATTEMPTS", 1)
    server.bodies["/slow"] = drip
    assert "slower than 1000 bytes a second" in failure_of(*a_source(server.url("slow")), tmp_path)
    kept = (tmp_path / "books" / "book.txt.part").read_bytes()
    assert 1 <= len(kept) < 1000
    assert CONTENT.startswith(kept)


# Redirects


def test_the_body_of_a_redirect_is_not_read(server: Server, tmp_path: Path) -> None:
    sent = []

    def endless() -> Iterator[bytes]:
        for _ in range(1000):
            sent.append(1_000_000)
            yield bytes(1_000_000)

    server.bodies["/a"], server.files["/b"], server.headers = endless, CONTENT, {"Location": "/b"}
    assert fetch(*a_source(server.url("a")), tmp_path, None).read_bytes() == CONTENT
    assert sum(sent) < 50_000_000


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("/a", "more than 10 redirects"),
        ("file:///etc/passwd", "redirected to file:///etc/passwd, which is not an http(s) URL"),
        ("http://[", "not valid: Invalid IPv6 URL"),
        ("http://a..b/", "Failed to parse: 'a..b'"),
        ("http://127.0.0.1:99999/", "Failed to parse: http://127.0.0.1:99999/"),
    ],
)
def test_a_redirect_that_leads_nowhere_is_one_sentence(
    server: Server, tmp_path: Path, location: str, reason: str
) -> None:
    server.bodies["/a"], server.headers = (lambda: iter([])), {"Location": location}
    assert reason in failure_of(*a_source(server.url("a")), tmp_path)


def test_a_secure_address_is_not_left_for_a_plain_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def redirect(_: requests.Session, url: str, **options: object) -> requests.Response:
        response = requests.Response()
        response.status_code, response.raw, response.headers["Location"] = 301, BytesIO(), "http://127.0.0.1/x"
        return response

    monkeypatch.setattr(requests.Session, "get", redirect)
    assert "(redirected to plain http)" in failure_of(*a_source("https://127.0.0.1/x"), tmp_path)


# Addresses


@pytest.mark.parametrize(
    "mirror",
    [
        "http://[",
        "http://a..b/",
        "~nosuchuser/x",
        "http://℀.com",
        "http://" + "a" * 70 + ".b",
        "a\0b",
        "\udcff",
        "HTTP://[",
    ],
)
def test_an_address_that_cannot_be_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: str
) -> None:
    monkeypatch.setattr(web, "ATTEMPTS", 1)
    assert failure_of(*a_source("sample/none", content=b""), tmp_path).startswith("cannot get books/book.txt: tried ")
    source, file = a_source("http://127.0.0.1:9/x")
    assert failure_of(source, file, tmp_path, mirror).startswith("cannot get books/book.txt: tried ")


@pytest.mark.parametrize(
    "proxy", ["http://a..b:3", "http://127.0.0.1:9", "nonsense://x", "http://[", "http://u:S3CRET@127.0.0.1:9"]
)
def test_a_proxy_that_does_not_work_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")
    message = failure_of(*a_source("http://192.0.2.1/x"), tmp_path)
    assert "S3CRET" not in message
    if "127.0.0.1" in proxy:
        assert "(the proxy that the environment names: connection refused, 4 attempts)" in message


def test_a_file_of_passwords_that_cannot_be_read_is_one_sentence(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_bytes(b"\xff\xfe")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    assert "can't decode" in failure_of(*a_source(server.url("a")), tmp_path)


@pytest.mark.parametrize(
    ("mirror", "shown"),
    [
        ("http://me:S3CRET@{at}/m", "http://***@{at}/m/books/book.txt"),
        ("http://{at}/m?token=S3CRET&x=1", "http://{at}/m?***"),
        ("s3://me:S3CRET@bucket", "SCRATCHLM_MIRROR is 's3://***@bucket'"),
    ],
)
def test_no_sentence_and_no_file_holds_a_password(server: Server, tmp_path: Path, mirror: str, shown: str) -> None:
    at = f"127.0.0.1:{server.server_port}"
    server.files["/m/books/book.txt"], server.cuts = CONTENT, [CUT, 0, 0, 0]
    source, file = a_source("http://127.0.0.1:9/x")
    message = failure_of(source, file, tmp_path, mirror.format(at=at))
    assert "S3CRET" not in message
    assert shown.format(at=at) in message
    assert b"S3CRET" not in b"".join(path.read_bytes() for path in tmp_path.rglob("*.etag"))


def test_a_pipe_and_a_device_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m" / "books").mkdir(parents=True)
    os.mkfifo(tmp_path / "m" / "books" / "book.txt")
    source, file = a_source("/dev/zero")
    message = failure_of(source, file, tmp_path / "store", str(tmp_path / "m"))
    assert message.count("(not a regular file)") == 1  # a file of the repository is not looked for in a mirror
    source, file = a_source("http://[")
    message = failure_of(source, file, tmp_path / "store", str(tmp_path / "m"))
    assert "book.txt (not a regular file)" in message


def test_the_side_that_cannot_be_read_is_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(size: int) -> bytes:
        raise OSError(5, "Input/output error")

    with pytest.raises(web.Refused, match="^input/output error$"):
        web.reading()(broken)(1)


# Files without a hash


INDEX = REPOSITORY / "data" / "sample" / "gpt2-nano" / "model.ckpt.index"


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("hparams.json", b"<html>sign in</html>", b'{"n_vocab": 1}'),
        ("hparams.json", b"[]", b"{}"),
        ("hparams.json", b"[" * 100_000, b"{}"),
        ("model.ckpt.index", b"{}", INDEX.read_bytes()),
        ("model.ckpt.index", INDEX.read_bytes()[:-1], INDEX.read_bytes()),
        ("weights", b"\n <!DOCTYPE html>", b"x"),
    ],
)
def test_a_page_is_not_kept_for_a_file_and_is_fetched_again(
    server: Server, tmp_path: Path, name: str, wrong: bytes, right: bytes
) -> None:
    source, file = a_source(server.url("a"), name=name, sha256=None, size_bytes=None)
    server.files["/a"] = wrong
    assert "(not " in (message := failure_of(source, file, tmp_path)) or "(a web page)" in message
    assert left_in(tmp_path) == []
    (tmp_path / "books" / name).write_bytes(wrong)  # as an older version kept it
    server.files["/a"] = right
    assert fetch(source, file, tmp_path, None).read_bytes() == right


def test_a_page_that_is_not_there_is_asked_for_once(server: Server, tmp_path: Path) -> None:
    failure_of(*a_source(server.url("a")), tmp_path)
    assert server.requests == ["/a"]


def test_a_hash_that_is_wrong_from_the_start_is_fetched_once(server: Server, tmp_path: Path) -> None:
    server.files["/a"] = OTHER
    failure_of(*a_source(server.url("a")), tmp_path)
    assert server.requests == ["/a"]


def test_a_broken_tls_setup_is_no_reason_to_try_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "nothing.pem"))
    message = failure_of(*a_source(server.url("a").replace("http:", "https:")), tmp_path)
    assert "invalid path" in message
    assert "attempts" not in message


# Wrong content


def test_wrong_content_sends_to_the_next_address(server: Server, tmp_path: Path) -> None:
    server.files |= {"/a": OTHER, "/b": CONTENT}
    stored = fetch(*a_source(server.url("a"), server.url("b")), tmp_path, None)
    assert stored.read_bytes() == CONTENT
    assert server.requests == ["/a", "/b"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (OTHER, f"sha256 {hashlib.sha256(OTHER).hexdigest()}"),
        (CONTENT + b"more", f"more than {len(CONTENT)} bytes"),
        (CONTENT[:-1], f"only {len(CONTENT) - 1} bytes"),
    ],
)
def test_wrong_content_is_named_and_leaves_nothing(server: Server, tmp_path: Path, body: bytes, words: str) -> None:
    server.files["/a"] = body
    assert words in failure_of(*a_source(server.url("a")), tmp_path)
    assert left_in(tmp_path) == []


def test_an_unpinned_file_is_refused_beyond_the_limit(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "UNPINNED_LIMIT_BYTES", 1000)
    server.files["/a"] = CONTENT
    file = a_source(server.url("a"), sha256=None, size_bytes=None)
    assert "more than 1000 bytes" in failure_of(*file, tmp_path)
    assert left_in(tmp_path) == []


def test_no_more_is_written_than_one_chunk_too_many(tmp_path: Path) -> None:
    _, file = a_source(size_bytes=15)
    chunks = iter([bytes(10)] * 9)
    Part(tmp_path, file).append(chunks)
    assert len(list(chunks)) == 7


def test_when_all_addresses_fail_one_sentence_says_what_where_and_what_to_do(
    server: Server, tmp_path: Path, closed_port: int
) -> None:
    server.files["/b"] = OTHER
    nowhere = f"http://127.0.0.1:{closed_port}/c"
    source, file = a_source(server.url("a"), server.url("b"), nowhere)
    mirror = str(tmp_path / "mirror")
    message = failure_of(source, file, tmp_path / "store", mirror)
    assert message == (
        f"cannot get books/book.txt: tried {mirror}/books/book.txt (no such file or directory),"
        f" {server.url('a')} (HTTP 404),"
        f" {server.url('b')} (sha256 {hashlib.sha256(OTHER).hexdigest()}),"
        f" {nowhere} (connection refused, 4 attempts);"
        f" expected a file of {len(CONTENT)} bytes with sha256 {file.sha256};"
        " put it at <mirror>/books/book.txt and set SCRATCHLM_MIRROR to <mirror>,"
        " a directory or an http(s) URL"
    )
    assert left_in(tmp_path) == []


# Mirrors and paths


def test_a_mirror_directory_is_asked_first(server: Server, tmp_path: Path) -> None:
    (tmp_path / "mirror" / "books").mkdir(parents=True)
    (tmp_path / "mirror" / "books" / "book.txt").write_bytes(CONTENT)
    source, file = a_source(server.url("a"))
    fetched = fetch(source, file, tmp_path / "store", str(tmp_path / "mirror"))
    assert fetched.read_bytes() == CONTENT
    assert server.requests == []


def test_wrong_content_in_a_mirror_sends_to_the_public_address(server: Server, tmp_path: Path) -> None:
    (tmp_path / "mirror" / "books").mkdir(parents=True)
    (tmp_path / "mirror" / "books" / "book.txt").write_bytes(OTHER)
    server.files["/a"] = CONTENT
    source, file = a_source(server.url("a"))
    fetched = fetch(source, file, tmp_path / "store", str(tmp_path / "mirror"))
    assert fetched.read_bytes() == CONTENT


def test_a_mirror_url_is_asked_first(server: Server, tmp_path: Path) -> None:
    server.files["/mirror/books/book.txt"] = CONTENT
    source, file = a_source(server.url("a"))
    fetch(source, file, tmp_path, server.url("mirror/"))
    assert server.requests == ["/mirror/books/book.txt"]


def test_a_mirror_holds_the_archive_under_its_own_name() -> None:
    source = CATALOGUE["sms-spam"]
    file = source.files[0]
    assert addresses_to_try(source, file, "m")[0] == "m/sms-spam/sms+spam+collection.zip"
    assert addresses_to_try(source, file, "http://h/m")[0] == "http://h/m/sms-spam/sms%2Bspam%2Bcollection.zip"
    assert addresses_to_try(source, file, "m")[1:] == list(file.addresses)


@pytest.mark.parametrize("mirror", [None, ""])
def test_without_a_mirror_only_the_public_addresses_are_tried(mirror: str | None) -> None:
    source, file = a_source("https://a/x", "https://b/x")
    assert addresses_to_try(source, file, mirror) == ["https://a/x", "https://b/x"]


def test_a_mirror_of_another_kind_is_refused() -> None:
    with pytest.raises(UserError, match=r"SCRATCHLM_MIRROR is 's3://bucket'.*directory or"):
        addresses_to_try(*a_source("https://a/x"), "s3://bucket")


def test_a_file_of_the_repository_needs_neither_mirror_nor_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sample").mkdir()
    Path("sample/book.txt").write_bytes(CONTENT)
    source, file = a_source("sample/book.txt")
    assert addresses_to_try(source, file, "http://h/m") == ["sample/book.txt"]
    assert fetch(source, file, Path("store"), "http://h/m").read_bytes() == CONTENT


def test_a_missing_file_of_the_repository_is_restored_from_git(tmp_path: Path) -> None:
    message = failure_of(*a_source("sample/book.txt"), tmp_path)
    assert "sample/book.txt (no such file or directory)" in message
    assert message.endswith("restore it with `git checkout -- sample/book.txt`")


# Archives


def archived(url: str, **changes: object) -> tuple[Source, File]:
    return a_source(url, archive="books.zip", **changes)


def test_the_member_of_an_archive_is_stored_without_the_archive(server: Server, tmp_path: Path) -> None:
    server.files["/a.zip"] = a_zip("book.txt", CONTENT)
    stored = fetch(*archived(server.url("a.zip")), tmp_path, None)
    assert stored.read_bytes() == CONTENT
    assert left_in(tmp_path) == ["book.txt"]


def test_a_broken_transfer_of_an_archive_recovers(server: Server, tmp_path: Path) -> None:
    server.files["/a.zip"], server.cuts = a_zip("book.txt", CONTENT), [1000]
    stored = fetch(*archived(server.url("a.zip")), tmp_path, None)
    assert stored.read_bytes() == CONTENT


def encrypted(archive: bytes) -> bytes:
    """The same archive with the encryption flag set in both headers."""
    changed = bytearray(archive)
    changed[6] |= 1
    changed[changed.rindex(b"PK\x01\x02") + 8] |= 1
    return bytes(changed)


def understated(archive: bytes, declared: int) -> bytes:
    """The same archive whose directory declares a smaller member than there is."""
    changed = bytearray(archive)
    struct.pack_into("<I", changed, changed.rindex(b"PK\x01\x02") + 24, declared)
    return bytes(changed)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (a_zip("book.txt", OTHER), f"sha256 {hashlib.sha256(OTHER).hexdigest()}"),
        (a_zip("book.txt", CONTENT[:10]), "only 10 bytes"),
        (a_zip("../book.txt", CONTENT), "no book.txt in it"),
        (a_zip("books/book.txt", CONTENT), "no book.txt in it"),
        (a_zip("book.txt", bytes(10**6)), f"more than {len(CONTENT)} bytes"),
        (understated(a_zip("book.txt", bytes(10**6)), len(CONTENT)), "not a sound zip archive"),
        (a_zip("book.txt", CONTENT, zipfile.ZIP_BZIP2), "neither stored nor deflated"),
        (encrypted(a_zip("book.txt", CONTENT)), "not a sound zip archive"),
        (a_zip("book.txt", CONTENT)[:-30], "not a sound zip archive"),
        (b"<html>log in first</html>", "a web page"),
        (b"log in first", "not a sound zip archive"),
    ],
    ids=[
        "other content",
        "short member",
        "path outside",
        "in a folder",
        "zip bomb",
        "bomb that understates its size",
        "other compression",
        "encrypted",
        "truncated",
        "page",
        "no zip",
    ],
)
def test_a_wrong_archive_is_refused_and_leaves_nothing(server: Server, tmp_path: Path, body: bytes, words: str) -> None:
    server.files["/a.zip"] = body
    message = failure_of(*archived(server.url("a.zip")), tmp_path)
    assert words in message
    assert "put it at <mirror>/books/books.zip" in message
    assert left_in(tmp_path) == []


# What the file system refuses


def test_an_unwritable_store_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where a folder should be")
    server.files["/a"] = CONTENT
    message = failure_of(*a_source(server.url("a")), tmp_path / "store")
    assert str(tmp_path / "store" / "books") in message


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_named_with_the_path(server: Server, tmp_path: Path) -> None:
    server.files["/a"] = CONTENT
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "book.txt.part").symlink_to("/dev/full")
    source, file = a_source(server.url("a"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Part, "discard", lambda _: None)
        message = failure_of(source, file, tmp_path)
    assert message.startswith(f"cannot write {tmp_path / 'books' / 'book.txt'}: no space left")


# Placing


def test_placing_makes_a_hard_link(tmp_path: Path) -> None:
    (tmp_path / "stored").write_bytes(CONTENT)
    place(tmp_path / "stored", tmp_path / "out" / "book.txt")
    assert (tmp_path / "out" / "book.txt").samefile(tmp_path / "stored")


def test_placing_copies_where_links_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "stored").write_bytes(CONTENT)
    place(tmp_path / "stored", tmp_path / "out" / "book.txt")
    assert (tmp_path / "out" / "book.txt").read_bytes() == CONTENT
    assert not (tmp_path / "out" / "book.txt").samefile(tmp_path / "stored")
    assert left_in(tmp_path / "out") == ["book.txt"]


def test_placing_replaces_what_was_there_and_may_be_repeated(tmp_path: Path) -> None:
    (tmp_path / "stored").write_bytes(CONTENT)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "book.txt").write_bytes(OTHER)
    for _ in range(2):
        place(tmp_path / "stored", tmp_path / "out" / "book.txt")
        assert (tmp_path / "out" / "book.txt").samefile(tmp_path / "stored")
        assert left_in(tmp_path / "out") == ["book.txt"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "stored").write_bytes(CONTENT)
    (tmp_path / "out").write_text("a file where a folder should be")
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "out"))):
        place(tmp_path / "stored", tmp_path / "out" / "book.txt")


def test_the_hash_is_the_one_that_hashlib_finds(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(tmp_path / "abc") == expected


def test_weights_that_cannot_be_had_are_reported_in_one_sentence(tmp_path: Path, closed_port: int) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    source = CATALOGUE["gpt2-124M"]
    weights = "model.ckpt.data-00000-of-00001"
    file = next(file for file in source.files if file.name == weights)
    nowhere = f"https://127.0.0.1:{closed_port}/124M/{weights}"
    message = failure_of(source, replace(file, addresses=(nowhere,)), tmp_path / "store", str(mirror))
    assert message == (
        f"cannot get gpt2-124M/{weights}: tried {mirror}/gpt2-124M/{weights}"
        f" (no such file or directory), {nowhere} (connection refused, 4 attempts);"
        f" expected a file of 497759232 bytes with sha256 {file.sha256};"
        f" put it at <mirror>/gpt2-124M/{weights} and set SCRATCHLM_MIRROR to <mirror>,"
        " a directory or an http(s) URL"
    )
    assert left_in(tmp_path / "store") == []
