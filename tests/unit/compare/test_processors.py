import pytest

from scratchlm.compare import processors
from scratchlm.compare.processors import Arithmetic, processor, recorded, results, tell_apart

HERE, THERE = Arithmetic("1234", "AVX512"), Arithmetic("5678", "AVX512")


@pytest.mark.parametrize(
    ("kernels", "name"),
    [
        ("AVX512", "AVX-512 kernels"),
        ("AVX2", "AVX2 kernels"),
        ("SVE256", "SVE256 kernels"),
        ("DEFAULT", "baseline kernels"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3"),
        ("mps", "Apple's GPU"),
    ],
)
def test_an_arithmetic_is_named_by_its_kernels_or_card(kernels: str, name: str) -> None:
    assert str(Arithmetic("0123456789abcdef", kernels)) == name


def test_an_arithmetic_without_kernels_is_a_precision() -> None:
    (found,) = recorded([{"arithmetic": "exact"}])
    assert str(found) == "precision exact"


def test_what_metrics_record_is_found_once_and_is_no_result() -> None:
    spam = {"arithmetic": "1234", "kernels": "AVX512", "test": {"loss": 0.1}}
    assert recorded([spam, spam, {"vocab_size": 9}, {"arithmetic": "5678", "kernels": "AVX512"}, []]) == {HERE, THERE}
    assert results(spam) == {"test": {"loss": 0.1}}


def test_two_processors_with_the_same_kernels_are_told_apart() -> None:
    assert tell_apart({HERE}, {THERE}) == ("AVX-512 kernels", "AVX-512 kernels of another class of processor")
    assert tell_apart({HERE}, {HERE, Arithmetic("9", "AVX2")}) == (
        "AVX-512 kernels",
        "AVX-512 kernels and AVX2 kernels",
    )
    assert tell_apart(set(), {HERE}) == ("unrecorded arithmetic", "AVX-512 kernels")


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("model name\t: Intel(R) Xeon(R) Platinum 8488C", "Intel Xeon Platinum 8488C"),
        ("model name\t: Intel(R) Core(TM) i7-8550U CPU @ 1.80GHz", "Intel Core i7-8550U"),
        ("model name\t: AMD EPYC 9R14 96-Core Processor", "AMD EPYC 9R14"),
        ("model name\t: AMD EPYC", "AMD EPYC"),
        ("CPU implementer\t: 0x41", "aarch64"),  # Linux on Arm names no model
    ],
)
def test_a_processor_is_called_as_a_person_would(monkeypatch: pytest.MonkeyPatch, line: str, name: str) -> None:
    monkeypatch.setattr(processors.Path, "read_text", lambda *_, **__: f"vendor_id\t: x\n{line}\nflags\t:")
    monkeypatch.setattr(processors.platform, "processor", lambda: "aarch64")
    assert processor() == name
