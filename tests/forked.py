"""`dvc` and `scratchlm` for the tests: each command is a process of its own, forked from one that has imported DVC.

Importing it takes half a second of processor time, and the tests call these commands more than a hundred times.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path

PROGRAMS = {"dvc": "dvc.cli", "scratchlm": "scratchlm.cli.main"}  # by name, the module with main()
# What they import when they need it. Not torch, which reads variables when it is imported
PRELOADED = (
    "dulwich.client", "dulwich.diff_tree", "dulwich.ignore", "dvc._debug", "dvc.cachemgr", "dvc.cli.parser",
    "dvc.commands.repro", "dvc.data_cloud", "dvc.lock", "dvc.repo", "dvc.repo.index", "dvc.repo.reproduce",
    "dvc.rwlock", "dvc.scm", "dvc.stage.run", "dvc_render.vega", "networkx", "ruamel.yaml",
    "scmrepo.git.backend.dulwich", "scmrepo.git.backend.pygit2", "scratchlm.compare.compare", "scratchlm.compare.text",
    "scratchlm.verify.verify",
)  # fmt: skip


def run_forked(
    program: str, words: Sequence[str], folder: Path, variables: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a program of PROGRAMS with these words and variables in a folder, as subprocess.run would."""
    with tempfile.TemporaryDirectory() as scratch:
        out, err = Path(scratch, "out"), Path(scratch, "err")
        request = {"folder": str(folder), "variables": dict(variables), "files": [str(out), str(err)]}
        server = _server()
        assert server.stdin and server.stdout
        server.stdin.write(json.dumps(request | {"program": program, "words": words}) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess([program, *words], status, out.read_text(), err.read_text())


@cache
def _server() -> subprocess.Popen[str]:
    """One for each process of a test run; it ends with its input, so with that process."""
    return subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def serve() -> None:
    """Fork a process for each line of the input; print its exit status when it has ended."""
    for name in (*PROGRAMS.values(), *PRELOADED):
        import_module(name)
    assert "torch" not in sys.modules
    gc.freeze()
    for line in sys.stdin:
        if (pid := os.fork()) == 0:
            _become(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _become(program: str, words: list[str], folder: str, variables: dict[str, str], files: list[str]) -> None:
    for number, name in enumerate([os.devnull, *files]):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT, 0o644), number)
    sys.stdin = os.fdopen(0)  # the old one has read the request
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = [str(Path(sys.executable).with_name(program)), *words]
    sys.exit(import_module(PROGRAMS[program]).main())


if __name__ == "__main__":
    serve()
