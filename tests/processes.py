"""The processes that a test has started for a folder, with those that they have started."""

import time
from pathlib import Path

import psutil


def processes_of(folder: Path, module: str = "") -> list[psutil.Process]:
    """Those whose command line names the folder and, if it is given, the module that they run."""
    lines = ((process, " ".join(process.info["cmdline"] or [])) for process in psutil.process_iter(["cmdline"]))
    return [process for process, line in lines if str(folder) in line and (not module or f"-m {module}" in line)]


def wait_for_processes(n: int, folder: Path, module: str = "") -> list[psutil.Process]:
    """Wait until there are n of them, for a minute at most, and return these."""
    deadline = time.monotonic() + 60
    while len(found := processes_of(folder, module)) != n:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found
