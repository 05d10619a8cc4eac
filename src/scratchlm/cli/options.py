"""Options that belong together: one parameter of a command's function, several on the command line."""

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import Any


def with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with an option for each field of every parameter whose type is a dataclass, in its place."""
    signature = inspect.signature(command)
    groups: dict[str, type[Any]] = {}
    options: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        kind = parameter.annotation
        if isinstance(kind, type) and is_dataclass(kind):
            groups[parameter.name] = kind
            options += inspect.signature(kind).parameters.values()
        else:
            options.append(parameter)

    @wraps(command)
    def flat(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    flat.__signature__ = signature.replace(parameters=options)  # type: ignore[attr-defined]
    return flat
