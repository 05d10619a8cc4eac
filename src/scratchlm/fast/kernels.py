"""The fastest settings for a process on a CPU: kernels for float32 products, and those of malloc.py.

Surprising: torch multiplies float32 matrices with MKL, whose kernels are slow on processors that are not Intel's:
194 GFLOP/s against oneDNN's 437. torch uses oneDNN only if fp32_precision allows rounding to bfloat16, although oneDNN
rounds only on processors with matrix units (AMX). So the setting is "bf16" to get float32. A probe, whose last bit
bfloat16 would lose, resets it if products do round. Measured with 124M on two threads (LOG.md).
"""

import torch

from scratchlm.arithmetic.mode import use_compiler, use_cuda_graphs, use_exact
from scratchlm.fast.compiler import compiler_version, refuse_missing_compiler
from scratchlm.fast.malloc import keep_freed_memory
from scratchlm.run import device as run_device
from scratchlm.run.context import Run
from scratchlm.run.device import DeviceParams


def set_up(run: Run, params: DeviceParams) -> None:
    """run.device.set_up, and fast. Raises UserError if the device does not exist here."""
    run_device.set_up(run, params)
    use_exact(run.precision == "exact", params.n_threads)
    if params.compile:
        refuse_missing_compiler(run.device)
    use_compiler(compiler_version(run.device) if params.compile else "")
    use_cuda_graphs(run.device == "cuda" and run.precision != "exact")
    if run.precision == "exact":
        torch.set_num_threads(1)
    elif run.device == "cpu":
        choose_float32_kernels()
    keep_freed_memory()


def choose_float32_kernels() -> None:
    """Use oneDNN for float32 matrix products, but only where it keeps full precision."""
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    matmul.fp32_precision = "bf16"
    exact = torch.full((512, 512), 1 + 2**-12)  # the last bit needs 13 bits of precision; bfloat16 has eight
    if not torch.equal(exact @ torch.eye(512), exact):
        matmul.fp32_precision = "none"
