"""Machine code for the loops of kernels.py, compiled by numba once per computer, and kept for all clones."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import caching

numba.config.CACHE_LOCATOR_CLASSES = (  # type: ignore[attr-defined]
    f"{__name__}.ByContent,UserProvidedCacheLocator,InTreeCacheLocator,UserWideCacheLocator"
)
FILES = (
    "kernels.py",
    "product_kernels.py",
    "layer_kernels.py",
    "attention_kernels.py",
    "decoding_kernels.py",
    "reference.py",
    "integers.py",
    "elementary.py",
)
FOLDER = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "scratchlm"


class ByContent(caching._CacheLocator):
    """Where numba keeps the code of a file: by a hash of the files that it is made of, not by path and time."""

    def __init__(self, py_func: Any, py_file: str) -> None:
        self._lineno = py_func.__code__.co_firstlineno
        folder = Path(py_file).parent
        content = b"".join((folder / name).read_bytes() for name in FILES)
        self._digest = hashlib.sha256(content).hexdigest()[:16]

    def get_cache_path(self) -> str:
        return os.fspath(FOLDER / self._digest)

    def get_source_stamp(self) -> str:
        return self._digest

    def get_disambiguator(self) -> str:
        return str(self._lineno)

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> "ByContent | None":
        found = cls(py_func, py_file)
        try:
            found.ensure_cache_path()
        except OSError:
            return None  # a read-only home: numba's own places follow
        return found


def compiled(*, reorder: bool = False) -> Callable[[Any], Any]:
    """Compile a function when it is first called. reorder: it only adds and multiplies integers, so
    sums may be taken in any order, and products and sums in one instruction."""
    flags = {"reassoc", "nsz", "contract"} if reorder else False
    return numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=flags)
