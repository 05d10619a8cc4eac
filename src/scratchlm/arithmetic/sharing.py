"""How the kernels are called: on numpy's view of a tensor, and by several threads."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  # numba's np.dot calls it; loaded before its threads are limited
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from scratchlm.arithmetic import product_kernels
from scratchlm.arithmetic.mode import n_threads

WORTH_A_THREAD = 1 << 16  # numbers
PARTS_PER_THREAD = 2  # more than one, because a thread may start late or lose its core


def share(kernel: Callable[..., None], shape: tuple[int, ...], *arguments: Any) -> None:
    """Call kernel((start, end), *arguments) for parts of range(shape[0]) on mode.n_threads() threads.

    shape: of the work, in numbers; a little of it is not worth a second thread.
    """
    n_items, threads = shape[0], n_threads()
    pool = _pool(threads)
    if threads == 1 or math.prod(shape) < WORTH_A_THREAD:
        kernel((0, n_items), *arguments)
        return
    n_parts = threads * PARTS_PER_THREAD
    ends = [n_items * i // n_parts for i in range(n_parts + 1)]
    parts = iter([(start, end) for start, end in pairwise(ends) if end > start])

    def work() -> None:
        for part in parts:  # each part is taken by one thread
            kernel(part, *arguments)

    others = [pool.submit(work) for _ in range(threads - 1)]
    work()
    for other in others:
        other.result()


@lru_cache(maxsize=2)  # for evaluations, and for steps that other processes share
def _pool(threads: int) -> ThreadPoolExecutor:
    threadpool_limits(1, user_api="blas")  # the library gets its threads from here
    return ThreadPoolExecutor(threads)


def array(x: Tensor) -> np.ndarray:
    """The numbers of a tensor on the CPU, copied only if they do not follow each other."""
    return x.detach().contiguous().numpy()


def rounded(p: np.ndarray, row_scale: np.ndarray, column_scale: np.ndarray) -> Tensor:
    """p · row_scale · column_scale: (M, N) float64, (M,), (N,) -> (M, N) float32."""
    y = np.empty(p.shape, np.float32)
    share(product_kernels.rescale, y.shape, p, row_scale, column_scale, y)
    return torch.from_numpy(y)
