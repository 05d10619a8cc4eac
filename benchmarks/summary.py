"""Print the table of benchmarks/results/ as Markdown: `python -m benchmarks.summary`.

`python -m benchmarks.summary FOLDER` prints that of the rows of a GPU.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

from tabulate import tabulate

from benchmarks.harness import RESULTS, rounded
from benchmarks.run import all_rows
from scratchlm.run.files import read_json

GPU_COMMAND = "python -m benchmarks.gpu --row"
GPU_ROWS = (
    "pretrain_124M", "pretrain_355M", "spam", "instruct", "decode_1", "decode_16", "decode_110", "exact_pretrain",
    "sample",
)  # fmt: skip
HEADERS = (
    "`{}`",
    "scratchlm, per second",
    "baseline",
    "times as fast (lowest to highest)",
    "target",
    "memory",
)


def markdown(results: Path, names: Iterable[str] | None = None, command: str = "make bench ROW=") -> str:
    """One line for each comparison of every row that was measured; names: of these, by default those of the CPU.

    memory: the peak of our process as a share of the baseline's.
    """
    lines = []
    for name in all_rows("ROWS") if names is None else names:
        path = results / f"{name}.json"
        found = read_json(path) if path.exists() else {}
        if found.get("ours") not in found.get("contenders", {}):
            continue
        rates = {contender: rounded(it["rate"]["median"]) for contender, it in found["contenders"].items()}
        first = (f"`{name}`", f"{rates[found['ours']]} {found['unit']}")
        for baseline, ratio in found["ratios"].items():
            median, lowest, highest = (f"{ratio[key]:.3g}" for key in ("median", "lowest", "highest"))
            target = "" if ratio["target"] is None else f"{ratio['target']:g}, {'met' if ratio['met'] else 'not met'}"
            memory = f"{ratio['peak_memory']:.2f}" if "peak_memory" in ratio else ""
            lines.append(
                (*first, f"{baseline}, {rates[baseline]}", f"{median} ({lowest} to {highest})", target, memory)
            )
            first = ("", "")
    return tabulate(lines, [header.format(command) for header in HEADERS], tablefmt="pipe", disable_numparse=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    if folder := parser.parse_args().folder:
        print(markdown(folder, GPU_ROWS, GPU_COMMAND))
    else:
        print(markdown(RESULTS))
