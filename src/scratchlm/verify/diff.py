"""Compare two versions of an artifact by content, and say in one sentence how they differ."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from scratchlm.compare.text import first_few
from scratchlm.run.display import shortened
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_csv, read_json, read_table
from scratchlm.run.nested import leaves

BLOCK_BYTES = 1 << 20
SHOWN_CHARACTERS = 40  # of a value


class Difference(NamedTuple):
    """text: a sentence. largest: the largest absolute difference of two numbers, where numbers differ."""

    text: str
    largest: float | None = None


def difference(old: Path, new: Path, name: str) -> Difference | None:
    """Return how two versions of the file `name` differ; None if they are equal.

    The ending of `name` decides how they are compared; the versions themselves may be objects in a cache. Files that
    cannot be read in that format are compared by bytes.
    """
    in_bytes = bytes_apart(old, new)
    if in_bytes is None:
        return None
    from safetensors import SafetensorError

    compare = {
        ".safetensors": tensors_apart,
        ".parquet": lambda old, new: rows_apart(read_table(old), read_table(new)),
        ".csv": lambda old, new: rows_apart(read_csv(old), read_csv(new)),
        ".json": lambda old, new: keys_apart(read_json(old, object), read_json(new, object)),
    }.get(PurePosixPath(name).suffix)
    if compare is None:
        return in_bytes
    try:
        found = compare(old, new)
    except (UserError, ValueError, csv.Error, pa.ArrowException, SafetensorError):
        return Difference(f"one cannot be read as {PurePosixPath(name).suffix[1:]}; {in_bytes.text}")
    return found or Difference(f"equal in content; {in_bytes.text}")


def bytes_apart(old: Path, new: Path) -> Difference | None:
    """Count the differing bytes, and find the first."""
    n_old, n_new = old.stat().st_size, new.stat().st_size
    n_differing, first = abs(n_old - n_new), min(n_old, n_new)
    for start in range(0, min(n_old, n_new), BLOCK_BYTES):
        n = min(BLOCK_BYTES, n_old - start, n_new - start)
        differs = np.fromfile(old, np.uint8, n, offset=start) != np.fromfile(new, np.uint8, n, offset=start)
        n_differing += int(differs.sum())
        if differs.any():
            first = min(first, start + int(differs.argmax()))
    if not n_differing:
        return None
    length = f"of {n_old:,} bytes" if n_old == n_new else f"of {n_old:,} and {n_new:,} bytes"
    return Difference(f"{n_differing:,} {length} differ, the first at {first:,}")


def tensors_apart(old: Path, new: Path) -> Difference | None:
    """Compare two safetensors files: the largest absolute difference of two numbers, and its tensor.

    Raises SafetensorError if a file is not in this format.
    """
    import torch
    from safetensors import safe_open

    gaps: dict[str, float] = {}
    with safe_open(old, "pt") as old_file, safe_open(new, "pt") as new_file:
        in_old, in_new = set(old_file.keys()), set(new_file.keys())
        lost = sorted(in_old ^ in_new)
        for name in sorted(in_old & in_new):
            one, other = old_file.get_tensor(name), new_file.get_tensor(name)
            if one.shape != other.shape or one.dtype != other.dtype:
                lost.append(name)
            elif not torch.equal(one, other):
                distance = (one.double() - other.double())[one != other].abs().max().item()  # infinities may be equal
                gaps[name] = math.inf if math.isnan(distance) else distance
    parts = []
    if gaps:
        name, gap_ = max(gaps.items(), key=lambda item: item[1])
        parts.append(f"{len(gaps)} of {_counted(len(in_old | in_new), 'tensor')} differ, by up to {gap_:.3g} in {name}")
    if lost:
        parts.append(f"not in both, or of different shape or type: {first_few(sorted(lost))}")
    return Difference("; ".join(parts), max(gaps.values(), default=None)) if parts else None


def rows_apart(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> Difference | None:
    """Compare two tables: how many rows differ, in which columns, and numbers by how much at most."""
    columns = [*dict.fromkeys(name for rows in (old, new) for row in rows[:1] for name in row)]
    changed: dict[str, list[float | None]] = {}
    n_rows = 0
    for one, other in zip(old, new, strict=False):
        differing = [name for name in columns if not _same(one.get(name), other.get(name))]
        n_rows += bool(differing)
        for name in differing:
            changed.setdefault(name, []).append(gap(one.get(name), other.get(name)))
    parts = [f"{len(old):,} and {len(new):,} rows"] if len(old) != len(new) else []
    if n_rows:
        named = [f"{name} in {_counted(len(gaps), 'row')}{_up_to(gaps)}" for name, gaps in changed.items()]
        parts.append(f"{n_rows:,} of {_counted(min(len(old), len(new)), 'row')} differ: {first_few(named)}")
    largest = _largest([one for gaps in changed.values() for one in gaps])
    return Difference("; ".join(parts), largest) if parts else None


def keys_apart(old: Any, new: Any) -> Difference | None:
    """Compare two JSON values: the keys whose values differ, with both values."""
    one, other = dict(leaves(old)), dict(leaves(new))
    keys = differing(one, other)
    named = [f"{key} {_shown(one, key)} → {_shown(other, key)}" for key in keys]
    gaps = [gap(one.get(key), other.get(key)) for key in keys]
    return Difference(first_few(named), _largest(gaps)) if keys else None


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the keys that only one of the two has, or that have different values."""
    return [key for key in {**old, **new} if key not in old or key not in new or not _same(old[key], new[key])]


def gap(old: Any, new: Any) -> float | None:
    """Return the absolute difference of two numbers, also as text from a CSV file; None for other values.

    Of lists of the same length, and nested ones, the largest of their items that differ.
    """
    if isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        gaps = [gap(one, other) for one, other in zip(old, new, strict=True) if not _same(one, other)]
        return None if None in gaps else max(gaps, default=0.0)  # type: ignore[type-var]
    try:
        distance = abs(float(old) - float(new))
    except (TypeError, ValueError):
        return None
    return math.inf if math.isnan(distance) else distance


def _same(old: Any, new: Any) -> bool:
    return bool(old == new) or (old != old and new != new)  # NaN equals NaN here


def _largest(gaps: Sequence[float | None]) -> float | None:
    return max((one for one in gaps if one is not None), default=None)


def _up_to(gaps: Sequence[float | None]) -> str:
    largest = _largest(gaps)
    return "" if largest is None else f" by up to {largest:.3g}"


def _shown(values: Mapping[str, Any], key: str) -> str:
    return shortened(str(values.get(key, "nothing")), SHOWN_CHARACTERS)


def _counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
