"""Every row of the benchmarks runs and measures every contender; how fast is not for a test to say."""

import pytest

from benchmarks.run import ROWS, measure


@pytest.mark.parametrize("row", sorted(ROWS))
def test_a_row_measures_ours_the_books_and_transformers(row: str) -> None:
    contenders, n_tokens = ROWS[row]("nano")
    rates = measure(contenders, n_tokens, repeats=1, name=row)
    assert set(rates) == {"scratchlm", "llms-from-scratch", "transformers"}
    assert all(rate["lowest"] == rate["median"] == rate["highest"] > 0 for rate in rates.values())
