"""Nested values by dotted keys, by hand."""

from scratchlm.run.nested import flattened, leaves, value_at

VALUE = {"a": {"b": [1, {"c": 2}], "d": {}}, "e": None, "f": []}


def test_leaves_are_plain_values_under_dotted_keys() -> None:
    assert list(leaves(VALUE)) == [("a.b.0", 1), ("a.b.1.c", 2), ("a.d", {}), ("e", None), ("f", [])]
    assert list(leaves({})) == []


def test_flattened_leaves_lists_whole() -> None:
    assert flattened(VALUE) == {"a.b": [1, {"c": 2}], "a.d": {}, "e": None, "f": []}


def test_a_dotted_key_finds_a_value_or_the_default() -> None:
    assert value_at(VALUE, "a.d") == {}
    assert value_at(VALUE, "e", "default") is None
    assert value_at(VALUE, "a.x.y", "default") == value_at(VALUE, "f.0", "default") == "default"
