"""A device is tried; the CPU stands in for it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scratchlm.run.errors import UserError
from scratchlm.training import repeatable
from scratchlm.training.losses import summed_next_token_loss
from scratchlm.training.repeatable import check_repeatable


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_device_that_repeats_passes_and_the_process_is_as_before(precision: str) -> None:
    before = torch.get_deterministic_debug_mode()
    check_repeatable("cpu", precision)
    assert torch.get_deterministic_debug_mode() == before


def test_a_device_that_adds_in_any_order_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []

    def in_any_order(*arguments: Any) -> torch.Tensor:
        calls.append(1.0)
        return summed_next_token_loss(*arguments) * (1 + 2**-20 * (len(calls) > 3))

    monkeypatch.setattr(repeatable, "summed_next_token_loss", in_any_order)
    with pytest.raises(UserError) as caught:
        check_repeatable("cpu", "float32")
    assert str(caught.value) == (
        f"device is 'cpu', where torch {torch.__version__} cannot repeat a training step in float32 to the same bits; "
        "set device to cpu"
    )


def test_what_torch_itself_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("index_put does not have a deterministic implementation\nYou can turn off …")

    monkeypatch.setattr(repeatable, "summed_next_token_loss", refuse)
    with pytest.raises(UserError, match=r"same bits \(index_put does not have a deterministic implementation\); set"):
        check_repeatable("cpu", "float32")


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_preflight_tries_mps_only(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    from scratchlm.tasks import preflight

    tried: list[str] = []
    monkeypatch.setattr(preflight, "resolve_device", lambda *_: device)
    monkeypatch.setattr(preflight, "check_repeatable", lambda device, precision: tried.append(device))
    with pytest.raises(AttributeError):  # nothing else of params.yaml is given
        preflight.check_together(SimpleNamespace(device="auto", precision="float32", compile=False))
    assert tried == (["mps"] if device == "mps" else [])
