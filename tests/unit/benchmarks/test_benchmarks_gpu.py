"""The GPU benchmark without a GPU: its code runs on the CPU, its numbers come from invented times."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu, harness
from benchmarks.gpu import PEAK, training_row
from benchmarks.harness import Row, measure, results
from benchmarks.rows.pretraining import Steps
from scratchlm.run.files import read_json

SMALL_PRODUCTS = {"size": 64, "times": 2}


def test_without_a_card_it_says_so_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert str(stopped.value.code).startswith("no CUDA device here; ")  # a text: printed, and the status is 1


def made_up(name: str, row: Row, repeats: int, threads: int) -> dict[str, Any]:
    """As `measure`: a peak of 800 TFLOP a second, ours at 5/8 of it, the others at 1/4."""
    rates = dict.fromkeys(row.contenders, 200e3) | {"scratchlm": 500e3, PEAK: 800e3}
    units = {name: [rate] * repeats for name, rate in rates.items()}
    return results(row, units, {name: [1.0] * repeats for name in rates}, dict.fromkeys(rates, 2**30))


@pytest.mark.parametrize(
    ("card", "file", "sheet"),
    [("NVIDIA H200", "gpu_nvidia-h200.json", "989"), ("NVIDIA Unheard Of", "gpu_nvidia-unheard-of.json", "unknown")],
)
def test_the_command_states_both_peaks_and_the_share_of_each(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    card: str,
    file: str,
    sheet: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: card)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(total_memory=2**37))
    monkeypatch.setattr(gpu, "measure", made_up)
    monkeypatch.setattr(gpu, "about", lambda module, threads: {"commit": "abc"})
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["gpu.py", "--without", "transformers, compiled", "--repeats", "2"])
    gpu.main()
    found = read_json(tmp_path / file)
    assert [it["contender"] for it in found["trainings"]] == ["scratchlm", "transformers", "llms-from-scratch"]
    ours, theirs, _ = found["trainings"]
    assert (ours["share_of_peak"], theirs["share_of_peak"]) == (0.625, 0.25)
    assert ours["tokens_per_second"]["median"] == pytest.approx(500e12 / 854_438_400, rel=1e-5)
    assert found["ratios"][PEAK]["met"] and found["ratios"]["transformers"]["median"] == 2.5
    known = sheet != "unknown"
    assert ours["share_of_data_sheet"] == (pytest.approx(500 / 989, rel=1e-5) if known else None)
    assert found["card"]["name"] == card and found["card"]["memory_bytes"] == 2**37
    printed = capsys.readouterr().out
    assert f"{card}, bfloat16 peak 800 TFLOP/s measured, {sheet} by the data sheet" in printed
    assert "target: 50% of the measured peak, met" in printed


def test_on_a_card_a_call_ends_when_the_card_is_done_and_memory_is_the_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: happened.append("done"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 123)
    monkeypatch.setitem(harness._ready, "run", lambda: float(happened.append("started") is None))
    units, _ = harness.run_once()
    assert (units, happened) == (1.0, ["started", "done"])
    assert harness.peak_memory_bytes() == 123


@pytest.mark.gpu
def test_on_a_card_every_contender_is_measured() -> None:
    row = training_row("nano", Steps(2, 64, 2, "bfloat16", "cuda"), products=SMALL_PRODUCTS)
    found = measure("gpu", row, repeats=1, threads=2)
    assert all(it["rate"]["median"] > 0 and it["peak_memory_bytes"] > 0 for it in found["contenders"].values())
