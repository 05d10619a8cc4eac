"""Draw mutants of the modules that results rest on, and run the tests of each; tests/README.md says how.

The operators are mutmut's, applied to module level and decorated functions too, and one more that deletes a statement.
Sentences and annotations are not mutated. Every mutant is written into a copy of the tracked files, never into the
tree, and tested in a fork of a process that has the large libraries imported.
"""

import argparse
import difflib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import libcst as cst
from mutmut.mutation.mutators import mutation_operators

REPOSITORY = Path(__file__).resolve().parents[1]
LIBRARIES = (
    "torch numba numpy pandas pyarrow.parquet pydantic pytest hypothesis ruamel.yaml scipy.stats sklearn.metrics"
)
GROUPS = {  # a module of src/scratchlm -> its tests, in tests/unit
    "artifacts": {"run/files.py": "run/test_files.py run/test_errors.py"},
    "parameters": {"run/params.py": "run/test_params.py", "run/yaml_reader.py": "run/test_params.py"},
    "data": {
        "data/messages.py": "data/test_messages.py",
        "data/instructions.py": "data/test_instructions.py",
        "data/corpus.py": "data/test_corpus.py",
        "data/splits.py": "data/test_messages.py data/test_instructions.py",
        "data/tokenizer.py": "data/test_tokenizer.py",
        "data/byte_pairs.py": "data/test_byte_pairs.py data/test_tokenizer.py",
        "data/hub_tokenizer.py": "data/test_hub_tokenizer.py",
    },
    "resume": {
        "run/resume.py": "run/test_resume.py",
        "training/loop.py": "training/test_loop.py training/test_resuming.py",
    },
    "statistics": {
        "tasks/bootstrap.py": "tasks/test_bootstrap.py",
        "compare/seeds.py": "compare/test_seeds.py",
        "tasks/intervals.py": "tasks/test_intervals.py",
    },
    "compare": {
        "compare/records.py": "compare/test_records.py",
        "compare/changes.py": "compare/test_changes.py",
        "compare/text.py": "compare/test_text.py",
        "compare/processors.py": "compare/test_processors.py",
    },
    "overlap": {"judge/overlap.py": "judge/test_overlap.py"},
    "judge": {
        "judge/agreement.py": "judge/test_agreement.py",
        "judge/anchor.py": "judge/test_rating.py",
        "judge/pairwise.py": "judge/test_pairwise.py",
        "judge/rating.py": "judge/test_rating.py",
        "judge/win_rate.py": "judge/test_pairwise.py",
    },
}
IN_CLONES = {  # functions that run DVC, git or another process, which only the long tests call
    "run_seeds", "_refs", "_refuse_existing", "_metrics_file", "_check_inputs", "arithmetic_here", "_asked_once",
    "_arithmetic_here",
}  # fmt: skip


class Mutant(NamedTuple):
    """A changed module: its path under src/scratchlm, its code, and the difference from the original."""

    module: str
    code: str
    difference: str


def draw(modules: Iterable[str], number: int, seed: str) -> list[Mutant]:
    """Return some of the mutants that compile, each as likely as any other."""
    found: list[Mutant] = []
    sources = {name: (REPOSITORY / "src" / "scratchlm" / name).read_text(encoding="utf-8") for name in modules}
    trees = {name: cst.parse_module(text) for name, text in sources.items()}
    every = [(name, node, changed) for name, tree in trees.items() for node, changed in _changes(tree)]
    random.Random(seed).shuffle(every)
    for name, node, changed in every:
        code = trees[name].deep_replace(node, changed).code
        try:
            compile(code, name, "exec")
        except SyntaxError:
            continue
        lines = difflib.unified_diff(sources[name].splitlines(), code.splitlines(), lineterm="", n=0)
        found.append(Mutant(name, code, "\n".join(list(lines)[2:])))
        if len(found) == number:
            break
    print(f"{len(found)} of {len(every)} mutants drawn", flush=True)
    return found


def _changes(node: cst.CSTNode) -> Iterator[tuple[cst.CSTNode, cst.CSTNode]]:
    if isinstance(node, cst.Annotation | cst.Import | cst.ImportFrom):
        return
    if isinstance(node, cst.FunctionDef) and node.name.value in IN_CLONES:
        return
    if isinstance(node, cst.Expr | cst.Raise) and not isinstance(getattr(node, "value", None), cst.BaseString):
        yield node, cst.Pass()
    known = isinstance(node, cst.Call) and isinstance(node.func, cst.Name) and node.func.value in ("len", "isinstance")
    sentence = isinstance(node, cst.SimpleString) and " " in node.value
    if not known and not sentence:
        for kind, operator in mutation_operators:
            if isinstance(node, kind):
                for changed in operator(node):
                    yield node, changed
    for child in node.children:
        yield from _changes(child)


def copy_tree(folder: Path) -> Path:
    """Copy the tracked files into `folder`, and let this process and its children import the copy."""
    tree = folder / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, check=True, capture_output=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, tree / name)
    others = [path for path in sys.path if path and not Path(path).is_relative_to(REPOSITORY)]
    sys.path[:] = [str(tree / "src"), str(tree), *others]
    sys.modules.pop("tests", None)
    os.environ["PYTHONPATH"] = str(tree / "src")
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # of two mutants of one second and size, Python would run the first
    sys.dont_write_bytecode = True
    os.chdir(tree)
    for name in LIBRARIES.split():
        importlib.import_module(name)
    return tree


def outcome(tests: str, log: Path, limit_seconds: float) -> str:
    """Run tests in a fork of this process: "survived" if they pass, "killed", or "no end" within the limit."""
    child = os.fork()
    if not child:
        os.setsid()
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        import pytest

        paths = [f"tests/unit/{name}" for name in tests.split()]
        chosen = ["-m", "not slow and not gpu and not long"]
        os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=1", *chosen, *paths]))
    end = time.monotonic() + limit_seconds
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "no end"
        time.sleep(0.02)
    return "killed" if ended[1] else "survived"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for the copy and the results, outside the project")
    parser.add_argument("groups", nargs="*", choices=[*GROUPS, []], help="all if none is given")
    parser.add_argument("--draw", type=int, default=40, help="mutants of a group")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--survivors", action="store_true", help="only those that survived the last run in FOLDER")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    tree = copy_tree(folder)
    for group in arguments.groups or GROUPS:
        print(group, end=": ")
        chosen = draw(GROUPS[group], arguments.draw, f"{arguments.seed} {group}")
        results, survived = folder / f"{group}.json", []
        if arguments.survivors:
            last = json.loads(results.read_text())
            chosen = [mutant for mutant in chosen if [mutant.module, mutant.difference] in last]
        limits = {}
        for module, tests in GROUPS[group].items():
            start = time.monotonic()
            if outcome(tests, folder / "log", 600) != "survived":
                raise SystemExit(f"{module}: its tests fail without a mutant; read {folder / 'log'}")
            limits[module] = 10 + 3 * (time.monotonic() - start)
        for mutant in chosen:
            path = tree / "src" / "scratchlm" / mutant.module
            original = path.read_bytes()
            path.write_text(mutant.code, encoding="utf-8")
            ended = outcome(GROUPS[group][mutant.module], folder / "log", limits[mutant.module])
            if ended != "killed":
                print(f"{ended}: {mutant.module}\n{mutant.difference}", flush=True)
            if ended == "survived":
                survived.append([mutant.module, mutant.difference])
            path.write_bytes(original)
        results.write_text(json.dumps(survived, indent=2))
        print(f"{group}: {len(chosen)} tested, {len(chosen) - len(survived)} killed", flush=True)


if __name__ == "__main__":
    main()
