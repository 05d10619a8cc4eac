"""Nested values, as YAML and JSON hold them, by dotted keys."""

from collections.abc import Iterator, Mapping
from typing import Any


def leaves(value: Any, prefix: str = "", *, whole_lists: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield each plain value with its dotted key; an empty mapping or list is a value itself.

    whole_lists: also treat every other list as one value, instead of its items under key.0, key.1, ...
    """
    items: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list) and not whole_lists:
        items = list(enumerate(value))
    for key, item in items:
        yield from leaves(item, f"{prefix}.{key}" if prefix else str(key), whole_lists=whole_lists)
    if not items and (prefix or not isinstance(value, Mapping | list)):
        yield prefix, value


def flattened(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one, its keys joined by dots; lists stay whole."""
    return dict(leaves(values, whole_lists=True))


def value_at(values: Any, key: str, default: Any = None) -> Any:
    """Return the value at a dotted key of nested mappings, or `default` if there is none."""
    for part in key.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return default
        values = values[part]
    return values
