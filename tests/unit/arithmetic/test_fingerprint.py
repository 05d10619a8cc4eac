import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from scratchlm.arithmetic.fingerprint import arithmetic_fingerprint


@pytest.fixture
def restore_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.long
def test_the_fingerprint_is_this_machines_whatever_the_threads_and_streams(restore_threads: None) -> None:
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
    monkeypatch: pytest.MonkeyPatch, restore_threads: None
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
