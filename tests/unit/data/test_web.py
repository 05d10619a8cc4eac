"""A file that is read once from a web server: redirects, connections that are cut, and servers that change it."""

import random
import time
from collections.abc import Iterator

import pytest

from scratchlm.data import web
from scratchlm.data.web import WebFile
from scratchlm.run.errors import UserError
from tests.web import Server, web_server

CONTENT = random.Random(1).randbytes(300_000)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(web, "WAIT_SECONDS", 0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with web_server() as server:
        server.files["/cdn/a"], server.headers = CONTENT, {"Location": "/cdn/a"}
        server.bodies["/a"] = lambda: iter([b"moved"])  # a redirect
        yield server


def read(file: WebFile) -> bytes:
    content = b"".join(iter(lambda: file.read(70_000), b""))
    file.close()
    return content


@pytest.mark.parametrize("etag", ["", '"1"', 'W/"1"'])
def test_what_is_behind_a_redirect_is_read_to_its_end_though_the_connection_is_cut(server: Server, etag: str) -> None:
    server.etag, server.cuts = etag, [1_000, 0, 100_000, 150_000]
    file = WebFile(server.url("a"))
    assert file.size == len(CONTENT)
    assert read(file) == CONTENT
    assert sum(server.sent_bytes) == len(CONTENT)  # none twice
    assert server.requests == ["/a", "/cdn/a"] * 5  # each time through the redirect, whose target may be short-lived


def test_a_server_that_sends_the_whole_again_or_is_busy_changes_no_byte(server: Server) -> None:
    server.ranges, server.cuts = False, [100_000, 50_000]
    file = WebFile(server.url("a"))
    file.read(1)
    server.statuses = [503]
    assert CONTENT[:1] + read(file) == CONTENT


def test_a_server_that_sends_the_length_only_once_has_not_changed_the_file(server: Server) -> None:
    server.cuts = [100_000]
    file = WebFile(server.url("a"))
    server.lengths = False
    assert read(file) == CONTENT and file.size == len(CONTENT)


@pytest.mark.parametrize("size", [300_000, 299_999])
def test_a_file_that_changes_while_it_is_read_is_refused(server: Server, size: int) -> None:
    server.etag, server.cuts = '"1"', [100_000]
    file = WebFile(server.url("a"))
    file.read(1)
    server.files["/cdn/a"], server.etag = bytes(size), '"2"'
    with pytest.raises(UserError, match=f"^{server.url('a')}: it changed while it was read; correct the address, or"):
        read(file)


def test_a_server_that_fails_again_and_again_is_left(server: Server) -> None:
    server.files["/a?token=secret"], server.cuts = CONTENT, [9] + [0] * 9
    file = WebFile(server.url("a?token=secret"))
    with pytest.raises(UserError, match=r"/a\?\*\*\*: connection lost, 4 attempts; correct the address, or run this"):
        read(file)
    with pytest.raises(UserError, match="/none: HTTP 404; correct the address"):
        WebFile(server.url("none"))


def test_a_server_that_sends_a_byte_at_a_time_is_left(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def drip() -> Iterator[bytes]:
        for n in range(1000):
            time.sleep(0.01)
            yield CONTENT[n : n + 1]

    monkeypatch.setattr(web, "RATE_SECONDS", 0.1)
    server.bodies["/slow"], server.files["/b"], server.cuts = drip, CONTENT, [1] * 1000
    for path, fault in (("slow", "slower than 1000 bytes a second"), ("b", "connection lost")):
        with pytest.raises(UserError, match=f"/{path}: {fault}, 4 attempts; correct the address, or run this again"):
            read(WebFile(server.url(path)))
        assert len(server.requests) == 4
        server.requests.clear()
