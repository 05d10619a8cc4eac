"""Read params.yaml into the typed section that the caller names."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scratchlm.run.display import shortened
from scratchlm.run.errors import UserError

SHOWN_CHARACTERS = 200
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Section(BaseModel):
    """A part of params.yaml: strictly typed, without defaults, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Params = TypeVar("Params", bound=Section)
Checked = TypeVar("Checked", bound=BaseModel)
Runs = dict[str, dict[str, Any]]  # by the name of a run, the keys of another section that have other values in it


def read_params(path: Path, section: type[Params], *, whole: bool = False) -> Params:
    """The keys of `path` that `section` names, checked.

    whole: also refuse top-level keys that `section` does not name.
    Raises UserError with one sentence per mistake: key, value, what is allowed.
    """
    return check_params(load_yaml(path), section, source=path.name, whole=whole)


def check_params(values: Any, section: type[Checked], *, source: str, whole: bool = False) -> Checked:
    """`values` (a mapping) as a `section`; errors as read_params raises them."""
    if not isinstance(values, dict):
        raise UserError(f"{source}: expected a mapping of parameters, got {type(values).__name__}")
    if not whole:
        values = {key: value for key, value in values.items() if key in section.model_fields}
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(_sentences(source, values, section, error))) from None


def with_changes(params: Checked, runs: Mapping[str, Any], section: str, name: str) -> Checked:
    """The parameters of one run: `params` with the keys that runs[name] changes. Errors as read_params raises them.

    runs: the section of params.yaml with that name: Runs, or by run a model whose extra keys are the changes.
    """
    run = runs[name]
    changes = run.model_extra or {} if isinstance(run, BaseModel) else run
    return check_params(params.model_dump() | changes, type(params), source=f"{section}.{name}", whole=True)


def load_yaml(path: Path) -> Any:
    """Return a YAML file's content as DVC reads it. Raises UserError if it is missing or not YAML."""
    from scratchlm.run.yaml_reader import parse_yaml  # needs ruamel.yaml, which typed values do without

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; copy one from profiles/") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error}); convert the file to UTF-8") from None
    return parse_yaml(text, str(path))


def _sentences(source: str, values: Any, section: type[BaseModel], error: ValidationError) -> list[str]:
    """One sentence per key: pydantic reports one mistake for each type that the value could have."""
    wrong: dict[str, list[str]] = {}
    for mistake in error.errors():
        path, message, kind = _key_path(mistake["loc"], values), mistake["msg"], mistake["type"]
        if kind == "literal_error" and isinstance(mistake["input"], dict):
            continue  # a section may stand there, too, and its mistakes are named
        value = "" if isinstance(mistake["input"], dict) else f"is {_cut(repr(mistake['input']))}: "
        if kind.startswith("union_tag"):  # a section of several kinds, whose kind is missing or unknown
            path, tag = [*path, mistake["ctx"]["discriminator"].strip("'")], mistake["ctx"].get("tag")
            kind, value = ("missing", "") if tag is None else (kind, f"is {_cut(repr(tag))}: ")
            message = f"must be one of {mistake['ctx'].get('expected_tags')}"
        elif kind == "missing":
            path = [*path, mistake["loc"][-1]]
        if kind == "missing":
            message = "is missing; every parameter must be given, profiles/ shows complete files"
        elif kind == "extra_forbidden":
            *parents, name = path
            keys = _allowed_keys(section, mistake["loc"])
            near = difflib.get_close_matches(str(name), keys, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            path, value, message = parents, f"unknown key {_cut(str(name))}{hint}; ", f"allowed are {', '.join(keys)}"
        elif kind == "model_type":
            message = "must be a mapping of parameters"
        message = message.removeprefix("Value error, ").replace("Input should", "must").replace("String should", "must")
        wrong.setdefault(f"{_cut('.'.join(map(str, path)))} {value}".lstrip(), []).append(message)
    return [f"{source}: {key}{' or '.join(messages)}" for key, messages in wrong.items()]


def _cut(text: str) -> str:
    """Return a text that fits a sentence."""
    return shortened(text, SHOWN_CHARACTERS)


def _key_path(loc: tuple[int | str, ...], values: Any) -> list[int | str]:
    """`loc` as the file has it: pydantic also names the type that it tried."""
    path: list[int | str] = []
    for part in loc:
        if isinstance(part, int) if isinstance(values, list) else isinstance(values, dict) and part in values:
            values = values[part]
            path.append(part)
    return path


def _allowed_keys(section: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The keys of the section that has an unknown key. loc: pydantic's path to that key."""
    models = [section]
    for part in loc[:-1]:
        if str(part).startswith("tagged-union["):  # before the one of its models that pydantic chose
            continue
        fields = [model.model_fields[str(part)] for model in models if part in model.model_fields]
        models = [inner for field in fields for inner in _models_in(field.annotation)] or [
            model  # of the kind, or the type, that pydantic names instead of a field
            for model in models
            if str(part).rstrip("]").endswith(model.__name__)  # function-after[check(), Model]
            or any(part in get_args(field.annotation) for field in model.model_fields.values())
        ]
    return [key for model in models for key in model.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
