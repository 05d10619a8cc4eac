"""The stages of dvc.yaml, with every `${...}` and `foreach` resolved as DVC resolves them.

For where DVC is not loaded, which takes a second: the start of a stage, and the report.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scratchlm.run.errors import UserError
from scratchlm.run.files import sha256_of
from scratchlm.run.nested import value_at
from scratchlm.run.params import load_yaml

CODE_FOLDER = "data/code/"
MISSING = object()


def read_stages(folder: Path = Path()) -> dict[str, Any]:
    """The definitions of the stages in a folder's dvc.yaml, resolved, by name, such as `load_gpt2@nano`."""
    return resolved_stages(load_yaml(folder / "dvc.yaml"), load_yaml(folder / "params.yaml"))


def resolved_stages(pipeline: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """The stages of a parsed dvc.yaml by `dvc dag`'s names. Raises UserError if `params` lacks what they name."""
    stages: dict[str, Any] = {}
    for name, stage in pipeline["stages"].items():
        if "foreach" in stage:
            items = _resolved(stage["foreach"], params)
            pairs = items if isinstance(items, Mapping) else {item: item for item in items}
            for key, item in pairs.items():
                stages[f"{name}@{key}"] = _resolved(stage["do"], {**params, "key": key, "item": item})
        else:
            stages[name] = _resolved(stage, params)
    return stages


def paths(entries: Sequence[Any]) -> list[str]:
    """The paths of deps, outs, metrics or plots: each is a text, or a mapping from it to options."""
    return [next(iter(entry)) if isinstance(entry, Mapping) else entry for entry in entries]


def tracked_paths(stages: Mapping[str, Any]) -> set[str]:
    """The paths of everything that stages read or write."""
    kinds = ("deps", "outs", "metrics", "plots")
    return {path for stage in stages.values() for kind in kinds for path in paths(stage.get(kind, []))}


def code_record(stage: Mapping[str, Any]) -> Path | None:
    """The JSON file of the stage `code` that a stage depends on; None for `code` itself."""
    return next((Path(path) for path in paths(stage.get("deps", [])) if path.startswith(CODE_FOLDER)), None)


def cache_key(stage: Mapping[str, Any]) -> str:
    """A hash (64 hex digits) of all that DVC compares before it reruns a stage: equal exactly if the result must be."""
    params = load_yaml(Path("params.yaml"))
    known = {
        "cmd": stage["cmd"],
        "deps": {path: _content_hash(Path(path)) for path in paths(stage.get("deps", []))},
        "params": {name: _looked_up(name, params) for name in stage.get("params", [])},
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _content_hash(path: Path) -> Any:
    if path.is_dir():
        return {
            file.relative_to(path).as_posix(): sha256_of(file) for file in sorted(path.rglob("*")) if file.is_file()
        }
    return sha256_of(path) if path.exists() else None


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
    value = value_at(scope, key.strip(), MISSING)
    if value is MISSING:
        raise UserError(f"dvc.yaml uses ${{{key}}}, which params.yaml does not have; correct one of them")
    return value
