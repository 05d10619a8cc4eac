"""Which arithmetic this process computes in: torch's own, compiled or not, or the exact one (see integers.py)."""

from collections.abc import Iterator
from contextlib import contextmanager

_exact = False
_compiler = ""
_cuda_graphs = False
_n_threads = 1


def is_exact() -> bool:
    """Whether functions.py computes exactly."""
    return _exact


def n_threads() -> int:
    """Threads of the exact arithmetic. torch's own would wait in loops and take cores from them."""
    return _n_threads


def use_exact(exact: bool, threads: int = 1) -> None:
    """Choose the arithmetic of the whole process, and its threads if it is exact."""
    global _exact, _n_threads
    _exact, _n_threads = exact, threads


@contextmanager
def shared_threads(n_threads: int) -> Iterator[None]:
    """Within the block, the exact arithmetic has this many threads, this process's share."""
    before = _n_threads
    use_exact(_exact, n_threads)
    try:
        yield
    finally:
        use_exact(_exact, before)


def compiler() -> str:
    """The version of the compiler that trainings go through (see fast/compiler.py); empty if they are not compiled."""
    return _compiler


def use_compiler(version: str) -> None:
    """Choose for the whole process."""
    global _compiler
    _compiler = version


def uses_cuda_graphs() -> bool:
    """Whether work is captured as CUDA graphs, whose shapes must not depend on data (see fast/cuda_graphs.py)."""
    return _cuda_graphs


def use_cuda_graphs(wanted: bool) -> None:
    """Choose for the whole process."""
    global _cuda_graphs
    _cuda_graphs = wanted


def has_static_shapes() -> bool:
    """Whether trainings pad their batches to few shapes, for a compiler or for CUDA graphs."""
    return _cuda_graphs or bool(_compiler)


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Within the block, functions.py computes exactly."""
    before = _exact
    use_exact(True, _n_threads)
    try:
        yield
    finally:
        use_exact(before, _n_threads)
