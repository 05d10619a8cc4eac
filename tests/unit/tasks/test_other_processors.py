"""What is computed outside torch has the same bits with the libraries' code for another processor."""

import json
import math
import os
import platform
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from scratchlm.judge.scoring import judge_scores
from scratchlm.report.charts import Panel, curve_chart, length_chart, roc_chart, sparkline
from scratchlm.tasks.bootstrap import Ratio, paired_differences
from scratchlm.tasks.language_model import Losses, bits_per_byte, perplexity
from scratchlm.tasks.scores import classification_scores
from scratchlm.training.schedule import learning_rate_at

OTHER_PROCESSOR = {
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX2,-FMA,-AVX2_Usable,-FMA_Usable",
    "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
    "OPENBLAS_CORETYPE": "Nehalem",
}
NUMBERS = [random.Random(seed).random() for seed in range(1000)]


def results() -> dict[str, Any]:
    given = np.array(NUMBERS)
    settings: Any = SimpleNamespace(warmup_steps=9, learning_rate=5e-4, min_learning_rate=1e-6, schedule="cosine")
    rates = [learning_rate_at(step, 1000, settings) for step in range(1000)]
    losses = Losses(300 * given, (1 + 60 * given).astype(int))
    curve = [{"step": step, "rate": rate, "loss": 7 * rate} for step, rate in enumerate(rates)]
    panels = [Panel("rate", {"rate": "rate"}, 1.0), Panel("loss", {"loss": "loss"}, 1.0, log=True)]
    return {
        "learning rates": rates,
        "classification": [
            classification_scores((given[::-1] < 0.4).astype(int), np.stack(given_to, axis=1), "abc"[: len(given_to)])
            for given_to in ((1 - given, given), (given / 3, 1 - given, 2 * given / 3))
        ],
        "losses": [losses.mean, *((perplexity(x), bits_per_byte(x, 300, 1201)) for x in NUMBERS)],
        "judge": judge_scores([{"model": "instruct", "score": 100 * x} for x in NUMBERS[:110]], seed=3),
        "paired": paired_differences({"mean": (Ratio(given, 1 + given), Ratio(given[::-1], 1 + given))})["mean"][:2],
        "chart": curve_chart("pretrain", curve, panels),
        "roc": roc_chart("a", {"b": sorted(zip(NUMBERS, NUMBERS, strict=True))}),
        "lengths": length_chart("a", [int(100 * x) for x in NUMBERS], "messages"),
        "sparkline": sparkline(rates, "a"),
    }


def from_libraries() -> list[float]:
    return [math.cos(3 * x) for x in NUMBERS] + np.exp(NUMBERS).tolist() + np.log(NUMBERS).tolist()


@pytest.fixture(scope="module")
def elsewhere() -> Any:
    """results and from_libraries in a process that uses the kernels of an old processor."""
    done = subprocess.run(
        [sys.executable, __file__], capture_output=True, env=os.environ | OTHER_PROCESSOR, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.long
def test_metrics_learning_rates_and_charts_have_the_same_bits(elsewhere: Any) -> None:
    for name, value in json.loads(json.dumps(results())).items():
        assert elsewhere[0][name] == value, name


@pytest.mark.long
def test_the_libraries_functions_have_other_bits(elsewhere: Any) -> None:
    """Else the test above could not fail."""
    processor = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not processor.exists() or "avx2" not in processor.read_text():
        pytest.skip("this machine has no second set of kernels that a variable could switch to")
    assert elsewhere[1] != from_libraries()


if __name__ == "__main__":
    json.dump([results(), from_libraries()], sys.stdout)
