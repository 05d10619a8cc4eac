"""The tables of memory: those of the page, and by hand."""

import sys

import pytest

from benchmarks import memory
from scratchlm.model.config import published_config
from tests.pages import REPOSITORY


def test_the_tables_of_the_page_are_those_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["memory"])
    memory.main()
    page = (REPOSITORY / "docs" / "gpu.md").read_text(encoding="utf-8")
    tables = capsys.readouterr().out.strip().split("\n\n")
    assert len(tables) == 2
    assert all(f"\n\n{table}\n\n" in page for table in tables)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_largest_micro_batch_fits_and_one_row_more_does_not(checkpoint: bool) -> None:
    config, card = published_config("124M"), 8 * 2**30
    n_rows = memory.largest_micro_batch(config, 1024, checkpoint, card)
    peaks = [
        memory.peak_bytes(config, memory.Step(rows, 1024, checkpoint=checkpoint, accumulates=True))
        for rows in (n_rows, n_rows + 1)
    ]
    assert peaks[0] <= memory.USABLE * card < peaks[1]
    assert memory.largest_micro_batch(published_config("1558M"), 1024, checkpoint, card) == 0
