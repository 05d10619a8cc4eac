"""The connection below Ollama's client: bounded in time and size, around proxies for this machine, questions uncut."""

import ipaddress
import json
import os
import time
from contextlib import closing, suppress
from urllib.parse import urlsplit

import httpx
from requests.utils import get_environ_proxies, select_proxy

LIMIT_BYTES = 1 << 20  # of an answer
QUOTED_CHARACTERS = 200  # of the server's own words
UNCUT = {"truncate": False, "shift": False}  # Ollama refuses a chat that it would cut; its client has no such keys


# The package makes a client when it is imported, which fails on a proxy, a host or certificates that it cannot use
_names = [name for name in os.environ if name.upper().endswith("_PROXY") or name.startswith(("OLLAMA_", "SSL"))]
_hidden = {name: os.environ.pop(name) for name in _names}
try:
    import ollama
finally:
    os.environ.update(_hidden)


class Connection(httpx.HTTPTransport):
    """answer: the last body."""

    def __init__(self, host: str, proxy: str | None, timeout_seconds: float) -> None:
        """proxy: of environment_proxy. Raises ValueError, ImportError or httpx.InvalidURL for one that cannot be used.

        Raises OSError if the environment names certificates that are not there.
        """
        super().__init__(proxy=proxy, trust_env=host.startswith("https:"))  # which is about certificates only
        self._timeout, self.answer = timeout_seconds, b""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Raises httpx.RequestError, or ollama.ResponseError for any status but success."""
        end, content = time.monotonic() + self._timeout, bytearray()
        if request.method == "POST":
            body = json.dumps(json.loads(request.read()) | UNCUT).encode()
            request.stream, request.headers["Content-Length"] = httpx.ByteStream(body), str(len(body))
        with closing(super().handle_request(request)) as response:
            for part in response.iter_bytes():
                content += part
                if time.monotonic() > end:
                    raise httpx.ReadTimeout("timed out")
                if len(content) > LIMIT_BYTES:
                    raise httpx.ReadError(f"it answered with more than {LIMIT_BYTES} bytes")
        self.answer = bytes(content)
        if not response.is_success:
            words = json.dumps({"error": _words(self.answer, response.headers.get("Location", ""))})
            raise ollama.ResponseError(words, response.status_code)
        return httpx.Response(response.status_code, content=self.answer)


def environment_proxy(host: str) -> str | None:
    """Return the proxy for a server, or None for one of this machine, which no proxy can reach."""
    name = urlsplit(host).hostname or ""
    with suppress(ValueError):
        address = ipaddress.ip_address(name)
        name = "localhost" if address.is_loopback or address.is_unspecified else name
    if f".{name}".endswith(".localhost"):
        return None
    proxy = select_proxy(host, get_environ_proxies(host))
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"


def _words(content: bytes, location: str) -> str:
    """Return what an error says: Ollama's JSON, the new address, or the beginning of a page."""
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        return str(json.loads(content)["error"])[:QUOTED_CHARACTERS]
    page = " ".join(content[: 4 * QUOTED_CHARACTERS].decode("utf-8", "replace").split())
    return f"moved to {location}" if location else page[:QUOTED_CHARACTERS] or "no further words"
