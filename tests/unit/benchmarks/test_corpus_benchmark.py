from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import corpus
from benchmarks.harness import Run


def in_this_process(make: Callable[..., Run], work: str, workers: int, setup: dict[str, Any]) -> dict[str, Any]:
    n_bytes = make(**setup)()
    return {
        "work": work, "workers": workers, "seconds": 1.0, "bytes_per_second": n_bytes,
        "bytes_per_second_per_worker": n_bytes / workers, "memory_at_start_bytes": 1, "peak_memory_bytes": 2,
    }  # fmt: skip


@pytest.mark.long
def test_many_files_and_one_are_tokenized_and_their_rates_and_memory_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "measured", in_this_process)
    found = corpus.compare("sample-stories", "gpt2-nano", 200_000, 4, corpus.WORKS)
    several = ("4 files in a bucket", "4 local files", "their near duplicates")
    works = [(work, workers) for work in several for workers in (1, 2)]
    assert [(row["work"], row["workers"]) for row in found["rows"][:-1]] == works
    assert found["rows"][-1]["work"] == "one local file"
    assert 200_000 < found["text_bytes"] < 220_000  # with a divider behind each document
    assert 0 < found["stored_bytes"] < found["text_bytes"]
    assert len(corpus.table(found).splitlines()) == 10


@pytest.mark.long
def test_shards_that_differ_are_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(make: Callable[..., Run], work: str, workers: int, setup: dict[str, Any]) -> dict[str, Any]:
        done = in_this_process(make, work, workers, setup)
        if workers == 2:
            next(setup["folder"].rglob("*.parquet")).write_bytes(b"another")
        return done

    monkeypatch.setattr(corpus, "measured", damaged)
    with pytest.raises(RuntimeError, match="2 files in a bucket, 2 workers: the shards differ from those of"):
        corpus.compare("sample-stories", "gpt2-nano", 100_000, 2, ["bucket"])
