"""Compare the outputs of two builds, by the hashes in their dvc.lock files.

    python tools/same_results.py before/dvc.lock after/dvc.lock

prints every output that differs and exits with status 1 if any does. It ignores data/code, which records
the code itself, and data/report.html, whose words and graph change with the code.
"""

import sys
from pathlib import Path
from typing import Any

import yaml

LEFT_OUT = ("data/code", "data/report.html")


def results(lock: Path) -> dict[str, Any]:
    """Return the hash of every output by path."""
    stages = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"]
    outs = [out for stage in stages.values() for out in stage.get("outs", [])]
    return {out["path"]: out["md5"] for out in outs if not out["path"].startswith(LEFT_OUT)}


def main(before: Path, after: Path) -> int:
    """Print every output that differs; return the exit status."""
    old, new = results(before), results(after)
    different = [path for path in dict.fromkeys((*old, *new)) if old.get(path) != new.get(path)]
    for path in different:
        print(f"{path}: {old.get(path, 'absent')} -> {new.get(path, 'absent')}")
    print(f"{len(old)} outputs before, {len(new)} after, {len(different)} differ")
    return min(1, len(different))


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
