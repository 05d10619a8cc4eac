"""How this machine computes: what tells processor classes with different last bits apart."""

import hashlib

import torch


def arithmetic_fingerprint() -> str:
    """A hash of this machine's float32 arithmetic: equal where rebuilds can be bit-identical.

    Two training steps of a small network: matrix products, softmax, exp and sums in the order
    that this processor's kernels take them, on one thread.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    source = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 129, generator=source)
    weights = torch.randn(129, 257, generator=source).requires_grad_()
    for _ in range(2):
        loss = torch.nn.functional.gelu(inputs @ weights, approximate="tanh").softmax(-1).square().sum()
        (gradient,) = torch.autograd.grad(loss, weights)
        weights = (weights - gradient).detach().requires_grad_()
    torch.set_num_threads(threads)
    return hashlib.sha256(weights.detach().numpy().tobytes()).hexdigest()[:16]
