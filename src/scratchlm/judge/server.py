"""Requests to a judge's server: bounded in time and size, around proxies for this machine, and errors as sentences."""

import ipaddress
import time
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import requests
from pydantic import BaseModel, ValidationError
from requests.utils import get_environ_proxies, select_proxy

from scratchlm.run.errors import UserError

LIMIT_BYTES = 1 << 20  # of an answer
QUOTED_CHARACTERS = 200  # of the server's own words


class Refusal(Exception):
    """The server answered with an error. words: its own."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(f"{status} ({words})")
        self.status, self.words = status, words


class TooSlow(Exception):
    """The whole answer did not come in time."""


class _Error(BaseModel):
    error: str


class Server:
    """A server that answers HTTP requests with JSON."""

    def __init__(self, name: str, host: str, timeout_seconds: float, remedy: str) -> None:
        """host: as in OllamaJudgeParams. remedy: the end of every sentence about a failure."""
        self._name, self._host, self._timeout, self._remedy = name, host, timeout_seconds, remedy
        self._url = host.rstrip("/")
        self._session = requests.Session()
        self._session.trust_env = not _is_here(self._url)  # no proxy can reach the server of this machine
        proxy = select_proxy(self._url, get_environ_proxies(self._url)) if self._session.trust_env else None
        self._proxy = _without_password(proxy) if proxy else None

    def call(self, path: str, body: dict[str, Any] | None = None) -> bytes:
        """GET, or POST a body as JSON, and return the answer.

        Raises Refusal, TooSlow, or UserError if the server cannot be reached.
        """
        end = time.monotonic() + self._timeout
        content = bytearray()
        try:
            with self._session.request(
                "POST" if body else "GET", self._url + path,
                json=body, timeout=self._timeout, stream=True, allow_redirects=False,
            ) as response:  # fmt: skip
                for byte in response.iter_content(1):  # a read of more would wait for all of it, past the end
                    content += byte
                    if time.monotonic() > end:
                        raise TooSlow
                    if len(content) > LIMIT_BYTES:
                        raise self.error(f"answered with more than {LIMIT_BYTES} bytes")
        except requests.Timeout:
            raise TooSlow from None
        except (requests.RequestException, OSError, ValueError) as error:  # ValueError: of a proxy's address
            if time.monotonic() > end:
                raise TooSlow from None
            raise self.error(f"cannot be reached ({_cause(error)})") from None
        if response.status_code != requests.codes.ok:
            raise Refusal(response.status_code, _words(bytes(content), response.headers.get("Location", "")))
        return bytes(content)

    def error(self, trouble: str) -> UserError:
        """Return a sentence about the server. Behind a proxy, it is not known which of the two has the trouble."""
        if self._proxy is None:
            return UserError(f"{self._name} at {self._host} {trouble}; {self._remedy}")
        name = urlsplit(self._url).hostname
        return UserError(
            f"{self._name} at {self._host}, asked through the proxy {self._proxy}, {trouble}; "
            f"if it needs no proxy, add {name} to NO_PROXY, else correct the proxy or {self._remedy}"
        )


def _is_here(url: str) -> bool:
    name = urlsplit(url).hostname or ""
    with suppress(ValueError):
        address = ipaddress.ip_address(name)
        return address.is_loopback or address.is_unspecified
    return name == "localhost" or name.endswith(".localhost")


def _without_password(proxy: str) -> str:
    with suppress(ValueError):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    return "of the environment"


def _cause(error: BaseException) -> str:
    """Return the operating system's words for a failure, or those of the HTTP library."""
    words, cause = str(error) or type(error).__name__, error.__cause__ or error.__context__
    while cause:
        words, cause = getattr(cause, "strerror", None) or words, cause.__cause__ or cause.__context__
    return words[:QUOTED_CHARACTERS]


def _words(content: bytes, location: str) -> str:
    """Return what an error says: Ollama's JSON, the new address, or the beginning of a page."""
    with suppress(ValidationError):
        return _Error.model_validate_json(content).error[:QUOTED_CHARACTERS]
    page = " ".join(content[: 4 * QUOTED_CHARACTERS].decode("utf-8", "replace").split())
    return f"moved to {location}" if location else page[:QUOTED_CHARACTERS] or "no further words"
