import resource
import shutil
import tracemalloc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llms_from_scratch.ch02 import GPTDatasetV1

from scratchlm.data.windows import SHARD_SCHEMA, Corpus, TokenWindows
from scratchlm.run.errors import UserError
from scratchlm.tasks.settings import evenly_spaced
from scratchlm.training.order import batch_indices

# Never destroyed: threads of Arrow hold some of its memory for a moment after they have read, and crash without it
POOL = pa.proxy_memory_pool(pa.default_memory_pool())


def write_shard(path: Path, row_groups: Iterable[np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, SHARD_SCHEMA, compression="zstd") as writer:
        for token_ids in row_groups:
            writer.write_table(pa.table([token_ids.astype(np.uint32)], schema=SHARD_SCHEMA))


@settings(deadline=None)
@given(st.integers(2, 40), st.integers(1, 12), st.integers(1, 15))
def test_windows_are_the_books(n_tokens: int, context_length: int, stride: int) -> None:
    class Numbers:
        def encode(self, text: str, allowed_special: set[str]) -> list[int]:
            return [10 + i for i in range(n_tokens)]

    book = GPTDatasetV1("", Numbers(), context_length, stride)
    tokens = np.arange(10, 10 + n_tokens, dtype=np.uint32)
    if not len(book):
        with pytest.raises(UserError, match=rf"{n_tokens} tokens do not fill one window of {context_length} \+ 1; lo"):
            TokenWindows(tokens, context_length, stride)
        return
    windows = TokenWindows(tokens, context_length, stride)
    assert len(windows) == len(book)
    inputs, targets = windows.batch(np.arange(len(book)))
    assert inputs.dtype == targets.dtype == np.int64
    assert inputs.tolist() == [window[0].tolist() for window in book]
    assert targets.tolist() == [window[1].tolist() for window in book]


def test_windows_come_in_the_order_asked_for() -> None:
    inputs, targets = TokenWindows(np.arange(10), context_length=3, stride=2).batch(np.array([2, 0]))
    assert inputs.tolist() == [[4, 5, 6], [0, 1, 2]]
    assert targets.tolist() == [[5, 6, 7], [1, 2, 3]]


SIZES = st.lists(st.lists(st.integers(0, 12), max_size=4), min_size=1, max_size=5)  # of row groups, by shard


@settings(deadline=None, max_examples=30)
@given(st.data(), SIZES, st.integers(1, 20), st.integers(1, 9))
def test_windows_are_those_of_all_tokens_whatever_the_sizes_of_shards_and_row_groups(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, sizes: list[list[int]], length: int, stride: int
) -> None:
    folder = tmp_path_factory.mktemp("corpus", numbered=True)
    tokens = np.arange(1, sum(map(sum, sizes)) + 1)
    parts = iter(np.split(tokens, np.cumsum([size for shard in sizes for size in shard], dtype=int)[:-1]))
    for name, shard in zip(["B", "a", "b.1", "part-7", "é"], sizes, strict=False):
        write_shard(folder / "train" / f"{name}.parquet", [next(parts) for _ in shard])
    corpus = Corpus(folder)
    if len(tokens) <= length:
        with pytest.raises(UserError, match=f"^{len(tokens)} tokens do not fill one window"):
            corpus.windows("train", length, stride)
    else:
        windows, expected = corpus.windows("train", length, stride), TokenWindows(tokens, length, stride)
        assert len(windows) == len(expected)
        numbers = st.integers(0, len(windows) - 1)
        for indices in data.draw(st.lists(st.lists(numbers, min_size=1, max_size=4), max_size=6)):
            for ours, theirs in zip(*(it.batch(np.array(indices)) for it in (windows, expected)), strict=True):
                assert ours.tolist() == theirs.tolist()
    assert corpus.tokens("train").tolist() == tokens.tolist()


def test_a_row_group_is_decoded_when_a_window_first_needs_it_and_only_then(tmp_path: Path) -> None:
    tokens = np.arange(80)
    for i in range(4):
        write_shard(tmp_path / "train" / f"{i}.parquet", np.split(tokens[20 * i : 20 * i + 20], 2))
    windows, shards = Corpus(tmp_path).windows("train", 5, 5), sorted((tmp_path / "train").iterdir())
    kept = shards[1].read_bytes()
    for shard in shards[1:]:
        shard.unlink()
    assert windows.batch(np.array([0, 2]))[0].tolist() == [[*range(5)], [*range(10, 15)]]
    with pytest.raises(UserError, match=r"1.parquet: no such file; check the path$"):
        windows.batch(np.array([0, 3]))  # its last target is token 20
    shards[1].write_bytes(kept)
    assert windows.batch(np.array([3]))[1].tolist() == [[*range(16, 21)]]
    for shard in shards[:2]:
        shard.unlink()
    assert windows.batch(np.array([0, 2, 3]))[1].tolist() == [[*range(1, 6)], [*range(11, 16)], [*range(16, 21)]]
    with pytest.raises(UserError, match=r"1.parquet: no such file; check the path$"):
        windows.batch(np.array([5]))


def test_a_shard_that_changes_under_its_reader_is_named(tmp_path: Path) -> None:
    shard = tmp_path / "train" / "0.parquet"
    write_shard(shard, [np.arange(20)])
    windows = Corpus(tmp_path).windows("train", 5, 5)
    write_shard(shard, [np.arange(19)])
    with pytest.raises(UserError, match="^.*0.parquet: has 19 tokens where it had 20 when it was opened; correct it"):
        windows.batch(np.array([0]))


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """Within the block the system refuses to let a file grow beyond a size, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_without_room_is_one_sentence_and_reading_continues_when_there_is_some(tmp_path: Path) -> None:
    for i in range(2):
        write_shard(tmp_path / "corpus" / "train" / f"{i}.parquet", [np.arange(50_000)])
    refused = pytest.raises(UserError)
    with refused as at_first, largest_file(300_000):
        Corpus(tmp_path / "corpus").windows("train", 9, 10)
    windows = Corpus(tmp_path / "corpus").windows("train", 9, 10)
    with refused as later, largest_file(300_000):
        assert windows.batch(np.array([0]))[0].tolist() == [[*range(9)]]
        windows.batch(np.array([7_000]))
    for caught in (at_first, later):
        assert str(caught.value) == (
            f"{tmp_path}: no room for the temporary file of up to 0.0004 GB through which {tmp_path}/corpus/train is "
            "read (File too large); free some space, then run this again"
        )
    assert windows.batch(np.array([7_000]))[0].tolist() == [[*range(20_000, 20_009)]]


@pytest.mark.long
def test_a_hundred_billion_tokens_are_opened_and_read_in_little_memory(tmp_path: Path) -> None:
    """Row groups of one token, over and over, are small; each shard is the same file by another name."""
    n_tokens, n_shards = 1 << 28, 400
    (tmp_path / "corpus" / "train").mkdir(parents=True)
    write_shard(tmp_path / "shard", [np.full(1 << 24, i, dtype=np.uint32) for i in range(n_tokens >> 24)])
    for i in range(n_shards):
        (tmp_path / "corpus" / "train" / f"{i:05d}.parquet").hardlink_to(tmp_path / "shard")
    free, process = shutil.disk_usage(tmp_path).free, psutil.Process()
    before = process.memory_full_info().uss
    windows = Corpus(tmp_path / "corpus").windows("train", 1024, 1024)
    assert len(windows) == (n_shards * n_tokens - 1) // 1024 > 100_000_000
    places = evenly_spaced(len(windows), 3)
    chosen = np.concatenate([places, batch_indices(10**7, len(windows), 4, seed=1)])
    inputs, targets = windows.batch(chosen)
    expected = (chosen[:, None] * 1024 + np.arange(1025)) % n_tokens >> 24
    assert np.array_equal(inputs, expected[:, :-1]) and np.array_equal(targets, expected[:, 1:])
    assert process.memory_full_info().uss - before < 300 << 20  # a few row groups of 64 MiB
    assert free - shutil.disk_usage(tmp_path).free < 4 << 30


def test_reading_takes_the_memory_of_a_row_group_and_leaves_no_file(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(50_000, size=1 << 22, dtype=np.uint32)  # 16 MiB
    write_shard(tmp_path / "corpus" / "train" / "00000.parquet", np.split(tokens, 64))
    before, default = sorted(tmp_path.rglob("*")), pa.default_memory_pool()
    pa.set_memory_pool(POOL)
    tracemalloc.start()
    try:
        windows = Corpus(tmp_path / "corpus").windows("train", 255, 256)
        for i in range(0, len(windows), 8):
            inputs, _ = windows.batch(np.arange(i, i + 8))
            assert np.array_equal(inputs, tokens[i * 256 : (i + 8) * 256].reshape(8, 256)[:, :-1])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(default)
    assert 0 < POOL.max_memory() < tokens.nbytes / 8
    assert 0 < peak < tokens.nbytes / 8
    assert sorted(tmp_path.rglob("*")) == before


def column(kind: pa.DataType, values: list[Any], *, nullable: bool = False) -> pa.Table:
    return pa.table([pa.array(values, kind)], schema=pa.schema([pa.field("token_id", kind, nullable=nullable)]))


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        *((column(kind, [1, 2, 3]), f"has the columns token_id: {kind}, expected token_id: uint32")
          for kind in (pa.int64(), pa.int32(), pa.uint8(), pa.uint16(), pa.uint64(), pa.float32(), pa.float64())),
        (column(pa.string(), ["1"]), "has the columns token_id: string, expected"),
        (column(pa.uint32(), [1, None], nullable=True), "has the columns token_id: uint32, expected"),
        (pa.table({"id": pa.array([1], pa.uint32())}), "has the columns id: uint32, expected"),
        (column(pa.uint32(), [1, 7, 2]), "holds token 7 of a vocabulary of 7"),
        (column(pa.uint32(), [2**32 - 1]), "holds token 4294967295 of a vocabulary of 7"),
    ],
)  # fmt: skip
def test_a_shard_of_another_kind_is_refused_and_not_reinterpreted(tmp_path: Path, table: pa.Table, fault: str) -> None:
    (tmp_path / "corpus" / "train").mkdir(parents=True)
    shard = tmp_path / "corpus" / "train" / "00000.parquet"
    pq.write_table(table, shard)
    with pytest.raises(UserError) as caught:
        Corpus(tmp_path / "corpus", 7).tokens("train")
    assert str(caught.value).startswith(f"{shard}: {fault}")


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b"", lambda b: b"PAR1", lambda b: b[:4] + b[5:]])
def test_a_damaged_shard_is_named(tmp_path: Path, damage: Any) -> None:
    shard = tmp_path / "corpus" / "train" / "00000.parquet"
    shard.parent.mkdir(parents=True)
    pq.write_table(column(pa.uint32(), [*range(1000)]), shard)
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(UserError, match="00000.parquet: cannot be read as Parquet"):
        Corpus(tmp_path / "corpus").tokens("train")
    shard.unlink()
    shard.mkdir()
    with pytest.raises(UserError, match="00000.parquet: cannot be read as Parquet"):
        Corpus(tmp_path / "corpus").tokens("train")
