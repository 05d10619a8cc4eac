"""Near duplicates among the documents of many files: MinHash signatures of each file, then groups across all of them.

Two documents are near duplicates if they share most of their shingles, the runs of SHINGLE_WORDS words. The share
(Jaccard's similarity) is estimated by the values that their signatures have in common. Source: Broder 1997, "On the
resemblance and containment of documents"; the bands: Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", 3.4.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from sys import maxunicode
from zlib import crc32

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from scratchlm.data.corpus import batches, whole_text_pieces
from scratchlm.run.files import damaged

SHINGLE_WORDS = 5
N_VALUES = 128  # of a signature; the estimate's standard error is at most 0.045
MIN_RECALL = 0.99  # of the pairs with exactly the threshold's similarity, as far as the bands decide
PAIRS_AT_ONCE = 1 << 14  # whose signatures take 8 MB each
MULTIPLIER = 0x9E3779B97F4A7C15  # 2**64 / the golden ratio, as in Fibonacci hashing


def write_signatures(texts: Iterable[str], path: Path) -> None:
    """Write the signature of each document of a file, one after another: N_VALUES uint32, little-endian."""
    with path.open("wb") as file:
        for batch in batches(texts):
            file.write(signatures(batch).astype("<u4").tobytes())


def signatures(texts: Sequence[str]) -> np.ndarray:
    """The MinHash values of documents, (N, N_VALUES) uint32. Case, white space and punctuation do not matter.

    A document of fewer than SHINGLE_WORDS words is one shingle, and one without letters and digits is one word. All
    documents are computed together by numpy, which releases the interpreter's lock.
    """
    folded = [unicodedata.normalize("NFKC", text).casefold() for text in texts]
    words, n_words = _words(folded)
    for i in np.flatnonzero(n_words == 0):
        words = np.insert(words, n_words[:i].sum(), crc32(folded[i].encode()))
        n_words[i] = 1
    n_missing = np.maximum(0, SHINGLE_WORDS - n_words)
    words = np.insert(words, np.repeat(np.cumsum(n_words), n_missing), 0)
    ends = np.cumsum(n_words + n_missing)
    hashes = _hashed(np.lib.stride_tricks.sliding_window_view(words, SHINGLE_WORDS))
    across = ends[:-1, None] - np.arange(1, SHINGLE_WORDS)  # windows of words of two documents
    shingles = np.delete(hashes, across.ravel()).astype(np.uint32)  # the lower half
    starts = np.append(0, ends[:-1]) - (SHINGLE_WORDS - 1) * np.arange(len(ends))
    factors, summands = np.random.default_rng(1).integers(2**32, size=(2, N_VALUES), dtype=np.uint32)
    found, values = np.empty((N_VALUES, len(texts)), dtype=np.uint32), np.empty_like(shingles)
    for row, factor, summand in zip(found, factors | np.uint32(1), summands, strict=True):
        np.multiply(shingles, factor, out=values)  # with an odd factor, a permutation modulo 2**32
        values += summand
        np.minimum.reduceat(values, starts, out=row)
    return found.T


def similar(paths: Sequence[Path], threshold: float) -> list[np.ndarray]:
    """Return for each file the positions of the documents to drop, ascending int64; the first of each group is kept.

    A group has all documents that near duplicates connect, those of a similarity of at least `threshold`, in the order
    of the files and of the documents in them. Memory: about 60 bytes per document, 200 if most are duplicates; the
    signatures stay on disk.
    Raises UserError if a file is damaged.
    """
    files = [_read(path) for path in paths]
    offsets = np.cumsum([0, *map(len, files)], dtype=np.int64)
    first = np.arange(offsets[-1])  # of each document's group
    rows = _rows_per_band(threshold)
    for column in range(0, N_VALUES, rows):
        keys = np.concatenate([_hashed(file[:, column : column + rows]) for file in files] or [first])
        earlier, later = _equal_pairs(keys)
        is_open = first[earlier] != first[later]
        earlier, later = earlier[is_open], later[is_open]
        is_near = np.zeros(len(earlier), dtype=bool)
        for i in range(0, len(earlier), PAIRS_AT_ONCE):
            values, others = (_values(files, offsets, pairs[i : i + PAIRS_AT_ONCE]) for pairs in (earlier, later))
            is_near[i : i + PAIRS_AT_ONCE] = (values == others).mean(axis=1) >= threshold
        if is_near.any():
            first = _joined(first, earlier[is_near], later[is_near])
    dropped = np.flatnonzero(first != np.arange(len(first)))
    parts = np.split(dropped, np.searchsorted(dropped, offsets[1:-1]))
    return [part - start for part, start in zip(parts, offsets[:-1], strict=False)]


def _words(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The hash of each word of all texts, (W,) uint64, and the number of words of each text, (N,) int64.

    A word is a run of letters, digits and the marks on them. Its hash is a polynomial of its characters modulo 2**64.
    """
    text, n_before = " ".join(texts), 0
    hashes, starts = [np.empty(0, dtype=np.uint64)], [np.empty(0, dtype=np.int64)]
    for piece in whole_text_pieces(text):
        codes = np.frombuffer(piece.encode("utf-32-le"), dtype="<u4")
        is_word = _word_characters()[codes]
        begin = np.flatnonzero(is_word & ~np.append(False, is_word[:-1])[: len(is_word)])
        if len(begin):
            powers, inverses = (
                np.multiply.accumulate(np.full(len(codes), base, dtype=np.uint64))
                for base in (MULTIPLIER, pow(MULTIPLIER, -1, 2**64))
            )
            hashes.append(np.add.reduceat(is_word * codes * powers, begin) * inverses[begin])
            starts.append(begin + n_before)
        n_before += len(codes)
    ends = np.cumsum([len(each) + 1 for each in texts])
    return np.concatenate(hashes), np.diff(np.searchsorted(np.concatenate(starts), ends), prepend=0)


