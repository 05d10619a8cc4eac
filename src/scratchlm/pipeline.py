"""What dvc.yaml says of each stage, with every `${...}` and `foreach` resolved as DVC resolves them."""

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scratchlm.artifacts import read_json, sha256_of
from scratchlm.params import load_yaml

ENVIRONMENT = Path("environment.json")
# Where pip knows a package by other names too
DISTRIBUTIONS = {"tensorflow": ("tensorflow", "tensorflow-cpu")}


def read_stages(folder: Path = Path()) -> dict[str, Any]:
    """The definitions of the stages in a folder's dvc.yaml, resolved, by name, such as `load_gpt2@nano`."""
    return resolved_stages(load_yaml(folder / "dvc.yaml"), load_yaml(folder / "params.yaml"))


def resolved_stages(pipeline: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """The stages of a parsed dvc.yaml by the names that `dvc dag` gives them.

    Raises ValueError if `params` lacks what a template names.
    """
    return dict(_resolved_stages(pipeline["stages"], params))


def paths(entries: Sequence[Any]) -> list[str]:
    """The paths of deps, outs, metrics or plots: each is a text, or a mapping from it to options."""
    return [next(iter(entry)) if isinstance(entry, Mapping) else entry for entry in entries]


def refuse_other_packages(stage: Mapping[str, Any]) -> None:
    """Raises ValueError if what is installed is not what environment.json says: the result would not be what it claims.

    Only the packages that the stage uses are asked for; a local part of a version (2.13.0+cpu) does not count.
    """
    pinned = read_json(ENVIRONMENT)
    for package in _packages(stage.get("params", [])):
        installed = installed_version(package)
        if installed != pinned[package]:
            raise ValueError(
                f"{package} {installed} is installed, but {ENVIRONMENT} says {pinned[package]}; install that one with "
                f"`make -B .venv/ready`, or write {installed} into {ENVIRONMENT}, which reruns the stages that use it"
            )


def installed_version(package: str) -> str:
    """The version of a package as environment.json has it; "none" where it is not installed."""
    for name in DISTRIBUTIONS.get(package, (package,)):
        try:
            return importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    return "none"


def identity(stage: Mapping[str, Any]) -> str:
    """A hash of all that DVC compares before it reruns a stage: command, inputs, code, parameters, packages.

    64 hex digits. Equal for two runs exactly if they must have the same result.
    """
    known = {
        "cmd": stage["cmd"],
        "deps": {path: _content_hash(Path(path)) for path in paths(stage.get("deps", []))},
        "params": _parameter_values(stage.get("params", [])),
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _parameter_values(entries: Sequence[Any]) -> dict[str, Any]:
    """The values behind the entries of `params:`: keys of params.yaml, and packages of environment.json."""
    params = load_yaml(Path("params.yaml"))
    values = {name: _looked_up(name, params) for name in entries if isinstance(name, str)}
    pinned = read_json(ENVIRONMENT)
    return values | {ENVIRONMENT.name: {name: pinned[name] for name in _packages(entries)}}


def _packages(entries: Sequence[Any]) -> list[str]:
    return [name for entry in entries if isinstance(entry, Mapping) for name in entry[ENVIRONMENT.name]]


def _content_hash(path: Path) -> Any:
    if path.is_dir():
        return {
            file.relative_to(path).as_posix(): sha256_of(file) for file in sorted(path.rglob("*")) if file.is_file()
        }
    return sha256_of(path) if path.exists() else None


def _resolved_stages(stages: Mapping[str, Any], params: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, stage in stages.items():
        if "foreach" in stage:
            items = _resolved(stage["foreach"], params)
            pairs = items.items() if isinstance(items, Mapping) else ((item, item) for item in items)
            for key, item in pairs:
                yield f"{name}@{key}", _resolved(stage["do"], {**params, "key": key, "item": item})
        else:
            yield name, _resolved(stage, params)


def _resolved(value: Any, scope: Mapping[str, Any]) -> Any:
    """`value` with every `${a.b}` replaced; a text that is nothing else becomes the value itself, as in DVC."""
    if isinstance(value, Mapping):
        return {_resolved(key, scope): _resolved(item, scope) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item, scope) for item in value]
    if not isinstance(value, str):
        return value
    if whole := re.fullmatch(r"\$\{([^}]+)\}", value):
        return _looked_up(whole[1], scope)
    return re.sub(r"\$\{([^}]+)\}", lambda found: str(_looked_up(found[1], scope)), value)


def _looked_up(key: str, scope: Any) -> Any:
    for part in key.strip().split("."):
        if not isinstance(scope, Mapping) or part not in scope:
            raise ValueError(f"dvc.yaml uses ${{{key}}}, which params.yaml does not have; correct one of them")
        scope = scope[part]
    return scope
