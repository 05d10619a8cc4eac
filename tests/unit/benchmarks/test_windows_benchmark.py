from pathlib import Path

import pytest

from benchmarks import windows


@pytest.mark.parametrize("on_demand", windows.CONTENDERS.values())
def test_each_phase_reads_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_demand: bool) -> None:
    monkeypatch.setattr(windows, "SHARD_TOKENS", 20_000)
    monkeypatch.setattr(windows, "ROW_GROUP_TOKENS", 6_000)
    windows.write_split(tmp_path / "train", 40_000)
    run = windows.reading(tmp_path, on_demand)
    epochs = [39_999 // 1024 // 8 * 8 * 1025, 39_999 // 256 // 2 * 2 * 257]
    assert [run() for _ in windows.PHASES] == [8 * 1025, epochs[0], epochs[0], epochs[1]]
