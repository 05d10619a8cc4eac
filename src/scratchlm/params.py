"""Reading params.yaml into the typed section that the caller names."""

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Section(BaseModel):
    """A part of params.yaml: strictly typed, without defaults, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, value: Any) -> Any:
        """Like extra="forbid", but the sentence says what would have been allowed."""
        for key in value if isinstance(value, dict) else ():
            if key not in cls.model_fields:
                near = difflib.get_close_matches(str(key), cls.model_fields, n=1)
                hint = f" (did you mean {near[0]}?)" if near else ""
                raise ValueError(f"unknown key {key}{hint}; allowed are {', '.join(cls.model_fields)}")
        return value


Params = TypeVar("Params", bound=Section)


def read_params(path: Path, section: type[Params], *, whole: bool = False) -> Params:
    """The keys of `path` that `section` names, checked.

    whole: also refuse top-level keys that `section` does not name.
    Raises ValueError with one sentence per mistake: key, value, what is allowed.
    """
    return check_params(load_yaml(path), section, source=path.name, whole=whole)


def check_params(values: Any, section: type[Params], *, source: str, whole: bool = False) -> Params:
    """`values` (a mapping) as a `section`; errors as read_params raises them."""
    if not isinstance(values, dict):
        raise ValueError(f"{source}: expected a mapping of parameters, got {type(values).__name__}")
    if not whole:
        values = {key: value for key, value in values.items() if key in section.model_fields}
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise ValueError("\n".join(_sentence(source, mistake) for mistake in error.errors())) from None


def load_yaml(path: Path) -> Any:
    """The content of a YAML file, numbers read as DVC reads them (YAML 1.2).

    Raises ValueError if the file is missing or is not YAML.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return yaml.load(file, _Loader)  # noqa: S506 - a SafeLoader
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; copy one from profiles/") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


class _Loader(yaml.SafeLoader):
    """PyYAML follows YAML 1.1, where 4e-4 is a string; DVC and readers take it as a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def _sentence(source: str, mistake: Any) -> str:
    key = ".".join(str(part) for part in mistake["loc"])
    message = mistake["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if mistake["type"] == "missing":
        return f"{source}: {key} is missing; every parameter must be given, profiles/ shows complete files"
    value = mistake["input"]
    got = "" if isinstance(value, dict) else f" is {value!r}:"
    where = f" {key}{got}" if key else ""
    return f"{source}:{where} {message}"
