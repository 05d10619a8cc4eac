"""Random command lines over all commands and stages, in a built clone; tests/README.md says how to run it.

The options come from the parsers themselves. Each command line runs in a forked process that is killed after
LIMIT_SECONDS. Commands that would rebuild or retrain get arguments that they must refuse. A finding is a traceback, a
defect, a signal, an unknown status, a command that does not end, or a change to a file that is not its output.
"""

import argparse
import ctypes
import importlib
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple, get_args

import typer

from scratchlm.cli.main import app
from scratchlm.cli.main import main as command_line
from scratchlm.run.pipeline import paths, read_stages
from tests.fuzz.findings import Findings

LIMIT_SECONDS = 60
TOKENIZER = "data/tokens/finetuning_tokenizer"
COMPUTING, COMPUTING_SECONDS = ("chat", "stages."), 15  # may take longer, and are then ended
STATUSES = (0, 1, 2)
NOT_THE_USERS = (".git/index", ".dvc/tmp", ".scratchlm", "__pycache__", ".git/objects", "logs/")
WORDS = [
    "", " ", "-", "--", "é", "ไม่", "\x1b[31m", "a\nb", "\udcff", "a" * 300, "a" * 5000, "%s", "{}", "${seed}", "*",
    "~", "..", "/", "HEAD~99", "HEAD@{9}", "HEAD:params.yaml", ":/x", "no-such-branch", "-1", "0", "0x10", "1e3",
    "nan", "inf", "-inf", "9" * 30, "9" * 5000, "1.5", "True", "none", "null", "workspace", "\u202e",
    "refs/heads/main^{tree}", "@", "@{u}",
]  # fmt: skip
PATHS = [
    "mine/none", "mine/none/none", "mine/empty", "mine/fifo", "mine/locked", "mine/locked/a", "mine/text", "mine/link",
    "mine/binary", "mine/é ไม่.json", "/dev/null", "/dev/full", "/dev/zero", "/proc/self/mem", "/", ".", "..",
    "params.yaml", "data", "data/models", "data/models/finetune_instruct", "data/models/finetune_spam",
    "data/models/pretrain", "mine", "data/models/gpt2-nano", TOKENIZER, "data/tokens/corpus", "metrics",
    "data/raw", "mine/text/x", "dvc.lock", "mine/exported", "data/responses/generate/instruct.parquet", "data/samples",
    "mine/params.yaml", "dvc.yaml",
]  # fmt: skip
NEW = [
    "mine/new", "mine/new.png", "mine/new.svg", "mine/new.pdf", "mine/new.gguf", "mine/none/new.png",
    "mine/locked/new",
]  # fmt: skip
UNWRITABLE = [
    "mine/none/x", "mine/locked/x", "mine/text/x", "mine/fifo", "mine/fifo/x", "mine/" + "a" * 300,
]  # fmt: skip
REVISIONS = [
    "HEAD", "main", "HEAD~1", "HEAD~5", "workspace", "mine-branch", "mine-tag", "HEAD^{commit}",
]  # fmt: skip
OUTPUTS = ("output", "plot", "file")
MUST_BE_REFUSED = {"verify": ("against", "stages"), "seeds": ("stage",), "build": ("revisions",)}
FOLDERS = [
    ".", ".", ".", ".", "src", "mine", "mine/empty", "mine/é ไม่", "metrics/plots", "/proc", "mine/gone", "mine/fixed",
]  # fmt: skip
TEXTS = [
    b"", b"\n", b"Hello\n", b"What is the capital of France?\nAnd of Italy?\n\n", b"\xff\xfe\n", b"\x00\n",
    b"a" * 9000 + b"\n", "é ไม่ \u202e <|endoftext|> \x1b[2J\n".encode(), b"\r\n\r\n", b" " * 500 + b"x\n",
    b"no end of line",
]  # fmt: skip
ENVIRONMENTS: list[dict[str, str]] = [
    {}, {}, {}, {}, {"LC_ALL": "C"}, {"COLUMNS": "1"}, {"TERM": "dumb"}, {"HOME": "/proc/nowhere"}, {"PATH": ""},
    {"TMPDIR": "/proc/nowhere"}, {"GIT_DIR": "/proc/nowhere"}, {"SCRATCHLM_MIRROR": "/proc/nowhere"},
    {"PYTHONIOENCODING": "ascii"}, {"NO_COLOR": "1"},
]  # fmt: skip


