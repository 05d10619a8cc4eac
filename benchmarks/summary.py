"""Print the table of benchmarks/results/ as Markdown: `python -m benchmarks.summary`."""

from pathlib import Path

from tabulate import tabulate

from benchmarks.harness import RESULTS, rounded
from benchmarks.run import all_rows
from scratchlm.run.files import read_json

HEADERS = (
    "`make bench ROW=`",
    "scratchlm, per second",
    "baseline",
    "times as fast (lowest to highest)",
    "target",
    "memory",
)


def markdown(results: Path) -> str:
    """One line for each comparison of every row that was measured.

    memory: the peak of our process as a share of the baseline's.
    """
    lines = []
    for name in all_rows("ROWS"):
        path = results / f"{name}.json"
        if not path.exists():
            continue
        found = read_json(path)
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
    return tabulate(lines, HEADERS, tablefmt="pipe", disable_numparse=True)


if __name__ == "__main__":
    print(markdown(RESULTS))
