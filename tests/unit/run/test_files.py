import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scratchlm.run import files
from scratchlm.run.errors import UserError
from scratchlm.run.files import (
    append_log,
    atomic_folder,
    atomic_write,
    n_items,
    only_file,
    read_csv,
    read_json,
    read_table,
    sha256_of,
    stale_temporary_files,
    write_csv,
    write_json,
    write_table,
    write_text,
)

SCHEMA = pa.schema([("id", pa.string()), ("score", pa.float64()), ("tokens", pa.list_(pa.int32()))])
ROWS = [{"id": "ä", "score": 0.5, "tokens": [1, 2]}, {"id": "b", "score": None, "tokens": []}]


class Stop(Exception):
    pass


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_the_block_ends_well(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "result.txt"
    with atomic_write(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
        assert temporary.parent == target.parent
    assert target.read_text() == "new"
    assert names(target.parent) == ["result.txt"]


def test_a_pipe_is_not_replaced_by_a_file_nor_a_file_by_a_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("mine")
    for write in (atomic_write, atomic_folder):
        with pytest.raises(UserError, match="not replaced by .*; name another path"), write(tmp_path / "pipe"):
            pass
    with pytest.raises(UserError, match="text is no folder, and not replaced by one"), atomic_folder(tmp_path / "text"):
        pass
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "text").read_text() == "mine"
    assert names(tmp_path) == ["pipe", "text"]


@pytest.mark.parametrize("stop", [Stop, KeyboardInterrupt, SystemExit])
def test_a_file_interrupted_stays_as_it_was(tmp_path: Path, stop: type[BaseException]) -> None:
    (tmp_path / "result.txt").write_text("old")
    with pytest.raises(stop), atomic_write(tmp_path / "result.txt") as temporary:
        temporary.write_text("half")
        raise stop
    assert names(tmp_path) == ["result.txt"]
    assert (tmp_path / "result.txt").read_text() == "old"


def test_a_new_folder_replaces_the_old_one_as_a_whole(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with atomic_folder(tmp_path / "model") as temporary:
            (temporary / "deep").mkdir()
            (temporary / "deep" / name).write_text(name)
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model" / "deep") == ["b"]


@pytest.mark.parametrize("stop", [Stop, KeyboardInterrupt])
def test_a_folder_interrupted_stays_as_it_was(tmp_path: Path, stop: type[BaseException]) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("old")
    with pytest.raises(stop), atomic_folder(tmp_path / "model") as temporary:
        (temporary / "half").write_text("half")
        raise stop
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["old"]


@pytest.mark.parametrize("stop", [PermissionError(13, "Permission denied", "new"), KeyboardInterrupt()])
def test_a_folder_whose_successor_cannot_take_its_name_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    def refuse(path: Path, target: Path) -> None:
        raise stop

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("old")
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(type(stop)), atomic_folder(tmp_path / "model") as temporary:
        (temporary / "new").write_text("new")
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["old"]


KILLED_AT_EACH_STEP = """
import os, shutil, signal, sys
from pathlib import Path
from scratchlm.run.files import atomic_write, atomic_folder

kind, place = sys.argv[1], Path(sys.argv[2])

def write(path, text):
    with path.open("w") as file:
        for half in (text[:4], text[4:]):
            file.write(half)
            file.flush()
            sys.audit("test.halfway")

def work():
    if kind == "file":
        with atomic_write(place / "target") as temporary:
            write(temporary, "new text")
    else:
        with atomic_folder(place / "target") as temporary:
            for name in ("a", "b"):
                write(temporary / name, "new text")

def state():
    target = place / "target"
    if kind == "file" or not target.exists():
        return target.read_text() if target.exists() else "absent"
    return ", ".join(f"{path.name}: {path.read_text()}" for path in sorted(target.iterdir()))

def killed_at(n):
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "test.halfway"):
            if seen == n:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1
    sys.addaudithook(hook)
    work()

n = 0
while True:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    if kind == "file":
        (place / "target").write_text("old text")
    else:
        (place / "target").mkdir()
        for name in ("a", "b"):
            (place / "target" / name).write_text("old text")
    child = os.fork()
    if not child:
        killed_at(n)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print(state())
    if not os.WIFSIGNALED(status):
        break
    n += 1
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "allowed"),
    [
        ("file", {"old text", "new text"}),
        ("folder", {"a: old text, b: old text", "a: new text, b: new text", "absent"}),
    ],
)
def test_whenever_the_process_is_killed_the_target_is_never_partial(
    tmp_path: Path, kind: str, allowed: set[str]
) -> None:
    command = [sys.executable, "-c", KILLED_AT_EACH_STEP, kind, str(tmp_path / "place")]
    states = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(states) > 5
    assert set(states) == allowed
    assert states[-1] == max(allowed, key=lambda state: "new" in state)


@pytest.mark.parametrize(("atomic", "name"), [(atomic_write, ""), (atomic_folder, "deep")])
def test_content_is_on_disk_before_it_has_its_name(
    tmp_path: Path, atomic: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, target = [], tmp_path / "target"

    def sync(descriptor: int) -> None:
        assert not target.exists()
        synced.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", sync)
    with atomic(target) as temporary:
        (temporary / name).write_text("new")
    assert synced == [(target / name).stat().st_ino]


def test_json_has_sorted_keys_and_six_digits(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1 / 3, "a": [1, 2.0, (1e-9 / 7,)], "ä": None, "whole": 12345678, "yes": True})
    assert (tmp_path / "a.json").read_bytes().decode() == (
        '{\n  "a": [\n    1,\n    2.0,\n    [\n      1.42857e-10\n    ]\n  ],\n  "b": 0.333333,\n'
        '  "whole": 12345678,\n  "yes": true,\n  "ä": null\n}\n'
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"loss": [float("-inf")]}])
def test_json_refuses_what_is_no_number_and_writes_nothing(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", value)
    assert names(tmp_path) == []


def test_csv_has_the_first_rows_columns_and_six_digits(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [{"step": 0, "loss": 2 / 3}, {"loss": 1.0, "step": 10}])
    assert (tmp_path / "a.csv").read_bytes() == b"step,loss\n0,0.666667\n10,1.0\n"
    assert read_csv(tmp_path / "a.csv") == [{"step": "0", "loss": "0.666667"}, {"step": "10", "loss": "1.0"}]


def test_csv_refuses_a_row_with_another_column_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="accuracy"):
        write_csv(tmp_path / "a.csv", [{"step": 0}, {"step": 1, "accuracy": 1.0}])
    assert names(tmp_path) == []


def test_text_is_utf8_with_the_line_ends_that_were_given(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "ä\nb\r\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa4\nb\r\n"


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7])
def test_a_table_drawn_in_parts_from_an_iterator_has_the_bytes_of_one_made_at_once(
    n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = pa.schema({"text": pa.string(), "token_ids": pa.list_(pa.int32())})
    rows = [{"text": "ab" * i, "token_ids": [*range(i)]} for i in range(n)]
    write_table(tmp_path / "once.parquet", rows, schema)
    monkeypatch.setattr(files, "ROWS_AT_ONCE", 2)
    table = write_table(tmp_path / "parts.parquet", iter(rows), schema)
    assert (tmp_path / "parts.parquet").read_bytes() == (tmp_path / "once.parquet").read_bytes()
    assert table.to_pylist() == rows == read_table(tmp_path / "parts.parquet", schema)
    assert n_items(table["token_ids"]) == sum(range(n))


def test_a_table_comes_back_as_it_went(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", ROWS, SCHEMA)
    assert read_table(tmp_path / "a.parquet") == ROWS


def test_the_bytes_of_a_table_are_those_of_these_options(tmp_path: Path) -> None:
    rows, schema = [{"id": number * number % 65_521} for number in range(70_000)], pa.schema([("id", pa.int32())])
    write_table(tmp_path / "a", rows, schema)
    options: dict[str, Any] = {"compression": "zstd", "compression_level": 3, "version": "2.6"}
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "b", row_group_size=65_536, **options)
    assert sha256_of(tmp_path / "a") == sha256_of(tmp_path / "b")


WRITE_ALL = """
import sys
from pathlib import Path
import pyarrow as pa
from scratchlm.run.files import write_csv, write_json, write_table
folder, keys = Path(sys.argv[1]), set("abcdefgh")  # a set's order depends on PYTHONHASHSEED
write_json(folder / "a.json", {key: ord(key) / 7 for key in keys})
write_csv(folder / "a.csv", [{"key": key, "value": ord(key) / 7} for key in sorted(keys)])
schema = pa.schema([("key", pa.string()), ("value", pa.float64())])
write_table(folder / "a.parquet", [{"value": ord(key) / 7, "key": key} for key in sorted(keys)] * 20_000, schema)
"""


@pytest.mark.long
def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    hashes = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        subprocess.run([sys.executable, "-c", WRITE_ALL, folder], env=os.environ | {"PYTHONHASHSEED": seed}, check=True)
        hashes.append([sha256_of(path) for path in sorted(folder.iterdir())])
    assert len(hashes[0]) == 3
    assert hashes[0] == hashes[1]


def test_only_temporary_files_of_ours_count_as_such(tmp_path: Path) -> None:
    target = tmp_path / "model"
    ours, theirs = (
        {".model.123.tmp", ".model.ab_9xyz1.tmp"},
        {".model.mine.tmp", ".model.old.123.tmp", ".model2.123.tmp"},
    )
    for name in ours | theirs:
        (tmp_path / name).touch()
    (tmp_path / ".model.77.tmp").symlink_to(tmp_path)
    assert {path.name for path in stale_temporary_files(target)} == ours


@pytest.mark.parametrize("read", [read_json, read_csv, read_table])
def test_a_missing_artifact_says_how_to_make_it(tmp_path: Path, read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"none: no such file; `dvc repro` makes every artifact, `dvc checkout` rest"):
        read(Path("data/none"))
    with pytest.raises(UserError, match=r"none: no such file; check the path$"):  # the user's own
        read(Path("none"))


@pytest.mark.parametrize(
    ("read", "message"), [(read_json, "not valid JSON"), (read_table, "cannot be read as Parquet")]
)
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_a_damaged_file_is_named_with_the_remedy(
    tmp_path: Path, read: Any, message: str, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path, remedy in ((Path("metrics/bad"), "dvc repro"), (Path("bad"), "a sound copy")):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"bad: {message} .*{remedy}$"):
            read(path)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[" * 100_000, "not valid JSON (maximum recursion"),
        ("{'a': 1}", "not valid JSON (Expecting property"),
        ('{"a": ' + "7" * 5_000 + "}", "not valid JSON (Exceeds the limit"),
        ("[1]", "expected an object of JSON, found list"),
        ("null", "expected an object of JSON, found NoneType"),
        ("\ufeff{}", "not valid JSON (Unexpected UTF-8 BOM"),
        ('"{}"', "expected an object of JSON, found str"),
        ('{"a": ["so far", "well \\udc80"]}', 'no text: half of a surrogate pair after \'{"a": ["so far", "well \''),
        ('{"\\uDBFF": 1}', "no text: half of a surrogate pair after '{\"'"),
    ],
)
def test_json_of_another_shape_is_refused_in_one_sentence(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError) as caught:
        read_json(tmp_path / "a.json")
    assert str(caught.value).startswith(f"{tmp_path / 'a.json'}: {fault}")
    assert str(caught.value).endswith("; correct it, or take a sound copy")


def test_json_takes_whole_surrogate_pairs_and_the_kind_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('["\\ud83d\\ude00"]')
    assert read_json(tmp_path / "a.json", list) == read_json(tmp_path / "a.json", object) == ["\N{GRINNING FACE}"]


@pytest.mark.parametrize("kind", [pa.int64(), pa.float64(), pa.large_list(pa.int32()), pa.list_(pa.uint32())])
def test_a_table_with_other_columns_is_refused(tmp_path: Path, kind: pa.DataType) -> None:
    write_table(tmp_path / "a.parquet", [], SCHEMA.set(2, pa.field("tokens", kind)))
    with pytest.raises(UserError, match=r"a.parquet: has the columns .*, expected id: string, score: double, tokens: "):
        read_table(tmp_path / "a.parquet", SCHEMA)
    assert read_table(tmp_path / "a.parquet") == []


def test_the_log_grows_by_one_line_per_record(tmp_path: Path) -> None:
    append_log(tmp_path / "logs" / "a.jsonl", {"b": 1 / 3, "a": 1})
    append_log(tmp_path / "logs" / "a.jsonl", {"c": 2})
    path, limits = tmp_path / "logs" / "a.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    assert path.read_text() == '{"a": 1, "b": 0.333333}\n{"c": 2}\n'
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, limits[1]))  # as a full disk
    try:
        with pytest.raises(OSError, match="too large") as raised:
            append_log(path, {"d": 3})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised.value.filename == str(path)


def test_the_digest_is_sha256s(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")  # the example of FIPS 180-2
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_sources_folder_must_hold_exactly_one_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds 0 files, expected one; run dvc repro"):
        only_file(tmp_path)
    (tmp_path / "a").touch()
    (tmp_path / "folder").mkdir()
    assert only_file(tmp_path) == tmp_path / "a"
    (tmp_path / "b").touch()
    with pytest.raises(UserError, match="holds 2 files"):
        only_file(tmp_path)
