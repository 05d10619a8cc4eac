"""A web server that misbehaves as a test says."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """What a test serves, how it misbehaves, and what was asked of it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.ranges, self.lengths = True, True  # whether they are supported, and sent
        self.chunked = False  # whether files are sent in chunks; each cut then follows a whole chunk
        self.etag = ""
        self.wrong_range = False
        self.cuts: list[int] = []  # of the next answers: bytes of the body after which to hang up
        self.statuses: list[int] = []  # of the next answers, instead of 200
        self.headers: dict[str, str] = {}  # of every answer
        self.bodies: dict[str, Callable[[], Iterator[bytes]]] = {}  # of odd pages, by path
        self.requests: list[str] = []
        self.asked: list[dict[str, str]] = []
        self.sent_bytes: list[int] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.requests.append(self.path)
        server.asked.append(dict(self.headers))
        if server.statuses:
            return self.answer(server.statuses.pop(0), b"not now")
        if self.path in server.bodies:
            return self.stream(200 if self.path.startswith("/slow") else 302, server.bodies[self.path]())
        if self.path not in server.files:
            return self.answer(404, b"no such page")
        body = server.files[self.path]
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range", server.etag) == server.etag
        if not (asked and server.ranges and same):
            return self.answer(200, body)
        start = int(asked[1])
        if start >= len(body):
            return self.answer(416, b"")
        start = 0 if server.wrong_range else start
        return self.answer(206, body[start:], f"bytes {start}-{len(body) - 1}/{len(body)}")

    def answer(self, status: int, body: bytes, content_range: str = "") -> None:
        cut = self.server.cuts.pop(0) if self.server.cuts and status in (200, 206) else len(body)
        self.server.sent_bytes.append(min(cut, len(body)))
        self.send_response(status)
        if self.server.lengths:
            self.send_header("Content-Length", str(len(body)))
        if self.server.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        if content_range:
            self.send_header("Content-Range", content_range)
        if self.server.etag:
            self.send_header("ETag", self.server.etag)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        sent = body[:cut]
        if self.server.chunked:
            sent = b"%x\r\n%b\r\n" % (cut, sent) * bool(cut) + b"0\r\n\r\n" * (cut == len(body))
        with suppress(OSError):  # the client has hung up
            self.wfile.write(sent)

    def stream(self, status: int, blocks: Iterator[bytes]) -> None:
        self.send_response(status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(OSError):  # the client has hung up
            for block in blocks:
                self.wfile.write(block)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def web_server() -> Iterator[Server]:
    """A server on this machine, while the block runs."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()
