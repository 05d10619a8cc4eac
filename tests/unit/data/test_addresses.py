"""Files at addresses, read from their start."""

from pathlib import Path
from threading import Semaphore
from typing import Any

import pytest

from scratchlm.data import addresses
from scratchlm.data.addresses import Reader


def test_the_next_block_is_fetched_while_one_is_in_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked, open_file = Semaphore(0), addresses._open

    def opened(address: str) -> Any:
        file = open_file(address)
        read = file.read
        monkeypatch.setattr(file, "read", lambda n: asked.release() or read(n), raising=False)
        return file

    monkeypatch.setattr(addresses, "_open", opened)
    monkeypatch.setattr(addresses, "BLOCK_BYTES", 4)
    path = tmp_path / "text.txt"
    path.write_bytes(b"0123456789")
    with Reader(str(path), lambda _: None) as reader:
        assert reader.read(1) == b"0"
        assert asked.acquire(timeout=60) and asked.acquire(timeout=60)
        assert reader.read(9) == b"123" and b"".join(reader.blocks()) == b"456789"
        assert reader.n_bytes == 10
