"""README's table of what `make bench` measured: `python -m benchmarks.summary` prints it from benchmarks/results/."""

from pathlib import Path

from tabulate import tabulate

from benchmarks.harness import RESULTS, figure
from benchmarks.run import all_rows
from scratchlm.run.files import read_json

HEADERS = ("`make bench ROW=`", "scratchlm, per second", "peer", "times as fast (lowest to highest)", "bar", "memory")


def markdown(results: Path) -> str:
    """One line for each comparison of every row that was measured.

    memory: our process' peak as a share of the peer's.
    """
    lines = []
    for name in all_rows("ROWS"):
        path = results / f"{name}.json"
        if not path.exists():
            continue
        found = read_json(path)
        rates = {contender: figure(it["rate"]["median"]) for contender, it in found["contenders"].items()}
        first = (f"`{name}`", f"{rates[found['ours']]} {found['unit']}")
        for peer, ratio in found["ratios"].items():
            median, lowest, highest = (f"{ratio[key]:.3g}" for key in ("median", "lowest", "highest"))
            bar = "" if ratio["bar"] is None else f"{ratio['bar']:g}, {'met' if ratio['met'] else 'not met'}"
            memory = f"{ratio['peak_memory']:.2f}" if "peak_memory" in ratio else ""
            lines.append((*first, f"{peer}, {rates[peer]}", f"{median} ({lowest} to {highest})", bar, memory))
            first = ("", "")
    return tabulate(lines, HEADERS, tablefmt="pipe", disable_numparse=True)


if __name__ == "__main__":
    print(markdown(RESULTS))
