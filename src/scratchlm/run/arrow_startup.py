"""Read and write tables without pandas.

Surprising: pyarrow imports pandas when it makes an array or gives one to NumPy, only to ask whether the values are an
object of pandas. Ours never are. The import takes 0.2 to 0.3 s of processor time in every stage that has tables, and in
`scratchlm compare` (LOG.md).
tests/pipeline/test_stage_imports.py asserts that a stage does without it.
"""

import sys
from importlib.abc import MetaPathFinder
from typing import Any

import pyarrow as pa


class _WithoutPandas(MetaPathFinder):
    def find_spec(self, name: str, *_: Any) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


def do_without_pandas() -> None:
    """Let pyarrow take pandas for not installed in this process, unless it has imported it.

    pyarrow asks once. `import pandas` still works, and so do functions of pyarrow that return objects of pandas; those
    that accept any object, such as pyarrow.table, no longer accept pandas' own.
    """
    if "pandas" not in sys.modules:
        sys.meta_path.insert(0, finder := _WithoutPandas())
        pa.array([])
        sys.meta_path.remove(finder)
