"""Read YAML as DVC reads it, and refuse what would take hours."""

import re
from typing import Any

from ruamel.yaml import YAML, MappingNode, Node, SafeConstructor, ScalarNode
from ruamel.yaml.error import YAMLError

from scratchlm.run.errors import UserError

MAX_VALUES = 1_000_000  # of a file, with each alias replaced by what it names


def parse_yaml(text: str, source: str) -> Any:
    """Return `text` as DVC reads it. Raises UserError naming its `source` if it is not YAML.

    DVC's own parser, so that a value means the same to the stages and in dvc.lock: YAML 1.2, where 0123 is 123 and
    `yes` is text.
    """
    reader = YAML(typ="safe")
    reader.Constructor = _Constructor
    try:
        return reader.load(text)
    except YAMLError as error:
        if re.search(r"(?m)^<<<<<<< ", text):
            raise UserError(f"{source} holds a merge conflict; keep one of its sides, or combine them") from None
        reason = " ".join(str(error).split())
    except RecursionError:
        reason = "nested too deeply"
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # a date, number or tag that has no such value
        reason = f"a value that cannot be read: {error}"
    raise UserError(f"{source}: not valid YAML: {reason}; correct it")


class _Constructor(SafeConstructor):
    """Refuses aliases of aliases that would take hours to follow, a value within itself, and too large integers."""

    def construct_document(self, node: Node) -> Any:
        if _n_values(node, {}) > MAX_VALUES:
            raise ValueError(f"its aliases stand for more than {MAX_VALUES:,} values")
        return super().construct_document(node)

    def construct_yaml_int(self, node: Node) -> int:
        value = super().construct_yaml_int(node)
        if abs(value) >= 2**63:  # no count is that large, and neither floats nor Parquet hold it
            raise ValueError(f"an integer of more than 64 bits in line {node.start_mark.line + 1}")
        return value


_Constructor.add_constructor("tag:yaml.org,2002:int", _Constructor.construct_yaml_int)


def _n_values(node: Node, counted: dict[Node, int]) -> int:
    """The values of a node, itself included, with each alias replaced by what it names."""
    if isinstance(node, ScalarNode):
        return 1
    if node not in counted:
        counted[node] = MAX_VALUES + 1  # while its parts are counted: of a part that contains it
        parts = [part for pair in node.value for part in pair] if isinstance(node, MappingNode) else node.value
        counted[node] = 1 + sum(_n_values(part, counted) for part in parts)
    return counted[node]
