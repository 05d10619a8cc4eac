"""`dvc` and `scratchlm` for the tests: each command is a process of its own, forked from one that has imported DVC.

Importing it takes half a second of processor time, and the tests call these commands more than a hundred times. So is
each stage that such a `dvc` runs, because importing torch takes more than a second. tests/pipeline/test_workflows.py
compares what they make with the bytes of a `dvc` and stages that were started as usual.
"""

import atexit
import gc
import json
import os
import runpy
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path

PROGRAMS = {"dvc": "dvc.cli", "scratchlm": "scratchlm.cli.main"}  # by name, the module with main()
# What they and the stages import when they need it
PRELOADED = (
    "dulwich.client", "dulwich.diff_tree", "dulwich.ignore", "dvc._debug", "dvc.cachemgr", "dvc.cli.parser",
    "dvc.commands.repro", "dvc.data_cloud", "dvc.lock", "dvc.repo", "dvc.repo.index", "dvc.repo.reproduce",
    "dvc.rwlock", "dvc.scm", "dvc.stage.run", "dvc_render.vega", "networkx", "ruamel.yaml",
    "scmrepo.git.backend.dulwich", "scmrepo.git.backend.pygit2", "scratchlm.compare.compare", "scratchlm.compare.text",
    "scratchlm.verify.verify",
    "numba", "pyarrow.parquet", "requests", "safetensors.torch", "tiktoken", "torch",
)  # fmt: skip
READ_AT_IMPORT = ("ATEN_", "DNNL_", "GOMP_", "KMP_", "MKL_", "OMP_", "ONEDNN_", "OPENBLAS_")  # variables of torch


def run_forked(
    program: str, words: Sequence[str], folder: Path, variables: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a program of PROGRAMS with these words and variables in a folder, as subprocess.run would."""
    with tempfile.TemporaryDirectory() as scratch:
        out, err = Path(scratch, "out"), Path(scratch, "err")
        request = {"folder": str(folder), "variables": dict(variables), "files": [str(out), str(err)]}
        server = _server(tuple(sorted(item for item in variables.items() if item[0].startswith(READ_AT_IMPORT))))
        assert server.stdin and server.stdout
        server.stdin.write(json.dumps(request | {"program": program, "words": words}) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess([program, *words], status, out.read_text(), err.read_text())


@cache
def _server(read_at_import: tuple[tuple[str, str], ...]) -> subprocess.Popen[str]:
    """One for each process of a test run and these variables; it ends with its input, so with that process."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(READ_AT_IMPORT)}
    return subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=others | dict(read_at_import),
    )  # fmt: skip


def serve() -> None:
    """Fork a process for each line of the input; print its exit status when it has ended."""
    for name in (*PROGRAMS.values(), *PRELOADED):
        import_module(name)
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
    if program == "dvc":
        _fork_stages()
    _end_after(import_module(PROGRAMS[program]).main)


def _fork_stages() -> None:
    """Let this DVC start its stages from a child that is forked now, before DVC has threads."""
    from dvc.stage import run
    from dvc.stage.exceptions import StageCmdFailedError

    start = run._run
    here, there = (end.makefile("rw") for end in socket.socketpair())
    if os.fork() == 0:
        here.close()
        for line in there:
            if (pid := os.fork()) == 0:
                _become_stage(**json.loads(line))
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=there, flush=True)
        os._exit(0)

    def start_or_fork(executable: str, command: str, cwd: str, env: dict[str, str], **options: object) -> None:
        words = shlex.split(command)
        if words[:2] != ["python", "-m"] or not words[2].startswith("stages."):
            start(executable, command, cwd=cwd, env=env, **options)
            return
        print(json.dumps({"words": words[2:], "folder": cwd, "variables": env}), file=here, flush=True)
        if status := int(here.readline()):
            raise StageCmdFailedError(command, status)

    there.close()
    run._run = start_or_fork


def _become_stage(words: list[str], folder: str, variables: dict[str, str]) -> None:
    """As `python -m` does in the folder, with the library that the variables name."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    for name in [name for name in sys.modules if name.partition(".")[0] == "scratchlm"]:
        del sys.modules[name]
    installed = [path for path in sys.path if path.startswith((sys.prefix, sys.base_prefix))]
    sys.path[:] = [folder, *variables["PYTHONPATH"].split(os.pathsep), *installed]
    sys.argv = words
    _end_after(lambda: runpy.run_module(words[0], run_name="__main__", alter_sys=True) and None)


def _end_after(main: Callable[[], int | None]) -> None:
    """Call it and exit with its status, but do not take the imported modules apart: that takes 0.2 s."""
    try:
        status: object = main()
    except SystemExit as end:
        status = end.code
    if isinstance(status, str):
        print(status, file=sys.stderr)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


if __name__ == "__main__":
    serve()
