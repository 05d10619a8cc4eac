"""Replace one value in the text of a YAML file, and leave every other byte as it is, comments included."""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ruamel.yaml import YAML, MappingNode, Node

from scratchlm.run.errors import UserError
from scratchlm.run.yaml_reader import parse_yaml

_PLAIN = re.compile(r"[A-Za-z][\w./*-]*")  # needs no quotation marks, unless it is a word such as `true`


def with_value(text: str, keys: Sequence[str], value: Any, source: str) -> str:
    """Return `text` with another value at `keys`, which must exist; a comment behind the value keeps its column.

    Raises UserError naming the `source` if the text is not YAML, lacks a key, or cannot be edited without changing more
    than this value (an anchor in the old value, for example).
    """
    try:
        wanted = _replaced(parse_yaml(text, source), keys, value)
    except (KeyError, TypeError):  # TypeError: of what is no mapping
        raise UserError(f"{source}: {'.'.join(keys)} is missing; profiles/ shows complete files") from None
    _, node = _nodes(text, keys)
    start, end = node.start_mark.index, _end(node)
    new, rest = as_flow(value), text[end:]
    if padding := re.match(r" +(?=#)", rest):
        rest = " " * max(1, len(padding[0]) - len(new) + end - start) + rest[padding.end() :]
    edited = text[:start] + new + rest
    with suppress(UserError):  # as when an anchor was in the old value
        if parse_yaml(edited, source) == wanted:
            return edited
    raise UserError(f"{source}: {'.'.join(keys)} cannot be replaced on its own; write {new} there yourself")


def _replaced(old: Any, keys: Sequence[str], value: Any) -> Any:
    """A copy with another value at `keys`: parts that two keys share, by an alias, are no longer shared."""
    return {**old, keys[0]: _replaced(old[keys[0]], keys[1:], value)} if keys else value


def line_start(text: str, keys: Sequence[str]) -> int:
    """The index in `text` at which the line with the last of the keys begins. The keys must exist."""
    key, _ = _nodes(text, keys)
    return text.rfind("\n", 0, key.start_mark.index) + 1


def as_flow(value: Any) -> str:
    """Return a text, or a mapping of texts, as YAML on one line, with quotation marks where they are needed."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{as_flow(key)}: {as_flow(inner)}" for key, inner in value.items()) + "}"
    is_plain = _PLAIN.fullmatch(value) and parse_yaml(value, "") == value
    return value if is_plain else json.dumps(value, ensure_ascii=False)


def _nodes(text: str, keys: Sequence[str]) -> tuple[Node, Node]:
    """The last of the keys, and its value. Raises UserError if another place of the file gives it (`<<`)."""
    value: Node = YAML().compose(text)
    for wanted in keys:
        pairs = [pair for pair in value.value if pair[0].value == wanted]
        if not pairs:
            raise UserError(f"{'.'.join(keys)} comes from another key of the file (`<<`); write it out there first")
        key, value = pairs[0]
    return key, value


def _end(node: Node) -> int:
    """The index behind the last character of a node; a block's own mark is behind the comments that follow it."""
    if isinstance(node, MappingNode) and not node.flow_style and node.value:
        return _end(node.value[-1][1])
    return node.end_mark.index