class Case(NamedTuple):
    words: list[str]
    folder: str
    stdin: bytes
    environment: dict[str, str]
    stdout: str


COMMANDS: dict[str, list[Any]] = {
    name: command.params
    for name, command in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
    if name != "repro"  # it rebuilds, and has no argument to refuse
}


def sound(draw: random.Random, command: str, parameter: Any) -> str:
    name, kind = parameter.name, parameter.type_descriptor.annotation
    choices = [choice for part in (kind, *get_args(kind)) for choice in get_args(part) if isinstance(choice, str)]
    if choices:
        return draw.choice(choices)
    if name in ("revisions", "against"):
        return draw.choice(REVISIONS)
    if kind in (int, float):
        return str(kind(draw.choice([0, 0.5, 1, 2, 5, 20, 100])))
    if name in OUTPUTS:
        return draw.choice(NEW)
    known = {"model": "data/models/finetune_spam" if command == "classify" else "data/models/finetune_instruct"}
    known |= {"tokenizer": TOKENIZER, "source": "mine/exported", "text": "You have won a prize"}
    return known.get(name, draw.choice(PATHS))


def hostile(draw: random.Random, *, is_output: bool = False) -> str:
    """A hostile word; of an output, none outside the clone, because root could replace what is there."""
    words = [word for word in draw.choice([WORDS, PATHS, NEW]) if not (is_output and word.startswith(("/", "..", "~")))]
    return draw.choice(words)


def words_of_command(draw: random.Random, command: str, parameters: list[Any]) -> list[str]:
    words: list[str] = []
    sane = draw.choice([0.5, 0.8, 0.95])
    for parameter in parameters:
        must_fail = parameter.name in MUST_BE_REFUSED.get(command, ())
        if parameter.param_type_name == "argument":
            n = draw.choice([1, 2, 2, 3]) if parameter.nargs == -1 else draw.choice([1] * 9 + [0, 2])
        else:
            n = 1 if must_fail or parameter.required else draw.choice([0, 0, 1, 1, 1, 2])
        for _ in range(n):
            is_sound = not must_fail and draw.random() < sane
            is_output = parameter.name in OUTPUTS
            given = sound(draw, command, parameter) if is_sound else hostile(draw, is_output=is_output)
            given = f"no-{given}" if must_fail and given in (*REVISIONS, "@") else given
            if parameter.param_type_name == "argument":
                words.append(given)
            elif getattr(parameter, "is_flag", False):
                words.append(parameter.opts[0])
            else:
                words += draw.choice([[parameter.opts[0], given], [f"{parameter.opts[0]}={given}"]])
    if draw.random() < 0.15:
        words.insert(
            draw.randrange(len(words) + 1), draw.choice(["--help", "--none", "-h", "--", "--format", hostile(draw)])
        )
    return [command, *words]


def words_of_stage(draw: random.Random, stages: dict[str, Any]) -> list[str]:
    """A stage with its options of dvc.yaml, of which at least one leads to a refusal; outputs are in mine/."""
    name = draw.choice(list(stages))
    definition = stages[name]["cmd"].split()[2:]
    script, options = definition[0], list(zip(definition[1::2], definition[2::2], strict=True))
    outputs = paths(stages[name].get("outs", []) + stages[name].get("metrics", []) + stages[name].get("plots", []))
    computes = "finetune" in name or name.partition("@")[0] in (
        "pretrain",
        "generate",
    )  # else it would find an output only at the end
    spoilt = draw.choice([option for option, path in options if not (computes and path in outputs)])
    words = []
    for option, path in options:
        is_output = path in outputs or option in ("--log", "--resume", "--store")
        given = f"mine/new/{Path(path).name}" if is_output else path
        if option == spoilt or draw.random() < 0.1:
            given = draw.choice(UNWRITABLE) if is_output else hostile(draw)
        words += [option, given]
    if draw.random() < 0.1:
        del words[draw.randrange(len(words))]
    return [script, *words]


