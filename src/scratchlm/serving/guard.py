"""The key, the host names and the limits on requests, checked before the application."""

import asyncio
import re
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 1 << 20
BODY_SECONDS = 30.0  # for the whole of it
OPEN_PATHS = ("/", "/health")  # the page asks for the key itself


def error_response(status: int, message: str, code: str) -> JSONResponse:
    """An error as OpenAI's API words it."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    headers = {"Retry-After": "1"} if status == 429 else {"WWW-Authenticate": "Bearer"} if status == 401 else None
    error = {"message": message, "type": kind, "param": None, "code": code}
    return JSONResponse({"error": error}, status, headers=headers)


class Guard:
    """Passes on requests with the right key and host name, once their whole body has arrived, and counts all.

    key: None lets everybody in. hosts: the names that clients may use for this machine, None for all.
    count: called with the path and the status of each response.
    """

    def __init__(
        self, app: ASGIApp, key: str | None, hosts: Sequence[str] | None, count: Callable[[str, int], None]
    ) -> None:  # fmt: skip
        self.app, self.key, self.hosts, self.count = app, key, hosts, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")  # a path of ours: a client may send any other
                self.count(route.path if route else "other", message["status"])
            await send(message)

        return await self._guarded(scope, receive, counting)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        host = re.sub(r":\d*$", "", headers.get(b"host", b"").decode("latin-1").lower())
        if self.hosts is not None and host not in self.hosts:
            sentence = f"this server answers to {', '.join(self.hosts)} only; use one of these names"
            return await error_response(400, sentence, "invalid_host")(scope, receive, send)
        if self.key and scope["path"] not in OPEN_PATHS and not self._has_key(headers):
            sentence = "wrong or missing key; send it as `Authorization: Bearer KEY`"
            return await error_response(401, sentence, "invalid_api_key")(scope, receive, send)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await _body(receive)
        except TimeoutError:
            sentence = f"the request did not arrive in {BODY_SECONDS:.0f} seconds; send it faster"
            return await error_response(408, sentence, "timeout")(scope, receive, send)
        if body is None:
            sentence = f"a request may have {MAX_BODY_BYTES:,} bytes; send less"
            return await error_response(413, sentence, "too_large")(scope, receive, send)
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        return await self.app(scope, replay, send)

    def _has_key(self, headers: dict[bytes, bytes]) -> bool:
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        return scheme.lower() == b"bearer" and secrets.compare_digest(given, str(self.key).encode())


async def _body(receive: Receive) -> bytes | None:
    """The whole body; None if it is too large."""
    body = bytearray()
    while True:
        message: dict[str, Any] = dict(await receive())
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            return None
        if not message.get("more_body"):
            return bytes(body)
