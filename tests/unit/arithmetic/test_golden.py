"""The golden results of precision `exact` in this process and in others that compute in another way."""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable

import pytest

from scratchlm.arithmetic import autograd, mode, sharing
from scratchlm.arithmetic.mode import exact_arithmetic
from tests.clones import REPOSITORY
from tests.golden import BATCHES, CASES, FILE, golden_hash

EXPECTED = json.loads(FILE.read_text())
OLD_PROCESSOR = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
    "NUMBA_CPU_NAME": "nehalem",
    "OPENBLAS_CORETYPE": "NEHALEM",
    "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX2,-FMA,-AVX2_Usable,-FMA_Usable",
}
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "OPENBLAS_CORETYPE": "Haswell"}
FEW = ["operations", "last_bits", "pretrain_gpt2", "spam_lora_all", "instruct_masked", "sampled_filtered"]
NEIGHBOURS = ["2.12.1", "2.14.1"]  # of the lock's torch
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"

on_x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the settings name x86 processors")


def few(cases: Iterable[str] = FEW) -> list[str]:
    """Arguments for a quick run of some cases."""
    return ["--once", *(argument for name in cases for argument in ("--case", name))]


def run_golden(*arguments: str, path: str = "", **variables: str) -> None:
    """Run tests/golden.py in a process of its own and assert that it finds the committed hashes."""
    packages = os.environ.get("PYTHONPATH", "")  # beside a card, some are there
    found = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (path, "src", ".", packages)))} | variables
    command = [sys.executable, "-m", "tests.golden", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, env=found, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_case_has_a_committed_hash() -> None:
    assert EXPECTED.keys() == CASES.keys()
    assert EXPECTED["pretrain_resumed"] == EXPECTED["pretrain_dropout"]
    assert len(set(EXPECTED.values())) == len(CASES) - 1


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_every_option_gives_its_golden_hash_whatever_the_batches(case: str) -> None:
    with exact_arithmetic():
        assert golden_hash(case, batches=BATCHES) == EXPECTED[case]


@pytest.mark.long
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr(mode, "_n_threads", threads)
    monkeypatch.setattr(sharing, "WORTH_A_THREAD", 1)
    with exact_arithmetic():
        assert {case: golden_hash(case, batches=BATCHES[:1]) for case in FEW} == {case: EXPECTED[case] for case in FEW}


@pytest.mark.long
def test_plain_torch_gives_the_golden_hashes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autograd, "REFERENCE_ONLY", True)
    with exact_arithmetic():
        assert {case: golden_hash(case, batches=BATCHES[:1]) for case in FEW} == {case: EXPECTED[case] for case in FEW}


def test_float32_has_other_results() -> None:
    assert golden_hash("pretrain", batches=BATCHES[:1]) != EXPECTED["pretrain"]


@on_x86
@pytest.mark.long
def test_the_code_for_an_old_processor_gives_the_golden_hashes() -> None:
    run_golden("--threads", "2", *few(), **OLD_PROCESSOR)


@on_x86
@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["--threads", "2"], ["--threads", "3"], ["--reference"]])
@pytest.mark.parametrize("variables", [{}, AVX2, OLD_PROCESSOR], ids=["this processor", "AVX2", "old processor"])
def test_every_case_holds_in_every_setting(arguments: list[str], variables: dict[str, str]) -> None:
    run_golden(*arguments, **variables)


@pytest.mark.slow
@pytest.mark.parametrize("version", NEIGHBOURS)
def test_other_versions_of_torch_give_the_golden_hashes(version: str) -> None:
    """Downloads 200 MB, or 5 GB with CUDA where pip does not reach torch's own server of CPU wheels."""
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--no-warn-conflicts"]
    with tempfile.TemporaryDirectory() as folder:
        command = [*install, "--target", folder, f"torch=={version}"]
        on_cpu = [*command[:-1], "--no-deps", "--index-url", CPU_WHEELS, f"torch=={version}+cpu"]
        for way in (on_cpu, command):
            done = subprocess.run(way, capture_output=True, text=True)
            if done.returncode == 0:
                break
        else:
            pytest.skip(f"pip cannot install torch {version}: {done.stderr[-300:]}")
        run_golden(path=folder)
        run_golden("--reference", *few(), path=folder)


@pytest.mark.gpu
def test_a_card_gives_the_golden_hashes() -> None:
    run_golden("--device", "cuda")