def snapshot(clone: Path) -> dict[str, Any]:
    """What every path of the clone is: kind, size and time of its last change; not of what nobody reads."""
    found = {}
    for folder, folders, files in os.walk(clone):
        here = Path(folder)
        folders[:] = [name for name in folders if not str((here / name).relative_to(clone)).startswith(NOT_THE_USERS)]
        for name in (*folders, *files):
            path = here / name
            inside = str(path.relative_to(clone))
            status = path.lstat()
            if not any(part in inside for part in NOT_THE_USERS):
                is_folder = path.is_dir() and not path.is_symlink()
                found[inside] = (status.st_mode, None if is_folder else (status.st_size, status.st_mtime_ns))
    return found


def make_mine(clone: Path) -> None:
    """Files of the user's, of every kind, that git does not have."""
    mine = clone / "mine"
    (mine / "empty").mkdir(parents=True)
    (mine / "locked").mkdir(mode=0)
    (mine / "fixed").mkdir(mode=0o500)
    (mine / "é ไม่").mkdir()
    os.mkfifo(mine / "fifo")
    (mine / "text").write_text("mine\n")
    (mine / "binary").write_bytes(bytes(range(256)) * 40)
    (mine / "é ไม่.json").write_text('{"a": 1}')
    (mine / "params.yaml").write_text("seed: 1\n")
    (mine / "link").symlink_to("none")
    (clone / "metrics" / "mine.json").write_text('{"loss": 1}')
    (clone / "data" / "mine.csv").write_text("a,b\n1,2\n")
    for words in (["branch", "mine-branch"], ["tag", "mine-tag"], ["branch", "-f", "main"]):
        subprocess.run(["git", "-C", str(clone), *words], capture_output=True, check=False)


def obey_permissions() -> None:
    """Let permissions hold for root too: drop the capabilities to override them, of this process and its children."""
    if os.getuid() or sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
        for i in range(3):
            sets[i] &= ~(1 << capability)
    assert libc.capset(header, sets) == 0


