"""Side-by-side measurements against the book's package, transformers, llama.cpp and others: `make bench`.

`python -m benchmarks.run --row decode_1_float32 --repeats 3` measures one row. Each row is printed as a table and
written to benchmarks/results/<row>.json. Rows are in benchmarks/rows/, one file per kind of work.
"""

import argparse
import pkgutil
from importlib import import_module
from typing import Literal

from benchmarks import rows
from benchmarks.harness import RESULTS, Row, about, measure, table
from scratchlm.run.files import write_json


def all_rows(kind: Literal["ROWS", "TINY"]) -> dict[str, Row]:
    """Every row by name. Each file of rows has them at full size (ROWS) and small enough for a test (TINY)."""
    found: dict[str, Row] = {}
    for module in pkgutil.iter_modules(rows.__path__):
        found |= getattr(import_module(f"{rows.__name__}.{module.name}"), kind)
    return found


def main() -> None:
    known = all_rows("ROWS")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", choices=list(known), action="append", help="measure only this (repeatable)")
    parser.add_argument("--repeats", type=int, help="measured rounds, instead of the row's own number")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    origin = about("benchmarks.run", options.threads)
    for name in options.row or known:
        repeats = options.repeats or known[name].repeats
        found = measure(name, known[name], repeats, options.threads)
        print(f"\n{table(name, found)}\n{known[name].notes}\n")
        write_json(RESULTS / f"{name}.json", found | origin | {"row": name, "repeats": repeats})


if __name__ == "__main__":
    main()
