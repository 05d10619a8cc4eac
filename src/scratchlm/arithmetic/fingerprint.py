"""A fingerprint of this machine's arithmetic: it differs between processor classes whose last bits differ."""

import hashlib

import torch
from torch.nn import functional

from scratchlm.arithmetic.mode import compiler, is_exact


def describe_arithmetic(device: str) -> dict[str, str]:
    """The fingerprint of a device, and the name of what computes there, for a person to read."""
    if is_exact():
        return {"arithmetic": arithmetic_fingerprint(device), "kernels": "any"}
    named = {"cuda": torch.cuda.get_device_name, "cpu": torch.backends.cpu.get_cpu_capability}
    return {"arithmetic": arithmetic_fingerprint(device), "kernels": named.get(device, lambda: device)()}


def arithmetic_fingerprint(device: str = "cpu") -> str:
    """A hash of this machine's arithmetic: equal where rebuilds can be bit-identical.

    Two training steps of a small network in float32, attention, and a product in bfloat16: matrix products, softmax,
    exp and sums in the order that the kernels take them, on one thread. The last two always run on the CPU, whose
    libraries choose the kernels of each independently; then the version of the compiler, where trainings are compiled.
    The exact arithmetic is the same everywhere.
    """
    if is_exact():
        return "exact"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    source = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 129, generator=source)
    start = torch.randn(129, 257, generator=source)
    rows = inputs.to(device)
    weights = start.to(device).requires_grad_()
    for _ in range(2):
        loss = functional.gelu(rows @ weights, approximate="tanh").softmax(-1).square().sum()
        (gradient,) = torch.autograd.grad(loss, weights)
        weights = (weights - gradient).detach().requires_grad_()
    heads = torch.randn(2, 4, 64, 32, generator=source)
    attended = functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
    halved = inputs.bfloat16() @ start.bfloat16()
    torch.set_num_threads(threads)
    digest = hashlib.sha256()
    for result in (weights, attended, halved):
        digest.update(result.detach().cpu().float().numpy().tobytes())
    digest.update(compiler().encode())
    return digest.hexdigest()[:16]