def child(case: Case, clone: Path, output: Path) -> None:
    """Run a command line in this process, and end it as Python would."""
    status = 1
    try:
        os.setsid()
        (output / "stdin").write_bytes(case.stdin)
        os.dup2(os.open(output / "stdin", os.O_RDONLY), 0)
        os.dup2(os.open(case.stdout or output / "stdout", os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(os.open(output / "stderr", os.O_WRONLY | os.O_CREAT), 2)
        encoding = case.environment.get("PYTHONIOENCODING", "utf-8")
        for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w")):
            setattr(sys, name, open(number, mode, encoding=encoding, closefd=False))  # noqa: SIM115, PTH123
        sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115, PTH123
        obey_permissions()
        os.environ.update(case.environment)
        tempfile.tempdir = None
        place = Path(os.path.normpath(clone / case.folder))
        place.mkdir(exist_ok=True)
        os.chdir(place)
        if case.folder.endswith("gone"):
            place.rmdir()
        sys.argv = ["scratchlm", *case.words]
        if case.words and case.words[0].startswith("stages."):
            sys.argv = case.words
            runpy.run_module(case.words[0], run_name="__main__", alter_sys=True)
        else:
            command_line()
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = 1 if isinstance(end.code, str) else int(end.code or 0)
    except BaseException:  # noqa: BLE001 - as Python itself would
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            status = 120  # as Python itself would
        os._exit(status)


def run(case: Case, clone: Path, output: Path) -> tuple[int | None, str]:
    """The status (None: killed, because it took too long) and standard error of a command line."""
    for name in ("stdout", "stderr"):
        (output / name).unlink(missing_ok=True)
    process = os.fork()
    if not process:
        child(case, clone, output)
    computes = bool(case.words) and case.words[0].startswith(COMPUTING)
    end = time.monotonic() + (COMPUTING_SECONDS if computes else LIMIT_SECONDS)
    status: int | None = None
    while time.monotonic() < end:
        found, code = os.waitpid(process, os.WNOHANG)
        if found:
            status = os.waitstatus_to_exitcode(code)
            break
        time.sleep(0.01)
    else:
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
    errors = output / "stderr"
    return status, errors.read_text(encoding="utf-8", errors="replace") if errors.exists() else ""


def draw_case(draw: random.Random, stages: dict[str, Any]) -> Case:
    if draw.random() < 0.25:
        words = words_of_stage(draw, stages)
    else:
        ((name, parameters),) = draw.choices(list(COMMANDS.items()), [1 + len(found) for found in COMMANDS.values()])
        words = words_of_command(draw, name, parameters)
        if draw.random() < 0.03:
            words = draw.choice([[], words[1:], [hostile(draw), *words[1:]]])
    words = [word.replace("\0", "") for word in words]
    stdout = draw.choice([""] * 14 + ["/dev/full"])
    return Case(words, draw.choice(FOLDERS), draw.choice(TEXTS), draw.choice(ENVIRONMENTS), stdout)


def mistakes(case: Case, status: int | None, errors: str) -> str | None:
    """The kind of finding that a run is, if it is one."""
    command = case.words[0] if case.words else ""
    if "Traceback (most recent" in errors or "defect of scratchlm" in errors:
        last = errors.strip().splitlines()[-1].partition(":")[0].strip().split(".")[-1]
        return f"traceback-{last[:40]}"
    if status is None:
        return None if command.startswith(COMPUTING) else "endless"
    if status not in STATUSES:
        return f"status-{status}"
    return "silent" if status and command and not errors.strip() else None


def is_named(path: Path, clone: Path, case: Case) -> bool:
    """Whether a command line names a path, or one above or below it: then it may be new."""
    named = [clone / case.folder / word.rpartition("=")[2] for word in case.words if word]
    return any(path == name or path in name.parents or name in path.parents for name in map(normal, named))


def normal(path: Path) -> Path:
    return Path(os.path.normpath(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for the findings")
    parser.add_argument("--clone", type=Path, required=True, help="a built clone, which is copied")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first run")
    own = parser.parse_args()
    findings, counts = Findings(own.folder), Counter[str]()
    output = Path(tempfile.mkdtemp())
    clone = output / "clone"
    subprocess.run(["cp", "-r", "--reflink=auto", str(own.clone), str(clone)], check=True)
    make_mine(clone)
    os.chdir(clone)
    stages = read_stages()
    for name in ("dvc.repo", "scratchlm.formats.huggingface", "scratchlm.compare.compare", "scratchlm.fast.decoding",
                 "scratchlm.verify.verify", "stages.preflight"):  # fmt: skip
        importlib.import_module(name)  # once, instead of in each process
    before = snapshot(clone)
    for number in range(own.first, own.first + own.runs):
        draw = random.Random(f"{own.seed} {number}")
        case = draw_case(draw, stages)
        began = time.monotonic()
        status, errors = run(case, clone, output)
        words = [word if len(word) < 60 else f"{word[:20]}… ({len(word)})" for word in case.words]
        seconds = time.monotonic() - began
        told = f"run {number}, status {status}, {seconds:.0f} s: {words} in {case.folder} with {case.environment}"
        command = case.words[0] if case.words else "none"
        counts[f"status {status}"] += 1
        if kind := mistakes(case, status, errors):
            findings.add(
                f"{command.replace('/', '-')[:30]}-{kind}", f"{case}\n\n{errors}".encode("utf-8", "replace"), told
            )
        after = snapshot(clone)
        changed = [path for path in {*before, *after} if before.get(path) != after.get(path)]
        if changed:
            new = [clone / path for path in changed if path not in before and is_named(clone / path, clone, case)]
            for path in new:
                subprocess.run(["rm", "-rf", str(path)], check=True)
            after = snapshot(clone)
            changed = [path for path in changed if before.get(path) != after.get(path)]
        if changed:
            text = f"{told}\n{sorted(changed)[:20]}"
            findings.add(
                f"{command.replace('/', '-')[:30]}-changed",
                f"{case}\n{text}\n{errors}".encode("utf-8", "replace"),
                text,
            )
            before = after
        if (number + 1) % 50 == 0:
            print(f"{number + 1}: {dict(counts)}, findings {findings.kinds}", flush=True)
    subprocess.run(["rm", "-rf", str(output)], check=True)


if __name__ == "__main__":
    main()
