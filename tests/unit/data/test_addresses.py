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


@pytest.mark.parametrize(  # closed: what may not be read without harm
    ("address", "closed"),
    [("", ".hidden"), ("/**", ""), ("/**/*.txt", ""), ("/*/a.txt", ""), ("/s*/a.txt", "open"), ("/secret", "open")],
)
def test_a_folder_that_may_not_be_read_is_refused_not_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str, closed: str
) -> None:
    texts, scandir, access = tmp_path / "texts", os.scandir, os.access
    for name in ("open", "secret", ".hidden"):
        (texts / name).mkdir(parents=True)
        (texts / name / "a.txt").write_text("Sara saw a bird.")

    def refusing(path: str) -> Any:  # root may read all folders
        if Path(path).name == closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert files_at(f"{texts}{address}")
    closed = "secret"
    with pytest.raises(UserError, match="/texts/secret: permission denied; correct its permissions"):
        files_at(f"{texts}{address}")
    closed = ""  # but its files may not be looked at
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "secret" and access(path, mode))
    with pytest.raises(UserError, match="/texts/secret: permission denied; correct its permissions"):
        files_at(f"{texts}{address}")
    assert len(files_at(f"{texts}/[!s]*/*")) == 2


def test_links_to_files_are_read_and_those_to_folders_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("snapshot/more").mkdir(parents=True)
    Path("blob").write_text("Sara saw a bird.")
    for path in ("snapshot/a.txt", "snapshot/more/b.txt"):
        Path(path).symlink_to(tmp_path / "blob")
    for address in ("snapshot", "snapshot/**"):
        assert files_at(address) == {"snapshot/a.txt": 16, "snapshot/more/b.txt": 16}
    Path("snapshot/endless.txt").symlink_to("/dev/zero")
    assert "snapshot/endless.txt" not in files_at("snapshot")
    Path("snapshot/more/c.txt").symlink_to("b.txt")
    Path("snapshot/more/b.txt").unlink()
    Path("snapshot/more/b.txt").write_text("Twice.")
    assert files_at("snapshot/more") == {"snapshot/more/b.txt": 6}  # not its link as well
    Path("snapshot/again").symlink_to("more")
    Path("snapshot/more/_up").symlink_to("..")
    assert files_at("snapshot/*.txt") == files_at("snapshot/a*") == {"snapshot/a.txt": 16}
    assert files_at("snapshot/again") == {"snapshot/again/b.txt": 6}
    for address, link in {"snapshot": "again", "snapshot/*/*.txt": "again", "snapshot/m*/**/*.txt": "more/_up"}.items():
        with pytest.raises(UserError, match=f"/snapshot/{link} is a link to a folder, which is not followed; name its"):
            files_at(address)
    Path("snapshot/a.txt").unlink()
    Path("snapshot/a.txt").symlink_to("a.txt")
    with (
        pytest.raises(UserError, match="snapshot/a.txt: too many levels of symbolic links; correct that"),
        Reader(*files_at("snapshot/*.txt"), lambda _: None),
    ):
        pass


def test_a_file_has_one_address_by_whatever_way_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("texts", "elsewhere/deep", "elsewhere/texts"):
        Path(folder).mkdir(parents=True)
    Path("texts/a.txt").write_text("Sara saw a bird.")
    Path("elsewhere/texts/b.txt").write_text("Leo.")
    for address in ("texts", "./texts/", "texts/../texts", "texts/../texts//*.txt", f"file://{tmp_path}/texts/./a.txt"):
        assert files_at(address) == {"texts/a.txt": 16}
    Path("link").symlink_to("elsewhere/deep")
    assert files_at("link/../texts") == {"link/../texts/b.txt": 4}  # the folder above the one that the link leads to


@pytest.mark.parametrize("address", ["s3://", "texts/a\0.txt"])
def test_an_address_that_cannot_be_one_is_named(address: str) -> None:
    with pytest.raises(UserError, match="; correct the address$"):
        Reader(address, lambda _: None)
