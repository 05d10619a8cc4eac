"""Which of the documents of a corpus came before."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchlm.data.corpus import CorpusParams
from scratchlm.data.corpus_duplicates import repeated
from scratchlm.run.errors import UserError
from scratchlm.run.params import check_params


@given(st.lists(st.lists(st.integers(0, 9) | st.integers(2**64 - 3, 2**64 - 1), max_size=9), min_size=1, max_size=5))
def test_all_but_the_first_of_equal_hashes_are_found_within_and_across_files(files: list[list[int]]) -> None:
    seen: set[int] = set()
    expected = []
    for values in files:
        expected.append([])
        for position, value in enumerate(values):
            if value in seen:
                expected[-1].append(position)
            seen.add(value)
    found = repeated([np.array(values, dtype=np.uint64) for values in files])
    assert [positions.tolist() for positions in found] == expected


def test_memory_is_two_numbers_and_a_mark_per_document() -> None:
    n = 1_000_000
    draws = np.random.default_rng(0)
    tracemalloc.start()
    try:
        hashes = [draws.integers(2**64, size=n // 20, dtype=np.uint64) for _ in range(20)]
        for each in hashes[1::2]:
            each[: n // 200] = hashes[0][: n // 200]  # a tenth of every other file
        found = repeated(hashes)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(map(len, found)) == 10 * n // 200
    assert peak < 18 * n


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"deduplicate": {"near": 0.3}}, "deduplicate.near is 0.3: must be greater than or equal to 0.5"),
        ({"deduplicate": {"near": 1.5}}, "deduplicate.near is 1.5: must be less than or equal to 1"),
        (
            {"deduplicate": {"near": 0.8}, "split": "position"},
            "deduplicate needs split: documents; set that, or deduplicate: none",
        ),
    ],
)
def test_a_threshold_has_limits_and_needs_documents(change: dict[str, Any], fault: str) -> None:
    values = {"split": "documents", "deduplicate": "none", "train_fraction": 0.9, "shard_tokens": 1_000}
    with pytest.raises(UserError) as error:
        check_params(values | change, CorpusParams, source="params.yaml")
    assert str(error.value) == f"params.yaml: {fault}"
