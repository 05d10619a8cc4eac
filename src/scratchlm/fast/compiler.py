"""Losses through torch's compiler, which fuses the operations between matrix products: parameter `compile`.

Surprising: the compiler makes a program for each shape of its inputs. So rows are padded to one of a few lengths, and
every position is computed, scored or not: no shape depends on the data. The compiler's deterministic mode keeps it from
choosing kernels by timing them, which would change bits from run to run.

Pays on a GPU, where each operation on its own reads and writes all activations: see docs/gpu.md. Equal to the textbook
losses within rounding: tests/unit/fast/test_compiler.py.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from scratchlm.arithmetic.blockwise_attention import causal_blocks
from scratchlm.model.variants import sines_and_cosines
from scratchlm.run.errors import UserError

SHORTEST = 64  # tokens that the shortest rows are padded to; longer ones to twice that, four times, …
MAX_PROGRAMS = 64  # more than a training has shapes


def compiled(function: Callable[..., Tensor], dynamic: bool = False) -> Callable[..., Tensor]:
    """The same function, compiled when it is first called with a shape: half a minute each.

    dynamic: one program for all shapes, except that a size of 1 has its own; it is a little slower.
    """
    import torch._dynamo.config  # a second, so only here
    import torch._inductor.config

    for tables in (sines_and_cosines, causal_blocks):  # not part of the program
        torch.compiler.assume_constant_result(tables)
    torch._dynamo.config.recompile_limit = MAX_PROGRAMS
    torch._inductor.config.deterministic = True
    return torch.compile(function, fullgraph=True, dynamic=dynamic)


def padded_length(n_tokens: int, context_length: int) -> int:
    """The length that rows of n_tokens are padded to, at most the context."""
    return min(context_length, max(SHORTEST, 1 << (n_tokens - 1).bit_length()))


def refuse_missing_compiler(device: str) -> None:
    """Raise UserError, saying what is missing, if torch's compiler cannot work for this device."""
    missing = None
    if device == "cuda" and find_spec("triton") is None:
        missing = "the package triton, in which torch's compiler writes programs for the card (pip install triton)"
    elif shutil.which(compiler := _system_compiler(device)) is None:
        missing = f"the system's compiler {compiler}, which torch's compiler calls (such as: apt install g++)"
    elif not Path(sysconfig.get_path("include"), "Python.h").exists():
        missing = "Python's header Python.h, which torch's compiler needs (such as: apt install python3-dev)"
    elif device == "mps":
        raise UserError("compile is true, which was never tried on mps; set compile to false")
    if missing:
        raise UserError(f"compile is true, but this machine lacks {missing}; install it, or set compile to false")


@cache
def compiler_version(device: str) -> str:
    """What the last bits of compiled programs depend on beside torch and the processor."""
    if device == "cuda":
        return f"triton {version('triton')}"
    found = subprocess.run([_system_compiler(device), "--version"], capture_output=True, text=True, check=True)
    return found.stdout.splitlines()[0]


def _system_compiler(device: str) -> str:
    """What torch calls: a C++ compiler on the CPU, and a C compiler beside Triton."""
    if device == "cuda":
        return os.environ.get("CC", "gcc")
    return os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
