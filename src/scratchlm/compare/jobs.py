"""DVC commands in several clones at once, with what they print on one terminal."""

import sys
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from subprocess import Popen
from typing import NamedTuple

from scratchlm.compare.git import dvc_processes


class Ended(NamedTuple):
    """A command that has ended."""

    number: int
    clone: Path
    status: int  # 0 if it succeeded


# Lines of `dvc exp run` that mislead outside of its clone, such as those on results "applied to your workspace"
OF_THE_CLONE = (b"Experiment results have been applied", b"Ran experiment(s): ", b"Updating lock file ", b"> python ")


def run_each(clones: Sequence[Path], unit: str, commands: Mapping[int, Sequence[str]]) -> Generator[Ended, None, None]:
    """Run DVC commands, one at a time in each clone; yield each as it ends. After a failure, start no more.

    commands: the words of each by its number, at least as many as clones; they start in this order. unit: what the
    numbers are, such as seed. Each line that a command prints goes to standard error, after unit and number.
    A clone gets its next command when the caller asks for more, so its files can be read until then. Close the
    generator to stop the commands.
    """
    waiting = [*commands.items()]
    running: dict[Future[int], tuple[int, Path]] = {}
    with ThreadPoolExecutor(len(clones)) as pool, dvc_processes() as start:

        def begin(clone: Path) -> None:
            number, words = waiting.pop(0)
            running[pool.submit(_show, f"{unit} {number}: ", start(clone, *words))] = number, clone

        for clone in clones:
            begin(clone)
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                number, clone = running.pop(future)
                if future.result():
                    waiting.clear()
                yield Ended(number, clone, future.result())
                if waiting:
                    begin(clone)


def _show(prefix: str, process: Popen[bytes]) -> int:
    """Copy whole lines that are neither blank nor about the clone; return the exit status.

    Lines of several processes do not mix.
    """
    assert process.stdout
    with process.stdout as lines:
        for line in lines:
            if not line.strip() or line.startswith(OF_THE_CLONE):
                continue
            sys.stderr.buffer.write(prefix.encode() + line)
            sys.stderr.flush()
    return process.wait()
