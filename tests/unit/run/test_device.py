import platform
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchlm.arithmetic.fingerprint import arithmetic_fingerprint
from scratchlm.run.context import Run
from scratchlm.run.device import (
    RuntimeParams,
    generator,
    resolve_device,
    set_up,
    stream,
)
from scratchlm.run.errors import UserError
from scratchlm.run.params import check_params


def params(**changes: Any) -> RuntimeParams:
    return RuntimeParams(**{"device": "cpu", "threads": 1, "precision": "float32", "seed": 1} | changes)


@pytest.fixture
def restore_torch() -> Any:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    kernels = torch.backends.mkldnn.matmul.fp32_precision
    yield
    torch.backends.mkldnn.matmul.fp32_precision = kernels
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def test_a_stream_is_the_same_everywhere_and_for_ever() -> None:
    assert stream(123, "initialisation") == 5369488138940669752
    assert stream(123, "data order 3") == 2258963803529466844


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.text(max_size=5)), min_size=2, unique=True))
def test_every_seed_and_purpose_has_a_stream_of_its_own(keys: list[tuple[int, str]]) -> None:
    streams = [stream(*key) for key in keys]
    assert len(set(streams)) == len(keys)
    assert all(0 <= value < 2**63 for value in streams)


def test_neighbouring_seeds_give_unrelated_numbers() -> None:
    draws = torch.stack([torch.randn(2000, generator=generator(seed, "dropout")) for seed in range(3)])
    assert (torch.corrcoef(draws) - torch.eye(3)).abs().max() < 0.1


def test_a_generator_starts_anew_and_leaves_the_global_stream_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first, second = (torch.randperm(50, generator=generator(7, "order")).tolist() for _ in range(2))
    assert first == second
    assert torch.equal(torch.rand(3), expected)


def test_the_cpu_is_always_there_and_auto_finds_something() -> None:
    assert resolve_device("cpu") == "cpu"
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert resolve_device("auto") == best


@pytest.mark.parametrize(
    ("cuda", "mps", "best"), [(True, True, "cuda"), (False, True, "mps"), (True, False, "cuda"), (False, False, "cpu")]
)
def test_auto_takes_cuda_then_mps_then_cpu(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, best: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert resolve_device("auto") == best


def test_a_device_that_is_not_there_is_named_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(UserError) as caught:
        resolve_device("cuda")
    assert str(caught.value) == (
        "device is 'cuda', but torch finds only mps, cpu here; set device to one of these or to auto"
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"device": "gpu"}, "device is 'gpu': must be 'cpu', 'cuda', 'mps' or 'auto'"),
        ({"threads": 0}, "threads is 0: must be greater than or equal to 1"),
        ({"precision": "float16"}, "precision is 'float16': must be 'float32' or 'bfloat16'"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=f"^params.yaml: {sentence}$"):
        check_params(params().model_dump() | change, RuntimeParams, source="params.yaml")


def test_set_up_fixes_threads_and_deterministic_kernels(restore_torch: None) -> None:
    torch.use_deterministic_algorithms(False)
    run = Run()
    set_up(run, params(threads=3, precision="bfloat16"))
    assert (run.device, run.precision, run.seed) == ("cpu", "bfloat16", 1)
    assert torch.get_num_threads() == 3
    assert torch.are_deterministic_algorithms_enabled()


def test_float32_products_keep_every_bit_of_float32(restore_torch: None) -> None:
    set_up(Run(), params())
    assert torch.backends.mkldnn.matmul.fp32_precision in {"bf16", "none"}
    numbers = torch.rand(300, 300, generator=torch.Generator().manual_seed(0))
    assert torch.equal(numbers @ torch.eye(300), numbers)


def test_kernels_that_round_are_not_taken(monkeypatch: pytest.MonkeyPatch, restore_torch: None) -> None:
    monkeypatch.setattr(torch, "equal", lambda found, exact: False)  # as on a processor with matrix units
    set_up(Run(), params())
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc has this setting, and no other")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    code = """
import psutil, torch
from scratchlm.run.context import Run
from scratchlm.run.device import DeviceParams, set_up
set_up(Run(), DeviceParams(device="cpu", threads=1, precision="float32"))
resident = psutil.Process().memory_info().rss
ones = torch.ones(1 << 26)
del ones
print((psutil.Process().memory_info().rss - resident) >> 20)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) >= 250


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_precision_is_that_of_products_and_never_of_weights(precision: str, dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(2, 2)
    with Run(precision=precision).autocast():
        assert layer(torch.ones(1, 2)).dtype == dtype
    assert layer.weight.dtype == torch.float32


def test_the_fingerprint_is_this_machines_whatever_the_threads_and_streams(restore_torch: None) -> None:
    prints, torch_threads = set(), []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        torch.manual_seed(threads)
        prints.add(arithmetic_fingerprint())
        torch_threads.append(torch.get_num_threads())
    code = "from scratchlm.arithmetic.fingerprint import arithmetic_fingerprint as f; print(f())"
    prints.add(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    assert len(prints) == 1
    assert torch_threads == [1, 2, 4]


def test_the_fingerprint_sees_other_arithmetic_and_takes_one_thread(
    monkeypatch: pytest.MonkeyPatch, restore_torch: None
) -> None:
    torch.set_num_threads(2)
    before, gelu, threads = arithmetic_fingerprint(), torch.nn.functional.gelu, []

    def other(x: torch.Tensor, approximate: str) -> torch.Tensor:
        threads.append(torch.get_num_threads())
        return gelu(x, approximate=approximate) * (1 + 1e-7)

    monkeypatch.setattr(torch.nn.functional, "gelu", other)
    assert arithmetic_fingerprint() != before
    assert threads == [1, 1]


def test_the_fingerprint_sees_the_arithmetic_of_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    before, attend = arithmetic_fingerprint(), torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *heads, is_causal: attend(*heads, is_causal=is_causal) * (1 + 1e-7),
    )
    assert arithmetic_fingerprint() != before
