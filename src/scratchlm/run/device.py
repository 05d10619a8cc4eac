"""The device and how it computes: threads, precision, determinism, random streams."""

import ctypes
import hashlib
import os
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from scratchlm.run.context import Run
from scratchlm.run.errors import UserError
from scratchlm.run.params import Section, Seed


class DeviceParams(Section):
    """Top-level keys of params.yaml that every computing stage reads."""

    device: Literal["cpu", "cuda", "mps", "auto"]
    threads: Annotated[int, Field(ge=1, le=1024)]
    precision: Literal["float32", "bfloat16"]


class RuntimeParams(DeviceParams):
    """The same, and the seed, where something is drawn at random."""

    seed: Seed


def set_up(run: Run, params: DeviceParams) -> None:
    """Prepare this process to compute as `params` says, deterministically, and note it in `run`.

    Raises UserError if the device is not there.
    """
    run.device, run.precision = resolve_device(params.device), params.precision
    if isinstance(params, RuntimeParams):
        run.seed = params.seed
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # CUDA's condition for determinism
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms(True) without importing torch's compiler
    # An aid for finding defects, paid at every allocation
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_num_threads(params.threads)
    if run.device == "cpu":
        _choose_float32_kernels()
    _keep_freed_memory()


def resolve_device(name: str) -> str:
    """The kind of device that a name of params.yaml means; `auto` takes cuda, then mps, then cpu.

    Raises UserError if the device is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, available in there.items() if available)
    if not there[name]:
        found = ", ".join(device for device, available in there.items() if available)
        raise UserError(f"device is {name!r}, but torch finds only {found} here; set device to one of these or to auto")
    return name


def _choose_float32_kernels() -> None:
    """Let oneDNN multiply float32 matrices where it does so in float32.

    MKL, torch's choice, takes slower kernels on processors that are not Intel's. torch asks oneDNN only if that may
    round to bfloat16, which it does on processors with matrix units (AMX); these are left to MKL.
    """
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    matmul.fp32_precision = "bf16"
    exact = torch.full((512, 512), 1 + 2**-12)  # the last bit needs 13 bits of precision; bfloat16 has eight
    if not torch.equal(exact @ torch.eye(512), exact):
        matmul.fp32_precision = "none"


def _keep_freed_memory() -> None:
    """Let malloc keep freed memory for the next step: given back, each page of it would be cleared and mapped again.

    glibc only; elsewhere nothing changes. The numbers are M_MMAP_MAX and M_TRIM_THRESHOLD of its malloc.h.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)
        mallopt(-1, -1)


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's global random streams: the CPU's, and the device's if it has one of its own."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = getattr(torch, device.type).get_rng_state()
    return states


def restore_random_states(states: Mapping[str, Tensor]) -> None:
    """Put torch's global random streams back to where `random_states` found them."""
    for name, state in states.items():
        (torch if name == "cpu" else getattr(torch, name)).set_rng_state(state)


def stream(seed: int, purpose: str) -> int:
    """The seed of an independent random stream, one per purpose, such as "initialisation" or "data order 3"."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator for one purpose; see `stream`."""
    return torch.Generator().manual_seed(stream(seed, purpose))
