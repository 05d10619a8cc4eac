"""How the work on a corpus grows with its size: `python -m benchmarks.scaling_corpus --megabytes 1 10 100 2000`.

Tokenizing a text file, opening its tokens and reading an epoch of windows, each in a process of its own for each size.
Prints a table; writes benchmarks/results/scaling_corpus.json and .svg.
"""

import argparse
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.charts import Panel, write_chart
from benchmarks.harness import RESULTS, Contender, Row, about, measure, mebibytes
from benchmarks.rows.corpus import opening, reading, tokenizing, write_text
from scratchlm.run.files import write_json

WINDOWS = {"batch_size": 8, "context_length": 1024}
MAPPED_BYTES_PER_TOKEN = 4


def growth(source: str, vocabulary: str, n_bytes: int, threads: int) -> list[dict[str, Any]]:
    """For each kind of work on a text of `n_bytes`: units, seconds, rate, peak memory and mapped bytes.

    Pages of a memory map count in the peak, but the system can drop them, so only the rest is memory of the process.
    """
    with tempfile.TemporaryDirectory() as folder:
        text, corpus = Path(folder) / "text.txt", Path(folder) / "corpus"
        write_text(text, source, n_bytes)
        works = {
            "tokenize": ("bytes", Contender(tokenizing, {"text": text, "folder": corpus, "vocabulary": vocabulary})),
            "open": ("tokens", Contender(opening, {"folder": corpus, **WINDOWS})),
            "read": ("tokens", Contender(reading, {"folder": corpus, **WINDOWS})),
        }  # fmt: skip
        found = []
        for work, (unit, contender) in works.items():
            row = Row(unit, {"scratchlm": contender}, {}, "")
            it = measure(f"{work} {n_bytes:,} bytes", row, repeats=1, threads=threads)["contenders"]["scratchlm"]
            found.append(
                {
                    "work": work, "text_bytes": n_bytes, "unit": unit, "units": it["units"],
                    "seconds": it["seconds"]["median"], "rate": it["rate"]["median"],
                    "peak_memory_bytes": it["peak_memory_bytes"],
                    "mapped_bytes": it["units"] * MAPPED_BYTES_PER_TOKEN if work == "read" else 0,
                }
            )  # fmt: skip
    return found


def panels(rows: Sequence[dict[str, Any]]) -> list[Panel]:
    def series(value: Callable[[dict[str, Any]], float]) -> dict[str, dict[float, float]]:
        found: dict[str, dict[float, float]] = {}
        for row in rows:
            found.setdefault(f"{row['work']}, {row['unit']}", {})[row["text_bytes"] / 1e6] = value(row)
        return found

    return [
        Panel("seconds", series(lambda row: row["seconds"])),
        Panel("million units per second", series(lambda row: row["rate"] / 1e6)),
        Panel(
            "peak memory without maps, GiB",
            series(lambda row: ((row["peak_memory_bytes"] or math.nan) - row["mapped_bytes"]) / 2**30),
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[1, 10, 100, 2000])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    rows = [
        row
        for size in options.megabytes
        for row in growth("tiny-shakespeare", "gpt2-124M", size * 10**6, options.threads)
    ]
    lines = [
        [
            row["work"], f"{row['text_bytes'] / 1e6:,.0f} MB", f"{row['seconds']:.3g} s",
            f"{row['rate'] / 1e6:,.3g} M {row['unit']}/s",
            mebibytes(row["peak_memory_bytes"]),
            f"{row['mapped_bytes'] / 2**20:,.0f} MiB",
        ]
        for row in rows
    ]  # fmt: skip
    print(tabulate(lines, ["work", "text", "time", "rate", "peak memory", "of it mapped"], disable_numparse=True))
    write_json(RESULTS / "scaling_corpus.json", {"rows": rows} | about("benchmarks.scaling_corpus", options.threads))
    write_chart(RESULTS / "scaling_corpus.svg", "Work on a corpus, by its size", "megabytes of text", panels(rows))


if __name__ == "__main__":
    main()
