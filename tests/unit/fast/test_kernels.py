"""The settings of a process that computes: full precision in float32, and memory that is kept."""

import platform
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from scratchlm.fast.kernels import set_up
from scratchlm.run.context import Run
from scratchlm.run.device import DeviceParams

PARAMS = DeviceParams(device="cpu", threads=1, precision="float32", compile=False)


@pytest.fixture(autouse=True)
def restore_torch(deterministic_as_before: None) -> Iterator[None]:
    threads, kernels = torch.get_num_threads(), torch.backends.mkldnn.matmul.fp32_precision
    yield
    torch.backends.mkldnn.matmul.fp32_precision = kernels
    torch.set_num_threads(threads)


def test_set_up_also_fixes_threads_and_deterministic_kernels() -> None:
    torch.use_deterministic_algorithms(False)
    run = Run(device="cuda")
    set_up(run, PARAMS.model_copy(update={"threads": 3}))
    assert run.device == "cpu"
    assert torch.get_num_threads() == 3
    assert torch.are_deterministic_algorithms_enabled()


def test_float32_products_keep_every_bit_of_float32() -> None:
    set_up(Run(), PARAMS)
    assert torch.backends.mkldnn.matmul.fp32_precision in {"bf16", "none"}
    numbers = torch.rand(300, 300, generator=torch.Generator().manual_seed(0))
    assert torch.equal(numbers @ torch.eye(300), numbers)


def test_kernels_that_round_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "equal", lambda found, exact: False)  # as on a processor with matrix units
    set_up(Run(), PARAMS)
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"


@pytest.mark.long
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc has these settings, and no other")
def test_freed_memory_is_kept_for_the_next_step_and_given_back_if_it_is_much_more() -> None:
    code = """
import numpy, psutil
from scratchlm.fast.kernels import set_up
from scratchlm.fast.malloc import Gaps
from scratchlm.run.context import Run
from scratchlm.run.device import DeviceParams
set_up(Run(), DeviceParams(device="cpu", threads=1, precision="float32", compile=False))
process, gaps = psutil.Process(), Gaps()
resident = process.memory_info().rss
for n_blocks in (1, 32, 24, 240, 32):  # of 4 MiB; all are freed before the memory is read
    blocks = [numpy.ones(1 << 22, numpy.uint8) for _ in range(n_blocks)]
    del blocks
    before = process.memory_info().rss
    gaps.give_back()
    print(before - resident >> 20, process.memory_info().rss - resident >> 20)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    _, step, shorter, longest, again = (tuple(map(int, line.split())) for line in found.stdout.splitlines())
    assert step == pytest.approx((128, 128), abs=8)
    assert shorter == pytest.approx(step, abs=8)
    assert longest[0] == pytest.approx(960, abs=8)
    assert longest[1] < 64
    assert again == pytest.approx(step, abs=32)
