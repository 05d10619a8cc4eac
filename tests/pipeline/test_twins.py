"""Two clones that share nothing give the same bits, in circumstances as different as one machine allows."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clones import make_clone, results, run

# A process that keeps one core busy while the second clone is built
BUSY = [sys.executable, "-c", "while True: pass"]


def twin(folder: Path, profile: str, umask: int, **circumstances: str) -> Path:
    """A clone with its own HOME and temporary folder, rebuilt from nothing under `profile`."""
    clone = make_clone(folder / "scratchlm")
    shutil.copy(clone / "profiles" / f"{profile}.yaml", clone / "params.yaml")
    for name in ("home", "tmp"):
        (folder / name).mkdir()
    own = {"HOME": str(folder / "home"), "XDG_CACHE_HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}
    before = os.umask(umask)
    try:
        run(clone, "dvc", "repro", **own, **circumstances)
    finally:
        os.umask(before)
    return clone


def assert_twins(folder: Path, profile: str, **sources: str) -> Path:
    """Build both, return the first; sources: SCRATCHLM_MIRROR, where the profile needs what the repository lacks."""
    first = twin(
        folder / "a", profile, 0o022,
        LC_ALL="C", TZ="UTC", PYTHONHASHSEED="0", **sources,
    )  # fmt: skip
    busy = subprocess.Popen(BUSY)
    try:
        second = twin(
            folder / "somewhere else" / "deeper", profile, 0o077,
            LC_ALL="C.UTF-8", TZ="Asia/Kathmandu", PYTHONHASHSEED="12345", COLUMNS="40", **sources,
        )  # fmt: skip
    finally:
        busy.kill()
        busy.wait()
    assert len(results(first)) > 10
    assert results(second) == results(first)
    return first


@pytest.mark.slow
def test_two_clones_of_the_sample_that_share_nothing_have_the_same_lock_file_and_metrics(tmp_path: Path) -> None:
    clone = assert_twins(tmp_path, "sample")
    records = [json.loads(line) for path in (clone / "logs").glob("*.jsonl") for line in path.open()]
    assert max(record["peak_memory_bytes"] for record in records if "stage" in record) <= 2 * 2**30
