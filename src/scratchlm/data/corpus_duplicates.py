"""Duplicate documents of a corpus, within and across files: which to leave out, so that the first of each is kept."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from scratchlm.data.corpus import NearDuplicates
from scratchlm.data.documents import NumberedFile, digest, documents, in_parallel
from scratchlm.run.files import sha256_of
from scratchlm.run.threads import Advance


def duplicates(
    files: Sequence[NumberedFile], how: Literal["none", "exact"] | NearDuplicates, parts: Path
) -> list[np.ndarray]:
    """Read all files and return for each the positions, from 0, of the documents to leave out, ascending int64.

    exact: those whose text came before, in the order of the manifest, by 64 bits of their hash, which n documents share
    by chance with a probability of n²/2⁶⁵; memory holds 17 bytes per document. NearDuplicates: those like one that came
    before; see data/near_duplicates.py.
    parts: the folder where the hashes of finished files are kept, or signatures of 512 bytes per document.
    """
    if how == "none":
        return [np.empty(0, dtype=np.int64)] * len(files)
    if how == "exact":
        return repeated([np.fromfile(path, dtype="<u8") for path in _written(files, parts, _write_hashes)])
    from scratchlm.data.near_duplicates import similar, write_signatures  # with packages that take a moment to import

    return similar(_written(files, parts, write_signatures), how.near)


def repeated(hashes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """For each array the positions whose hash came before, in it or in an earlier one. hashes: (N,) uint64 each."""
    ordered = np.concatenate(hashes)
    ordered.sort()
    several = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])  # those that occur more than once
    del ordered
    seen = np.zeros(len(several), dtype=bool)
    found = []
    for each in hashes:
        candidates = np.flatnonzero(np.isin(each, several))
        places = np.searchsorted(several, each[candidates])
        _, first = np.unique(places, return_index=True)
        is_first = np.zeros(len(places), dtype=bool)
        is_first[first] = True
        found.append(candidates[seen[places] | ~is_first])
        seen[places] = True
    return found


def _write_hashes(texts: Iterable[str], path: Path) -> None:
    np.fromiter((digest(text.encode()) for text in texts), dtype="<u8").tofile(path)


def _written(files: Sequence[NumberedFile], parts: Path, write: Callable[[Iterable[str], Path], None]) -> list[Path]:
    """The path of what `write` writes of the documents of each file, unless it was written before and is sound."""
    found = {each: path for each in files if (path := _sound(each, parts))}

    def work(each: NumberedFile, advance: Advance) -> Path:
        unfinished = parts / f"{each.name}.part"
        write(documents(each.file, advance), unfinished)
        return unfinished.replace(parts / f"{each.name}-{sha256_of(unfinished)}.bin")

    todo = [each for each in files if each not in found]
    found.update(in_parallel("find duplicates", files, todo, work))
    return [found[each] for each in files]


def _sound(each: NumberedFile, parts: Path) -> Path | None:
    """The file that was written before, if it is not damaged."""
    found = (path for path in parts.glob(f"{each.name}-*.bin") if sha256_of(path) == path.stem.partition("-")[2])
    return next(found, None)
