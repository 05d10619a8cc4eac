"""The connection to a judge's server: bounded in time and size, and without a proxy on this machine."""

import ipaddress
import json
import threading
import time
from contextlib import closing, suppress
from urllib.parse import urlsplit

import httpx
from requests.utils import get_environ_proxies, select_proxy

LIMIT_BYTES = 1 << 20  # of an answer
QUOTED_CHARACTERS = 200  # of the server's own words


class Connection(httpx.HTTPTransport):
    """Several threads may use it."""

    def __init__(self, host: str, proxy: str | None, timeout_seconds: float) -> None:
        """proxy: of environment_proxy. Raises ValueError or ImportError, without its password, if it cannot be used.

        Raises OSError if the environment names certificates that are not there.
        """
        try:
            super().__init__(proxy=proxy, trust_env=host.startswith("https:"))  # which is about certificates only
            httpx.URL(proxy or "").raw_host.decode("ascii").encode("idna")  # as for its look-up: refuses a..b
        except (httpx.InvalidURL, UnicodeError):  # whose words may quote half a password
            raise ValueError("the proxy's address is not valid") from None
        self._timeout, self._last = timeout_seconds, threading.local()

    @property
    def answer(self) -> bytes:
        """The last body that this thread has received."""
        return getattr(self._last, "body", b"")

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Raises httpx.RequestError."""
        end, content = time.monotonic() + self._timeout, bytearray()
        self._last.body = b""
        with closing(super().handle_request(request)) as response:
            for part in response.iter_bytes():
                content += part
                if time.monotonic() > end:
                    raise httpx.ReadTimeout("timed out")
                if len(content) > LIMIT_BYTES:
                    raise httpx.ReadError(f"it answered with more than {LIMIT_BYTES} bytes")
        self._last.body = bytes(content)
        moved = {"Location": response.headers["Location"]} if "Location" in response.headers else {}
        return httpx.Response(response.status_code, headers=moved, content=self.answer)


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


def behind(proxy: str | None, host: str, remedy: str) -> tuple[str, str]:
    """Return an error's words about the proxy, and the remedy: the proxy or the server may be at fault."""
    if proxy is None:
        return "", remedy
    named = "of the environment"
    with suppress(ValueError):
        parts = urlsplit(proxy)
        if ("@" in proxy) == ("@" in parts.netloc):  # else a password has a slash, and half of it looks like a port
            named = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    name = urlsplit(host).hostname
    through = f", asked through the proxy {named},"
    return through, f"if it needs no proxy, add {name} to NO_PROXY, else correct the proxy or {remedy}"


def said(response: httpx.Response) -> str:
    """Return what an error says: an error of JSON, the new address, or the beginning of a page."""
    if error := error_of(response.content):
        return error
    page = " ".join(response.content[: 4 * QUOTED_CHARACTERS].decode("utf-8", "replace").split())
    location = response.headers.get("Location", "")
    return f"moved to {location}" if location else page[:QUOTED_CHARACTERS] or "no further words"


def error_of(content: bytes) -> str:
    """Return the text of a JSON error, as Ollama or OpenAI words it, or ""."""
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        error = json.loads(content)["error"]
        words = error.get("message", error) if isinstance(error, dict) else error
        return str(words)[:QUOTED_CHARACTERS]
    return ""


def cause_of(error: BaseException) -> str:
    """Return the operating system's words for a failure, or those of the HTTP library."""
    words, cause = str(error) or type(error).__name__, error.__cause__ or error.__context__
    while cause:
        words, cause = getattr(cause, "strerror", None) or words, cause.__cause__ or cause.__context__
    return words[:QUOTED_CHARACTERS]
