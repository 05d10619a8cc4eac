"""Files at addresses, read from their start."""

import errno
import os
from pathlib import Path
from threading import Semaphore
from typing import Any

import pytest

from scratchlm.data import addresses
from scratchlm.data.addresses import Reader, files_at
from scratchlm.run.errors import UserError


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


def test_a_folder_that_may_not_be_read_is_refused_not_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    texts, scandir = tmp_path / "texts", os.scandir
    for name in ("open", "secret", ".hidden"):
        (texts / name).mkdir(parents=True)
        (texts / name / "a.txt").write_text("Sara saw a bird.")

    def refusing(path: str) -> Any:  # root may read all folders
        if Path(path).name in (".hidden", "secret") and refused in path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    refused = "hidden"
    assert len(files_at(str(texts))) == 2
    refused = "secret"
    with pytest.raises(UserError, match="/texts/secret: permission denied; correct its permissions"):
        files_at(str(texts))


@pytest.mark.parametrize("address", ["s3://", "texts/a\0.txt"])
def test_an_address_that_cannot_be_one_is_named(address: str) -> None:
    with pytest.raises(UserError, match="; correct the address$"):
        Reader(address, lambda _: None)
