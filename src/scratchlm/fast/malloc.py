"""Freed memory kept for the next step, and given back where it lies in gaps that no step fills.

glibc returns freed memory to the system, which clears and maps each page again in the next step. Training in bfloat16
went from 460 to 705 tokens/s without that (124M on two threads). But then every block lies in one heap. With texts of
all lengths, each step leaves gaps between its blocks, and the heap grows: finetuning SmolLM2-135M on instructions took
8.1 GiB after 50 steps, where a step needs 3.5 (LOG.md). So once the heap is half as large again as what a step needs,
the gaps are given back; the next step maps its pages anew.
"""

import ctypes
import sys
from functools import cache

import psutil

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
NEVER, NONE = -1, 0  # never shrink the heap; map no block by itself, which free would unmap
MOST_PER_NEED = 1.5


def keep_freed_memory() -> None:
    """Let malloc keep freed memory for the next step. Does nothing without glibc."""
    if libc := _glibc():
        libc.mallopt(M_MMAP_MAX, NONE)
        libc.mallopt(M_TRIM_THRESHOLD, NEVER)


class Gaps:
    """The freed memory of a process that does the same work again and again; see `give_back`."""

    def __init__(self) -> None:
        self._needed = 0  # bytes of the process: the most after a step that began without gaps
        self._began_without = False
        self._process = psutil.Process()

    def give_back(self) -> None:
        """Return free memory to the system if it is much more than the work needs. Call this after each step."""
        if not (libc := _glibc()):
            return
        n_bytes = self._process.memory_info().rss
        if self._began_without:
            self._needed = max(self._needed, n_bytes)
        self._began_without = n_bytes > MOST_PER_NEED * self._needed
        if self._began_without:
            libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "malloc_trim") else None
