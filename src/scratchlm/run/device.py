"""The device and how it computes: threads, precision, determinism."""

import os
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator

from scratchlm.run.context import Run, available_cores
from scratchlm.run.errors import UserError
from scratchlm.run.params import Section, Seed


class DeviceParams(Section):
    """Top-level keys of params.yaml that every computing stage reads.

    threads: `auto` is all cores; only in precision `exact`, whose results do not depend on it. compile: training
    steps are fused by torch's compiler, which changes the last digits.
    """

    device: Literal["cpu", "cuda", "mps", "auto"]
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)]
    precision: Literal["exact", "float32", "bfloat16"]
    compile: bool

    @property
    def n_threads(self) -> int:
        return self.threads if isinstance(self.threads, int) else available_cores()

    @model_validator(mode="after")
    def _fit_each_other(self) -> "DeviceParams":
        if self.threads == "auto" and self.precision != "exact":
            raise ValueError(
                f"threads is 'auto', but in precision {self.precision} their number changes the last digits of "
                "results; give a number, or use precision exact"
            )
        if self.compile and self.precision == "exact":
            raise ValueError(
                "compile is true, but torch's compiler would change the bits of precision exact; set compile to false, "
                "or use precision float32 or bfloat16"
            )
        return self


class RuntimeParams(DeviceParams):
    """The same, and the seed, for stages that draw something at random."""

    seed: Seed


def set_up(run: Run, params: DeviceParams) -> None:
    """Prepare this process to compute as `params` says, deterministically, and note it in `run`.

    fast.kernels.set_up does this and more. Raises UserError if torch does not find the device.
    """
    run.device, run.precision = resolve_device(params.device, params.precision), params.precision
    if isinstance(params, RuntimeParams):
        run.seed = params.seed
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # CUDA's condition for determinism
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms(True) without importing torch's compiler
    # An aid for finding defects, paid at every allocation
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_num_threads(params.n_threads)


def memory_bytes(device: str) -> int:
    """The memory of a device; of cpu and mps, the machine's."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def resolve_device(name: str, precision: str = "float32") -> str:
    """The device that a name means; `auto` is cuda, mps or cpu, in this order.

    Raises UserError if torch lacks the device, or the device cannot compute in the precision.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if precision == "exact":
        if name == "mps":
            raise UserError("device is 'mps', which has no float64, and precision exact needs it; set device to cpu")
        available["mps"] = False
    if name == "auto":
        return next(device for device, is_found in available.items() if is_found)
    if not available[name]:
        found = ", ".join(device for device, is_found in available.items() if is_found)
        raise UserError(f"device is {name!r}, but torch finds only {found} here; set device to one of these or to auto")
    return name
