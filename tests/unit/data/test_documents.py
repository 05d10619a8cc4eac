"""The documents of one file, their split, and what is wrong with a file that is not as pinned."""

import dataclasses
import json
import resource
from pathlib import Path

import pytest

from scratchlm.data import documents as module
from scratchlm.data.documents import check_readable, documents, is_of_train
from scratchlm.data.manifest import FORMATS, PinnedFile
from scratchlm.data.pinning import pin
from scratchlm.run.errors import UserError
from tests.corpora import content

TEXTS = ["One day.\r\n", "Zwei Tage – und 三.", " ", "x" * 3_000, "One day.\r\n"]


def pinned(path: Path, body: bytes) -> PinnedFile:
    path.write_bytes(body)
    (file,) = pin([str(path)], "body")
    return file


def read(file: PinnedFile) -> list[str]:
    return list(documents(file, lambda _: None))


def refusal(file: PinnedFile) -> str:
    with pytest.raises(UserError) as caught:
        read(file)
    return str(caught.value)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_holds_the_same_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(module, "BLOCK_CHARACTERS", 5)  # the divider is in several
    file = pinned(tmp_path / f"a.{kind}", content(TEXTS, kind))
    assert (file.format, file.column) == (kind, None if "txt" in kind else "body")
    seen: list[int] = []
    assert list(documents(file, seen.append)) == TEXTS
    assert sum(seen) == file.size_bytes == (tmp_path / f"a.{kind}").stat().st_size


def test_a_row_is_divided_as_a_text_is_and_empty_documents_are_left_out(tmp_path: Path) -> None:
    rows = ["a<|endoftext|>b", "", "<|endoftext|>c<|endoftext|>"]
    for kind in ("jsonl", "txt", "parquet"):
        assert read(pinned(tmp_path / f"a.{kind}", content(rows, kind))) == ["a", "b", "c"]


def test_the_split_is_a_function_of_the_text_that_follows_the_fraction() -> None:
    texts = [str(n).encode() for n in range(2_000)]
    train = {text for text in texts if is_of_train(text, 0.9)}
    assert 1_760 < len(train) < 1_840  # 1,800, and three standard deviations of 13.4
    assert {text for text in texts if is_of_train(text, 0.5)} < train
    assert is_of_train(b"", 0.89) and not is_of_train(b"", 0.88)  # SHA-256 of nothing begins with e3 = 227 of 256


@pytest.mark.parametrize("kind", ["txt.gz", "jsonl.zst", "parquet"])
def test_a_file_that_changed_is_named_with_what_was_expected_and_found(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    file, other = pinned(path, content(["one", "two"], kind)), content(["one", "six"], kind)
    path.write_bytes(other + b" ")
    assert refusal(file).startswith(f"{path} has {len(other) + 1:,} bytes, but {file.size_bytes:,} are pinned; restore")
    path.write_bytes(other[:10] + bytes(file.size_bytes - 10))  # no longer of its format either
    assert refusal(file).startswith(f"{path} has {file.size_bytes:,} bytes with sha256 ")
    assert refusal(file).endswith("restore the file, or pin it as it is now with scratchlm sources pin")
    path.unlink()
    assert refusal(file) == (
        f"{path}: there is no such file, or its server cannot be reached; correct the address, or restore it"
    )


@pytest.mark.parametrize(
    ("name", "body", "fault"),
    [
        ("a.txt.gz", content(["abc" * 999], "txt.gz")[:-9], "cannot be read as txt.gz (Truncated compressed stream)"),
        ("a.txt.zst", b"plain text", "cannot be read as txt.zst (ZSTD"),
        ("a.txt", b"caf\xe9 au lait", "cannot be read as txt ('utf-8' codec can't decode byte 0xe9 in position 3"),
        ("a.parquet", b"PAR1 and no more PAR1", "cannot be read as parquet ("),
        ("a.jsonl", b'{"body": "a"}\n{"body": }', ": line 2: Expecting value; correct the line"),
        (
            "a.jsonl",
            b"9" * 4301,
            ": line 1: Exceeds the limit (4300 digits) for integer string conversion: value has 4301 digits; correct",
        ),
        ("a.jsonl", b'{"text": "a"}', ": line 1 has no text in the column 'body' (it has text); complete the row"),
        ("a.jsonl", b'{"body": null}', ": line 1 has no text in the column 'body' (it is null); complete the row"),
        ("a.jsonl", b'[{"body": "' + b"a" * 12_000, ": line 1 has 12,000 characters or more; write one object per"),
        ("a.parquet", content(["a"], "parquet"), ": no column 'text' among id, body; pin the files again with"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, body: bytes, fault: str
) -> None:
    monkeypatch.setattr(module, "MOST_LINE_CHARACTERS", 12_000)
    file = pinned(tmp_path / name, body)
    if "'text'" in fault:
        file = dataclasses.replace(file, column="text")
    assert f"{tmp_path / name}{'' if fault.startswith(':') else ' '}{fault}" in refusal(file)
    if "line 2" not in fault:  # the first document can be read
        with pytest.raises(UserError, match=name):
            check_readable([file])


@pytest.mark.parametrize("kind", FORMATS)
def test_files_without_a_document_are_left_out_but_not_all_of_a_format(tmp_path: Path, kind: str) -> None:
    empty, full = (pinned(tmp_path / f"{name}.{kind}", content(TEXTS[:n], kind)) for name, n in (("a", 0), ("b", 9)))
    assert read(empty) == []
    check_readable([empty, full])
    with pytest.raises(UserError, match=f"/a.{kind} has no text, nor has any other {kind} file; leave these out"):
        check_readable([empty])


def test_a_full_folder_for_temporary_files_is_no_fault_of_the_file(tmp_path: Path) -> None:
    file = pinned(tmp_path / "a.parquet", content(["a" * 99_999], "parquet"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        said = refusal(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert said == (
        f"{tmp_path}/a.parquet cannot be copied into the folder for temporary files (file too large); free some space, "
        "or set TMPDIR to another folder"
    )


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_a_document_that_does_not_fit_a_worker_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(module, "MOST_CHARACTERS", 2_000)
    file = pinned(tmp_path / f"a.{kind}", content(TEXTS, kind))
    assert refusal(file) == (
        f"{tmp_path}/a.{kind} has a document of more than 2,000 characters; divide it by <|endoftext|>"
    )


def test_half_of_a_character_is_no_text(tmp_path: Path) -> None:
    file = pinned(tmp_path / "a.jsonl", json.dumps({"body": "\ud83d"}).encode())
    assert ": line 1 has characters in the column 'body' that are no text; correct it" in refusal(file)
