"""Machine code for the loops of kernels.py, compiled by numba once per computer, and kept for all clones."""

import hashlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core import caching

from scratchlm.run.errors import UserError
from scratchlm.run.files import refuse_unwritable

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
        self._digest = _content_hash(Path(py_file).parent)

    def get_cache_path(self) -> str:
        return os.fspath(FOLDER / self._digest)

    def get_source_stamp(self) -> str:
        return self._digest

    def get_disambiguator(self) -> str:
        return str(self._lineno)

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> "ByContent | None":
        found = cls(py_func, py_file)
        return found if _is_writable(found.get_cache_path()) else None  # a read-only home: numba's own places follow


@cache
def _content_hash(folder: Path) -> str:
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in FILES)).hexdigest()[:16]


@cache
def _is_writable(folder: str) -> bool:
    """Whether numba can make this folder, or write there, when it has compiled something."""
    try:
        refuse_unwritable(Path(folder, "file"))
    except UserError:
        return False
    return True


def compiled(*, reorder: bool = False) -> Callable[[Any], Any]:
    """Compile a function when it is first called. reorder: it only adds and multiplies integers, so
    sums may be taken in any order, and products and sums in one instruction."""
    flags = {"reassoc", "nsz", "contract"} if reorder else False
    return numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=flags)
