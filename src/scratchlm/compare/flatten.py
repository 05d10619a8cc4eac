"""Nested values as one level of dotted keys."""

from collections.abc import Iterator, Mapping
from typing import Any


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings and lists as pairs of a dotted key and a plain value; an empty one is a value itself."""
    items = list(value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ())
    for key, item in items:
        yield from leaves(item, f"{prefix}.{key}" if prefix else str(key))
    if not items and (prefix or not isinstance(value, Mapping | list)):
        yield prefix, value
