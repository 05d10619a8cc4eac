"""The curves of the cost count what they say and write what they print; how fast is not for a test to say."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import scaling
from benchmarks.baselines import our_config
from benchmarks.flops import flops_per_token
from benchmarks.harness import Row, results
from benchmarks.scaling import CURVES, Curve, Point
from scratchlm.model.config import GPTConfig, gpt2_config
from scratchlm.model.gpt import build_model
from scratchlm.run.files import read_json

TINY = gpt2_config("nano", 64, 32)


@pytest.mark.parametrize(("config", "window"), [(TINY, 32), (TINY, 7), (gpt2_config("small", 100, 16), 16)])
def test_operations_per_token_are_those_that_torch_counts(config: GPTConfig, window: int) -> None:
    model = build_model(config, 0)
    tokens = torch.randint(config.vocab_size, (2, window))
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    assert counter.get_total_flops() == 2 * window * flops_per_token(config, window)


def test_operations_per_token_of_gpt2_124m_by_hand() -> None:
    """85 million numbers in the blocks' matrices, 38.6 million in the head's; 12 · 12 · 1024 · 768 for attention."""
    assert flops_per_token(our_config("124M"), 1024) == 6 * (84_934_656 + 38_597_376) + 113_246_208


def test_each_curve_varies_one_thing_over_its_range() -> None:
    reach = {name: [curve.x(point) for point in curve.points] for name, curve in CURVES.items()}
    assert all(xs == sorted(set(xs)) for xs in reach.values())
    assert reach["model"][0] < 1e6 and reach["model"][-1] > 354e6
    assert (reach["context"][0], reach["context"][-1]) == (128, 1024)
    assert (reach["batch"][0], reach["batch"][-1]) == (1, 32)
    assert {point.batch_size * point.window for name in ("model", "context") for point in CURVES[name].points} == {1024}
    assert {point.config for name in ("context", "batch") for point in CURVES[name].points} == {our_config("124M")}


def in_this_process(name: str, row: Row, repeats: int, threads: int) -> dict[str, Any]:
    """As `measure`, with seconds so that ours does 10 GFLOP a second and the matrix products 40."""
    units = {baseline: [contender.setup(**contender.options)()] for baseline, contender in row.contenders.items()}
    seconds = {"scratchlm": [units["scratchlm"][0] / 10], "matrix products": [units["matrix products"][0] / 40]}
    return results(row, units, seconds, dict.fromkeys(units, 3 * 2**20))


@pytest.mark.long
@pytest.mark.usefixtures("deterministic_as_before")
def test_the_command_writes_each_curve_as_a_file_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    points = [Point(TINY, batch_size, 16) for batch_size in (1, 3)]
    curve = Curve("windows in a batch", lambda point: point.batch_size, points, "Tiny windows.")
    monkeypatch.setattr(scaling, "CURVES", {"batch": curve, "other": curve})
    monkeypatch.setattr(scaling, "GFLOP_PER_ROUND", 0.1)
    monkeypatch.setattr(scaling, "RESULTS", tmp_path)
    monkeypatch.setattr(scaling, "measure", in_this_process)
    monkeypatch.setattr(scaling, "about", lambda module, threads: {"commit": "abc"})
    monkeypatch.setattr("sys.argv", ["scaling.py", "--curve", "batch", "--repeats", "1", "--threads", "1"])
    scaling.main()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scaling_batch.json", "scaling_batch.svg"]
    found = read_json(tmp_path / "scaling_batch.json")
    assert [(point["x"], point["precision"]) for point in found["points"]] == [
        (1, "float32"), (1, "bfloat16"), (3, "float32"), (3, "bfloat16"),
    ]  # fmt: skip
    per_token = flops_per_token(TINY, 16)
    for point in found["points"]:
        tokens = point["x"] * 16
        assert point["tokens_per_second"]["median"] == pytest.approx(10e9 / per_token, rel=1e-5)
        assert point["seconds_per_step"] == pytest.approx(tokens * per_token / 10e9, rel=1e-5)
        assert point["share_of_peak"]["median"] == pytest.approx(0.25)
        assert point["parameters"] == sum(p.numel() for p in build_model(TINY, 0).parameters())
    assert found["commit"] == "abc" and found["x"] == "windows in a batch"
    drawing = (tmp_path / "scaling_batch.svg").read_text(encoding="utf-8")
    assert all(text in drawing for text in ("float32", "bfloat16", "tokens per second", "peak memory", "in a batch"))
    printed = capsys.readouterr().out
    assert re.search(r"^ +3  bfloat16 .* 25 % +3 MiB", printed, flags=re.MULTILINE)
    assert "Tiny windows." in printed
