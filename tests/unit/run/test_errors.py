import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from dvc.exceptions import DvcException
from safetensors import SafetensorError

from scratchlm.run.errors import UserError, boundary, explained
from scratchlm.run.files import atomic_folder, atomic_write, missing, write_text


def outcome(error: BaseException) -> str:
    with pytest.raises(SystemExit) as caught, boundary("stage"):
        raise error
    return str(caught.value.code)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (UserError("x is 1; give 2"), "x is 1; give 2"),
        (OSError(errno.ENOSPC, "No space left on device", "a"), "a: no space left on device; free some space"),
        (
            PermissionError(errno.EACCES, "Permission denied", b"\xff"),
            "\\udcff: permission denied; correct its permiss",
        ),
        (OSError(errno.EIO, "Input/output error"), "input/output error; check the disk"),
        (OSError(errno.EMFILE, "Too many open files"), "too many open files; raise the limit of open files"),
        (
            OSError(errno.EACCES, "Failed to open 'x'. Detail: [errno 13] Permission denied", "x"),
            "x: permission denied",
        ),
        (
            OSError(errno.ENOMEM, "Cannot allocate memory"),
            "cannot allocate memory; free some memory, or lower batch_size",
        ),
        (OSError("odd"), "odd; correct that"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "no space left on device; free"),
        (MemoryError(), "out of memory (no details); lower"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes. Error"), "out of"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory (CUDA out of memory); lower"),
        (DvcException("config file\nerror."), "config file error; correct that"),
        (ImportError("ssh is supported, but requires 'dvc-ssh' to be installed"), "ssh is supported, but requires"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_user_can_change_is_one_sentence(error: Exception, sentence: str) -> None:
    assert outcome(error).startswith(f"stage: {sentence}")
    assert "\n" not in outcome(error)


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyError("x"), RuntimeError("x"), ImportError("x"), AssertionError(), BaseException("x")]
)
def test_anything_else_is_a_defect_that_says_where_to_report_it(
    error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explained(error) is None
    with pytest.raises(type(error)), boundary("stage"):
        raise error
    assert capsys.readouterr().err.startswith("stage: this is a defect of scratchlm ")


def test_what_ends_a_process_by_intention_ends_it() -> None:
    assert outcome(SystemExit(3)) == "3"
    assert outcome(BrokenPipeError()) == "1"


def fill(path: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fill_in_rust(path: Path) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def fill_member(path: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path / "member"))


@pytest.mark.parametrize("write", [atomic_write, atomic_folder])
@pytest.mark.parametrize("act", [fill, fill_in_rust, fill_member])
def test_a_full_disk_names_the_target_and_leaves_nothing(
    tmp_path: Path, write: Callable, act: Callable[[Path], None]
) -> None:
    target = tmp_path / "model"
    with pytest.raises(SystemExit) as caught, boundary("stage"), write(target) as temporary:
        act(temporary)
    assert str(caught.value.code) == f"stage: {target}: no space left on device; free some space, then run this again"
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_read_meanwhile_is_the_one_that_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_write(tmp_path / "a"):
        (tmp_path / "other").read_bytes()
    assert caught.value.filename == str(tmp_path / "other")
    write_text(tmp_path / "a", "whole")


def test_a_file_that_may_not_be_read_does_not_count_as_missing(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert str(missing(tmp_path / "a")).startswith(f"{tmp_path / 'a'}: cannot be read; correct its permissions")
