"""The scaling of the corpus measures the works it names; how long they take is not for a test to say."""

from typing import Any

import pytest

from benchmarks import scaling_corpus
from benchmarks.harness import Row


def in_this_process(name: str, row: Row, repeats: int, threads: int) -> dict[str, Any]:
    contender = row.contenders["scratchlm"]
    units = contender.setup(**contender.options)()
    measured = {"units": units, "seconds": {"median": 1.0}, "rate": {"median": units}, "peak_memory_bytes": 1}
    return {"contenders": {"scratchlm": measured}}


def test_each_size_is_tokenized_opened_and_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling_corpus, "measure", in_this_process)
    found = scaling_corpus.growth("sample-stories", "gpt2-nano", 100_000, threads=1)
    assert [row["work"] for row in found] == ["tokenize", "open", "read"]
    tokenized, opened, read = (row["units"] for row in found)
    assert tokenized == 100_000
    assert 0 < read <= opened < 90_000  # the train split's, of which whole batches are read
    assert read % (8 * 1024) == 0
    assert [row["mapped_bytes"] for row in found] == [0, 0, 4 * read]


def test_the_picture_has_each_work_with_the_memory_that_is_its_own() -> None:
    row = {"unit": "tokens", "seconds": 2.0, "rate": 5e6, "peak_memory_bytes": 3 * 2**30, "mapped_bytes": 2**30}
    rows = [row | {"work": work, "text_bytes": size} for size in (10**6, 10**7) for work in ("open", "read")]
    seconds, rates, memory = scaling_corpus.panels(rows)
    assert seconds.series == dict.fromkeys(("open, tokens", "read, tokens"), {1.0: 2.0, 10.0: 2.0})
    assert rates.series["read, tokens"] == {1.0: 5.0, 10.0: 5.0}
    assert memory.series["open, tokens"] == {1.0: 2.0, 10.0: 2.0}
