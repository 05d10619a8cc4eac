from typing import Any

import pytest
import torch

from scratchlm.run.context import Run
from scratchlm.run.device import RuntimeParams, available_cores, resolve_device, set_up
from scratchlm.run.errors import UserError
from scratchlm.run.params import check_params


def params(**changes: Any) -> RuntimeParams:
    return RuntimeParams(
        **{"device": "cpu", "threads": 1, "precision": "float32", "compile": False, "seed": 1} | changes
    )


@pytest.fixture
def restore_torch() -> Any:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


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
        ({"threads": 0}, "threads is 0: must be 'auto' or must be greater than or equal to 1"),
        ({"threads": "all"}, "threads is 'all': must be 'auto' or .*"),
        ({"threads": "auto"}, "threads is 'auto', but in precision float32 .* give a number, or use precision exact"),
        (
            {"precision": "exact", "compile": True},
            "compile is true, but torch's compiler would change the bits of precision exact; set compile to false, "
            "or use precision float32 or bfloat16",
        ),
        ({"precision": "float16"}, "precision is 'float16': must be 'exact', 'float32' or 'bfloat16'"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=f"^params.yaml: {sentence}$"):
        check_params(params().model_dump() | change, RuntimeParams, source="params.yaml")


def test_exact_takes_any_number_of_threads_and_a_device_with_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    assert params(threads="auto", precision="exact").n_threads == available_cores() >= 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto", "exact") == "cpu"
    with pytest.raises(UserError, match="^device is 'mps', which has no float64, .*; set device to cpu$"):
        resolve_device("mps", "exact")


def test_set_up_fixes_threads_and_deterministic_kernels(restore_torch: None) -> None:
    torch.use_deterministic_algorithms(False)
    run = Run()
    set_up(run, params(threads=3, precision="bfloat16"))
    assert (run.device, run.precision, run.seed) == ("cpu", "bfloat16", 1)
    assert torch.get_num_threads() == 3
    assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_precision_is_that_of_products_and_never_of_weights(precision: str, dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(2, 2)
    with Run(precision=precision).autocast():
        assert layer(torch.ones(1, 2)).dtype == dtype
    assert layer.weight.dtype == torch.float32
