"""Which of the documents of a corpus came before."""

import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scratchlm.data.corpus_duplicates import repeated


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