@cache
def _word_characters() -> np.ndarray:
    """Whether each code point is part of a word, (0x110000,) bool."""
    return np.array([unicodedata.category(chr(code))[0] in "LMN" for code in range(maxunicode + 1)])


def _read(path: Path) -> np.ndarray:
    """The signatures of a file, (N, N_VALUES) uint32, mapped."""
    n_bytes = path.stat().st_size
    if n_bytes % (4 * N_VALUES):
        raise damaged(path, f"{n_bytes:,} bytes are no signatures of {4 * N_VALUES} bytes each")
    values = np.memmap(path, dtype="<u4", mode="r") if n_bytes else np.empty(0, dtype="<u4")
    return values.reshape(-1, N_VALUES)


def _rows_per_band(threshold: float) -> int:
    """The most values per band, so the fewest candidates, with which pairs at the threshold are found."""
    sizes = [rows for rows in range(1, N_VALUES) if N_VALUES % rows == 0]
    return max(rows for rows in sizes if rows == 1 or 1 - (1 - threshold**rows) ** (N_VALUES // rows) >= MIN_RECALL)


def _hashed(rows: np.ndarray) -> np.ndarray:
    """One number for each row of integers, (N,) uint64; modulo 2**64."""
    found = np.zeros(len(rows), dtype=np.uint64)
    for column in rows.T:
        found = (found ^ column) * np.uint64(MULTIPLIER)
        found ^= found >> np.uint64(32)
    return found


def _equal_pairs(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of documents with equal keys, (M,) int64 each: each with the one before it, and with the first."""
    order = np.argsort(keys, kind="stable")
    is_equal = np.append(False, keys[order][1:] == keys[order][:-1])[: len(keys)]
    places = np.flatnonzero(is_equal)
    starts = np.maximum.accumulate(np.where(is_equal, 0, np.arange(len(keys))))[places]
    others = starts != places - 1
    return order[np.append(places - 1, starts[others])], order[np.append(places, places[others])]


def _values(files: Sequence[np.ndarray], offsets: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """The signatures of documents that are numbered through all files, (M, N_VALUES) uint32."""
    found = np.empty((len(documents), N_VALUES), dtype=np.uint32)
    numbers = np.searchsorted(offsets, documents, side="right") - 1
    for number in np.unique(numbers):
        chosen = numbers == number
        found[chosen] = files[number][documents[chosen] - offsets[number]]
    return found


def _joined(first: np.ndarray, earlier: np.ndarray, later: np.ndarray) -> np.ndarray:
    """The groups after those of each pair have become one."""
    edges = coo_array((np.ones(len(earlier), dtype=bool), (first[earlier], first[later])), shape=(len(first),) * 2)
    _, labels = connected_components(edges, directed=False)
    _, first_of_label = np.unique(labels, return_index=True)
    return first_of_label[labels][first]
