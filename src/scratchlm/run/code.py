"""The code of a stage: every file of ours that its script imports, and the packages that these import.

DVC does not follow imports. The stage `code` writes this down for each stage script, one JSON file each; a stage
depends on its own file, so that an edit reruns exactly the stages whose files it concerns.
"""

import ast
import importlib.metadata
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from scratchlm.run.errors import UserError
from scratchlm.run.files import read_json, sha256_of

# These run a stage, show its progress and fetch what is verified by hash; no result depends on their versions
WITHOUT_INFLUENCE = {"dvc", "fsspec", "psutil", "tensorboardx", "tqdm", "voluptuous"}
WITH_TORCH = {"triton"}  # comes with a torch for cards, in that one's version, which the arithmetic's fingerprint holds
OPTIONAL = {"xllamacpp"}  # extras: where one is not installed, the stage that needs it says so itself
# Imported under another name
DISTRIBUTIONS = {"PIL": "pillow", "ruamel": "ruamel.yaml", "sklearn": "scikit-learn", "yaml": "pyyaml"}


def stage_scripts(folder: Path) -> list[Path]:
    """The script of each stage. Raises UserError if the folder has none."""
    if scripts := sorted(folder.glob("[!_]*.py")):
        return scripts
    raise UserError(f"{folder}: no stage's script in {Path.cwd()}; run this in the folder that has dvc.yaml")


def stage_code(script: Path, library: Path, lock: Path) -> dict[str, dict[str, str]]:
    """files: path -> sha256; packages: name -> version in `lock`; of all that `script` imports, also through others.

    Imports inside functions count. script: such as stages/pretrain.py; library: such as src/scratchlm.
    Raises UserError if a package is imported that the lock does not pin.
    """
    files, packages, pending = {script}, set[str](), [script]
    roots = (library.parent, script.parent.parent)
    while pending:
        for name in imported_names(pending.pop()):
            if found := _module_file(name, roots):
                new = {found, *data_files(found)} - files
                files |= new
                pending += [path for path in new if path.suffix == ".py"]
            elif (top := name.split(".")[0]) not in (library.name, script.parent.name, *sys.stdlib_module_names):
                packages.add(DISTRIBUTIONS.get(top, top.lower().replace("_", "-")))
    packages -= WITHOUT_INFLUENCE | WITH_TORCH
    pinned = locked_versions(lock.read_text(encoding="utf-8"))
    if missing := sorted(packages - set(pinned)):
        raise UserError(
            f"{script} needs the package {missing[0]}, which {lock} does not pin; add it there, or remove the import"
        )
    return {
        "files": {path.as_posix(): sha256_of(path) for path in sorted(files)},
        "packages": {name: pinned[name] for name in sorted(packages)},
    }


@cache
def imported_names(path: Path) -> frozenset[str]:
    """Every name that a file imports, inside functions too; of `from a import b` both a and a.b."""
    names: set[str] = set()
    for node in _statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


@cache
def data_files(module: Path) -> frozenset[Path]:
    """The files beside a module that it names as a text, such as a page's template."""
    if not (beside := [path for path in module.parent.iterdir() if path.is_file() and path.suffix != ".py"]):
        return frozenset()
    nodes = ast.walk(ast.parse(module.read_text(encoding="utf-8")))
    texts = {node.value for node in nodes if isinstance(node, ast.Constant)}
    return frozenset(path for path in beside if path.name in texts)


def locked_versions(lock: str) -> dict[str, str]:
    """Package name in lower case -> version, of a text of `name==version` lines; tensorflow-cpu as tensorflow."""
    lines = [line.partition(";")[0].strip() for line in lock.lower().splitlines()]
    pins = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {name.replace("_", "-").removesuffix("-cpu"): version.partition("+")[0] for name, version in pins}


def refuse_path(folder: Path) -> None:
    """Raises UserError for a project's path that DVC fails on, hours later (it fills in braces), or git."""
    path = str(folder.resolve())
    if found := re.search(r"[{}\n\udc80-\udcff]|%\(", path):  # the last of these: not UTF-8
        raise UserError(
            f"the project's path {path!r} holds {found[0]!r}, on which DVC or git fails; rename that folder"
        )


def refuse_foreign_library(folder: Path) -> None:
    """Raises UserError unless this process imports scratchlm from the project in `folder`, whose code is recorded."""
    ours, imported = folder.resolve() / "src" / "scratchlm", Path(__file__).resolve().parents[1]
    if imported != ours:
        raise UserError(
            f"scratchlm is imported from {imported}, but this project's is {ours}, whose hashes would be recorded; "
            "activate this project's own environment (`make .venv/ready && source .venv/bin/activate`), or set "
            "PYTHONPATH=src"
        )


def refuse_other_code(record: Path) -> None:
    """Raises UserError if a file or package in a record of stage_code has changed; a version's +cpu does not count."""
    code: Mapping[str, Any] = read_json(record)
    for name, digest in code["files"].items():
        if not Path(name).exists() or sha256_of(Path(name)) != digest:
            raise UserError(f"{name} has changed since the stage `code` ran; run `dvc repro` without --single-item")
    for package, version in code["packages"].items():
        installed = installed_version(package)
        if installed != version and not (installed == "none" and package in OPTIONAL):
            raise UserError(
                f"{package} {installed} is installed, but requirements.lock says {version}; install that one with "
                f"`make -B .venv/ready`, or write {installed} into the lock, which reruns the stages that use it"
            )


def installed_version(package: str) -> str:
    """The version of an installed package without its local part; "none" where it is not installed."""
    for name in (package, f"{package}-cpu"):
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name).split("+")[0]
    return "none"


@cache
def _module_file(name: str, roots: tuple[Path, ...]) -> Path | None:
    paths = (root.joinpath(*name.split(".")).with_suffix(".py") for root in roots)
    return next((path for path in paths if path.is_file()), None)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Each statement below a node. `ast.walk` would also visit the expressions, where no import can be."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield child
            yield from _statements(child)
