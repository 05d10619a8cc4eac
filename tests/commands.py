"""The command line in this process: starting Python and torch for each command takes longer than most commands do."""

import contextlib
import io
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from unittest import mock

from scratchlm.cli.main import main
from scratchlm.data import web
from tests.web import Server


def scratchlm(folder: Path, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Call `scratchlm` with these words in a folder and `given` as its input, as a process of its own would."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(folder),
        mock.patch.multiple(sys, argv=["scratchlm", *words], stdin=io.TextIOWrapper(io.BytesIO(given.encode()))),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:  # as the interpreter does
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=err)
    return subprocess.CompletedProcess([*words], status, out.getvalue(), err.getvalue())


def interrupted(folder: Path, server: Server, path: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Start Python with these words in a folder, and press Ctrl-C once it waits for a path that `server` never sends.

    Fails if the process then waits for the server.
    """
    held, asked = Event(), Event()

    def nothing() -> Iterator[bytes]:
        asked.set()
        held.wait()
        yield b""

    server.bodies[path] = nothing
    with subprocess.Popen([sys.executable, *words], cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        assert asked.wait(60)
        for _ in range(3):
            process.send_signal(signal.SIGINT)  # Python can miss one while it begins to wait
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(web.TIMEOUT_SECONDS[1] / 4)
                break
        held.set()
        return subprocess.CompletedProcess([*words], process.wait(), "", process.communicate()[1])
