"""The command line in this process: starting Python and torch for each command takes longer than most commands do."""

import contextlib
import io
import subprocess
import sys
from pathlib import Path
from unittest import mock

from scratchlm.cli.main import main


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
