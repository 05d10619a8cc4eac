"""Duplicate documents of a corpus, within and across files: which to leave out, so that the first of each is kept.

A way to find duplicates is a function from the files to one array per file: the positions, from 0, of the documents
that are left out.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scratchlm.data.documents import digest, documents
from scratchlm.data.many_files import Advance, NumberedFile, in_parallel
from scratchlm.run.files import atomic_write, sha256_of


def exact_duplicates(files: Sequence[NumberedFile], parts: Path) -> list[np.ndarray]:
    """Read all files and return the positions of documents whose text came before, in the order of the manifest.

    Texts are compared by 64 bits of their hash, which n documents share by chance with a probability of n²/2⁶⁵. Memory
    holds 17 bytes per document. parts: the folder where the hashes of finished files are kept.
    """
    todo = [each for each in files if _sound(each, parts) is None]

    def write(each: NumberedFile, advance: Advance) -> None:
        found = np.fromiter((digest(text.encode()) for text in documents(each.file, advance)), dtype=np.uint64)
        with atomic_write(parts / f"{each.name}.npy") as temporary:
            with temporary.open("wb") as file:
                np.save(file, found)
            named = parts / f"{each.name}-{sha256_of(temporary)}.npy"
        (parts / f"{each.name}.npy").replace(named)

    for _ in in_parallel("find duplicates", files, todo, write):
        pass
    return repeated([np.load(str(_sound(each, parts))) for each in files])


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


def _sound(each: NumberedFile, parts: Path) -> Path | None:
    """The file of the hashes if it was written before and is not damaged."""
    found = (path for path in parts.glob(f"{each.name}-*.npy") if sha256_of(path) == path.stem.partition("-")[2])
    return next(found, None)
