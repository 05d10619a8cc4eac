import os
from typing import Any

import pytest
from pydantic import TypeAdapter

from scratchlm.judge.connection import environment_proxy
from scratchlm.judge.protocol import SecondParams
from scratchlm.judge.scoring import build_judge
from scratchlm.run.errors import UserError

SECTION = {"prompt": "anchored", "model": "llama3", "timeout_seconds": 20.0, "retries": 0, "seed": 1}
SECTIONS: dict[str, dict[str, Any]] = {
    "ollama": SECTION | {"backend": "ollama", "context_tokens": 2048, "max_new_tokens": 128},
    "openai": SECTION | {"backend": "openai", "key_variable": None, "max_new_tokens": 128},
}
ADDRESS = {"ollama": "host", "openai": "base_url"}
INVALID = "the proxy's address is not valid"


def set_proxies(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, setting in variables.items():
        monkeypatch.setenv(name, setting)


@pytest.mark.parametrize(
    ("proxy", "named", "reason"),
    [
        ("http://me:secret@127.0.0.1:9", "http://127.0.0.1:9", "Connection refused"),
        ("me:secret@127.0.0.1:9", "http://127.0.0.1:9", "Connection refused"),
        ("http://me:sec@ret@127.0.0.1:9", "http://127.0.0.1:9", "Connection refused"),
        ("http://me:sec/ret@127.0.0.1:9", "of the environment", INVALID),
        ("http://me:sec#ret@127.0.0.1:9", "of the environment", INVALID),
        ("http://[::1]:9", "http://[::1]:9", ""),  # refused, or there is no IPv6
        ("http://::1:9", "http://::1:9", INVALID),
        ("http://[", "of the environment", ""),
        ("http://a..b:9", "http://a..b:9", INVALID),
        ("http://.:9", "http://.:9", INVALID),
        (f"http://{'a' * 64}:9", f"http://{'a' * 64}:9", INVALID),
        ("http://\u4f8b..\u4f8b:9", "http://\u4f8b..\u4f8b:9", INVALID),
        ("http://10.0.0.256:9", "http://10.0.0.256:9", INVALID),
        ("http://proxy:abc", "http://proxy:abc", INVALID),
        ("http://127.0.0.1:99999", "http://127.0.0.1:99999", ""),
        ("http://", "http://", ""),
        ("ftp://me:secret@127.0.0.1:9", "ftp://127.0.0.1:9", "Unknown scheme"),
        ("socks5h://me:secret@127.0.0.1:9", "socks5h://127.0.0.1:9", "Using SOCKS proxy"),
    ],
)
@pytest.mark.parametrize("backend", ["ollama", "openai"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_cannot_be_used_is_named_in_a_sentence_without_its_password(
    monkeypatch: pytest.MonkeyPatch, proxy: str, named: str, reason: str, scheme: str, backend: str
) -> None:
    set_proxies(monkeypatch, **{f"{scheme}_proxy": proxy})
    section = SECTIONS[backend] | {ADDRESS[backend]: f"{scheme}://judge.invalid:11434"}
    with pytest.raises(UserError) as failure:
        build_judge(TypeAdapter(SecondParams).validate_python(section))
    sentence = str(failure.value)
    assert (
        f" at {scheme}://judge.invalid:11434, asked through the proxy {named}, cannot be reached ({reason}" in sentence
    )
    assert "; if it needs no proxy, add judge.invalid to NO_PROXY, else correct the proxy or start it" in sentence
    assert not {"secret", "sec", "ret"} & set(sentence.replace(":", " ").replace("'", " ").split())


@pytest.mark.parametrize(
    ("exceptions", "address", "is_asked_directly"),
    [
        ("*", "http://10.1.2.3:9", True),
        ("10.0.0.0/8", "http://10.1.2.3:9", True),
        ("10.0.0.0/99", "http://10.1.2.3:9", False),
        ("10.0.0.0/8/8", "http://10.1.2.3:9", False),
        ("2001:db8::1", "http://[2001:db8::1]:9", True),
        ("fe80::/10,[::1]", "http://[2001:db8::1]:9", False),
        (".invalid", "http://judge.invalid:9", True),
        ("judge.invalid:9", "http://judge.invalid:9", True),
        ("judge.invalid:", "http://judge.invalid:9", False),
        ("a..b,[,://,\u4f8b,", "http://judge.invalid:9", False),
    ],
)
def test_any_list_of_exceptions_can_be_read(
    monkeypatch: pytest.MonkeyPatch, exceptions: str, address: str, is_asked_directly: bool
) -> None:
    set_proxies(monkeypatch, all_proxy="http://proxy:9", no_proxy=exceptions)
    assert environment_proxy(address) == (None if is_asked_directly else "http://proxy:9")
