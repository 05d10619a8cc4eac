"""`dvc` and `scratchlm` for the tests: each command is a process of its own, forked from one that has imported DVC.

Importing it takes half a second of processor time, and the tests call these commands more than a hundred times. So is
each `dvc` that such a `scratchlm` starts, and each stage that either runs, because importing torch takes more than a
second. tests/pipeline/test_workflows.py compares what they make with the bytes of a `dvc` and stages that were started
as usual.
"""

import atexit
import gc
import json
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

PROGRAMS = {"dvc": "dvc.cli", "scratchlm": "scratchlm.cli.main"}  # by name, the module with main()
# What they and the stages import when they need it
PRELOADED = (
    "dulwich.client", "dulwich.diff_tree", "dulwich.ignore", "dvc._debug", "dvc.cachemgr", "dvc.cli.parser",
    "dvc.commands.repro", "dvc.data_cloud", "dvc.lock", "dvc.repo", "dvc.repo.index", "dvc.repo.reproduce",
    "dvc.rwlock", "dvc.scm", "dvc.stage.run", "dvc_render.vega", "networkx", "ruamel.yaml",
    "scmrepo.git.backend.dulwich", "scmrepo.git.backend.pygit2", "scratchlm.compare.compare", "scratchlm.compare.text",
    "scratchlm.verify.verify",
    "jinja2", "matplotlib.backends.backend_svg", "numba", "pyarrow.parquet", "requests", "safetensors.torch",
    "scipy.stats", "sklearn.feature_extraction.text", "sklearn.linear_model", "tiktoken", "torch",
)  # fmt: skip
READ_AT_IMPORT = ("ATEN_", "DNNL_", "GOMP_", "KMP_", "MKL_", "OMP_", "ONEDNN_", "OPENBLAS_")  # variables of torch
TEMPORARY = tempfile.gettempdir()  # before a test changes it
CLIENT = """
import json, os, socket, sys
request = {"words": sys.argv[3:], "folder": os.getcwd(), "variables": dict(os.environ)}
os.chdir(sys.argv[1])
connection = socket.socket(socket.AF_UNIX)
connection.connect("socket")  # few characters, which such an address must have
socket.send_fds(connection, [sys.argv[2].encode() + b" "], [0, 1, 2])
connection.sendall(json.dumps(request).encode())
connection.shutdown(socket.SHUT_WR)
sys.exit(int(connection.recv(16)))
"""


def forking(variables: Mapping[str, str]) -> Path:
    """The folder of executable files, named as PROGRAMS, that let a server fork the program: they start at once.

    variables: those of torch hold for all that is forked, and the others are those that the file is called with.
    """
    return _serving(tuple(sorted(item for item in variables.items() if item[0].startswith(READ_AT_IMPORT))))


@cache
def _serving(read_at_import: tuple[tuple[str, str], ...]) -> Path:
    """One for each process of a test run and these variables; it ends with its input, so with that process."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(READ_AT_IMPORT)}
    folder = tempfile.TemporaryDirectory(prefix="scratchlm-forking-", dir=TEMPORARY)
    atexit.register(folder.cleanup)
    server = subprocess.Popen(
        [sys.executable, __file__, folder.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=others | dict(read_at_import),
    )  # fmt: skip
    assert server.stdout and server.stdout.readline(), "the server has not started"
    return Path(folder.name)


def serve(folder: str) -> None:
    """Write the executable files; fork a process for each call of one, until the input ends."""
    for name in (*PROGRAMS.values(), *PRELOADED):
        import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that answer
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(folder)
        listener.bind("socket")
        listener.listen()
        for program in PROGRAMS:
            client = shlex.join([sys.executable, "-ISc", CLIENT, folder, program])
            Path(folder, program).write_text(f'#!/bin/sh\nexec {client} "$@"\n')
            Path(folder, program).chmod(0o755)
        print("ready", flush=True)
        while sys.stdin not in select.select([sys.stdin, listener], [], [])[0]:
            with listener.accept()[0] as connection:
                if os.fork() == 0:
                    listener.close()
                    _answer(connection, folder)


def _answer(connection: socket.socket, folder: str) -> None:
    """Fork the process that a client asks for, and tell the client its exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    received, files, _, _ = socket.recv_fds(connection, 1 << 16, 3)
    with connection.makefile("rb") as rest:
        program, _, request = (received + rest.read()).decode().partition(" ")
    if (pid := os.fork()) == 0:
        connection.close()
        _become(program, files, Path(folder), **json.loads(request))
    connection.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
    os._exit(0)


def _become(
    program: str, files: Sequence[int], clients: Path, words: list[str], folder: str, variables: dict[str, str]
) -> None:
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin = os.fdopen(0)  # the old one is the server's
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = [str(Path(sys.executable).with_name(program)), *words]
    _fork_stages()
    _fork_dvc(clients / "dvc")
    _end_after(import_module(PROGRAMS[program]).main)


def _fork_dvc(client: Path) -> None:
    """Let this process call the client where it starts a DVC of its own."""
    start = subprocess.Popen.__init__

    def start_or_fork(self: Any, command: Any, *others: Any, **options: Any) -> None:
        words = [client, *command[3:]] if command[:3] == [sys.executable, "-m", "dvc"] else command
        start(self, words, *others, **options)

    subprocess.Popen.__init__ = start_or_fork  # type: ignore[method-assign]


def _fork_stages() -> None:
    """Let this process, where it is DVC, start stages from a child that is forked now, before there are threads."""
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
    serve(sys.argv[1])
