"""Numbers as text, and the tables of metrics in the report."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from scratchlm.run.nested import flattened

PERCENTAGES = {
    *("accuracy", "accuracy_low", "accuracy_high", "precision", "recall", "macro_precision", "macro_recall"),
    "finished_share",
}
COLUMN_ORDER = ("train", "val", "test", "before", "after")
GAIN = "gain_of_"  # begins the name of a column of differences
MAX_CHARACTERS = 400
NONE = "–"


class Table(NamedTuple):
    """rows: the row's name and one text per column. title: empty if the table needs none."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, tuple[str, ...]]]


def format_number(value: Any) -> str:
    """Return a number with four significant digits, an integer in full; a list item by item; other values as text."""
    if isinstance(value, list):
        return ", ".join(map(format_number, value))
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or (isinstance(value, float) and abs(value) >= 10_000):
        return f"{value:,.0f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def format_parameter(value: Any) -> str:
    """Return a parameter as params.yaml has it."""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def format_percent(proportion: float | None) -> str:
    """Return a proportion as a percentage with one decimal."""
    return NONE if proportion is None else f"{100 * proportion:.1f}\N{NO-BREAK SPACE}%"


def format_points(difference: float) -> str:
    """Return a difference of proportions in percentage points, with its sign and one decimal."""
    return format_signed(100 * difference, 1)


def format_signed(difference: float, decimals: int) -> str:
    """Return a difference with its sign."""
    return f"{difference:+.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def format_metric(name: str, value: Any, column: str = "") -> str:
    """Return the value of a metric in the form that its name, and that of its column, call for."""
    if name.rpartition(".")[2] not in PERCENTAGES:
        return format_number(value)
    return f"{format_points(value)} points" if column.startswith(GAIN) else format_percent(value)


def thinned(rows: Sequence[Any], at_most: int) -> list[Any]:
    """Return at most `at_most` of the rows, evenly spaced, including the first and the last."""
    if len(rows) <= at_most:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (at_most - 1))] for i in range(at_most)]


def metric_tables(metrics: Mapping[str, Any], title: str = "") -> list[Table]:
    """Return metrics as tables, with a column for each nested mapping (a split, a model), the splits first.

    A mapping that itself contains splits gets tables of its own.
    """
    deep = [key for key, value in metrics.items() if isinstance(value, Mapping) and _holds_splits(value)]
    tables = [table for key in deep for table in metric_tables(metrics[key], key)]
    columns = {
        key: flattened(metrics[key])
        for key in sorted(metrics, key=lambda key: (*COLUMN_ORDER, key).index(key))
        if isinstance(metrics[key], Mapping) and key not in deep
    }
    if columns:
        rows: list[tuple[str, tuple[str, ...]]] = []
        for name in dict.fromkeys(name for values in columns.values() for name in values):
            cells = (format_metric(name, found[name], key) if name in found else NONE for key, found in columns.items())
            rows.append((name, tuple(cells)))
        tables.insert(0, Table(title, tuple(columns), rows))
    single = [(key, value) for key, value in sorted(metrics.items()) if not isinstance(value, Mapping)]
    if single:
        rows = [(key, (format_metric(key, value),)) for key, value in single]
        tables.insert(bool(columns), Table(f"{title}, all splits" if title and columns else title, ("value",), rows))
    return tables


def _holds_splits(value: Mapping[str, Any]) -> bool:
    return any(key in COLUMN_ORDER and isinstance(item, Mapping) for key, item in value.items())
