"""The corpus as trainings read it: token ids, decoded from Parquet shards on demand, and sliding windows over them."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from scratchlm.run.errors import UserError
from scratchlm.run.files import damaged, missing, open_table, read_json

COUNTS_FILE = "counts.json"
SHARD_SCHEMA = pa.schema([pa.field("token_id", pa.uint32(), nullable=False)])
TOKEN_BYTES = 4


class Corpus:
    """The token shards of a corpus: a folder of `<split>/*.parquet` with SHARD_SCHEMA.

    vocab_size: of the tokenizer, for a check of every id.
    """

    def __init__(self, folder: Path, vocab_size: int = 1 << 32) -> None:
        self._folder, self._vocab_size = folder, vocab_size
        self._stored: dict[str, StoredTokens] = {}

    def windows(self, split: str, context_length: int, stride: int) -> "TokenWindows":
        """Return the windows of a split, whose tokens are decoded as they are needed.

        Raises UserError if there is no shard, or naming one that is damaged; what is found only in the token ids, also
        later, when they are decoded.
        """
        stored = self._stored_tokens(split)
        return TokenWindows(stored.ids, context_length, stride, stored.decode)

    def tokens(self, split: str) -> np.ndarray:
        """Return all token ids of a split, (N,) uint32. Errors as `windows`, but at once."""
        stored = self._stored_tokens(split)
        stored.decode(np.zeros(1, dtype=np.int64), len(stored.ids))
        return stored.ids

    @property
    def counts(self) -> dict[str, dict[str, float]]:
        """The counts by split, as tokenization wrote them."""
        return read_json(self._folder / COUNTS_FILE)

    def _stored_tokens(self, split: str) -> "StoredTokens":
        if split not in self._stored:
            shards = sorted((self._folder / split).glob("*.parquet"))
            if not shards:
                raise missing(self._folder / split / "*.parquet")
            self._stored[split] = StoredTokens(shards, self._vocab_size, self._folder.parent)
        return self._stored[split]


class StoredTokens:
    """The token ids of Parquet shards, one after another: each row group is decoded when it is first needed.

    ids: (N,) uint32, valid only where `decode` was called; 0 elsewhere. They are mapped from an unnamed sparse file in
    `folder`, which is deleted with them: the corpus may be larger than memory, compressed row groups are slow to read
    windows from, and a training that starts need not wait until all of them are decoded.
    """

    def __init__(self, shards: Sequence[Path], vocab_size: int, folder: Path) -> None:
        """Read the footers. Raises UserError naming a shard that is damaged or has other columns."""
        self._shards, self._vocab_size, self._folder = shards, vocab_size, folder
        sizes: list[int] = []  # of row groups, in tokens
        self._first_groups = np.zeros(len(shards), dtype=np.int64)
        for i, shard in enumerate(shards):
            self._first_groups[i] = len(sizes)
            with open_table(shard, SHARD_SCHEMA) as parquet:
                sizes += [parquet.metadata.row_group(k).num_rows for k in range(parquet.num_row_groups)]
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self._is_missing = np.array(sizes) > 0
        self._n_missing = int(self._is_missing.sum())
        n_tokens = sum(sizes)
        self.ids = np.empty(0, dtype=np.uint32)
        if n_tokens:
            try:
                self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - deleted with this object
                self._file.truncate(n_tokens * TOKEN_BYTES)
            except OSError as error:
                raise self._no_space(n_tokens, error) from None
            self.ids = np.asarray(np.memmap(self._file, dtype=np.uint32, mode="r"))

    def decode(self, starts: np.ndarray, length: int) -> bool:
        """Make ids[start : start + length] right for each start, (B,) int64. Return whether others are still missing.

        Raises UserError naming the shard that is damaged or has ids beyond the vocabulary, or if the disk is full.
        """
        if not self._n_missing:
            return False
        first = np.searchsorted(self._ends, starts, side="right")
        last = np.searchsorted(self._ends, starts + (length - 1), side="right")
        for i in range(int((last - first).max()) + 1):
            groups = np.minimum(first + i, last)
            for group in sorted({*groups[self._is_missing[groups]].tolist()}):
                self._decode(group)
        return self._n_missing > 0

    def _decode(self, group: int) -> None:
        number = int(np.searchsorted(self._first_groups, group, side="right")) - 1
        shard, end = self._shards[number], int(self._ends[group])
        start = int(self._ends[group - 1]) if group else 0
        with open_table(shard, SHARD_SCHEMA) as parquet:
            column = parquet.read_row_group(group - int(self._first_groups[number]))["token_id"]
        token_ids = column.to_numpy()
        if len(token_ids) != end - start:
            raise damaged(shard, f"has {len(token_ids):,} tokens where it had {end - start:,} when it was opened")
        if token_ids.max() >= self._vocab_size:
            raise damaged(shard, f"holds token {token_ids.max()} of a vocabulary of {self._vocab_size:,}")
        try:
            self._file.seek(start * TOKEN_BYTES)
            self._file.write(token_ids)  # not through the map: a full disk would be a bus error
            self._file.flush()
        except OSError as error:
            raise self._no_space(len(self.ids), error) from None
        self._is_missing[group] = False
        self._n_missing -= 1

    def _no_space(self, n_tokens: int, error: OSError) -> UserError:
        return UserError(
            f"{self._folder}: no room for the temporary file of up to {n_tokens * TOKEN_BYTES / 1e9:.4g} GB through "
            f"which {self._shards[0].parent} is read ({error.strerror}); free some space, then run this again"
        )


class TokenWindows:
    """Windows over a token stream: window i starts at i * stride.

    Its inputs are context_length tokens; its targets are the same, one token later (the book, section 2.6).
    """

    def __init__(
        self, token_ids: np.ndarray, context_length: int, stride: int,
        decode: Callable[[np.ndarray, int], bool] | None = None,
    ) -> None:  # fmt: skip
        """decode: called with starts and a length before these tokens are read, until it returns False.

        Raises UserError if the tokens do not fill one window.
        """
        if len(token_ids) <= context_length:
            raise UserError(
                f"{len(token_ids)} tokens do not fill one window of {context_length} + 1; "
                "lower the context_length (of model or evaluation) or take a larger corpus"
            )
        self._windows = np.lib.stride_tricks.sliding_window_view(token_ids, context_length + 1)[::stride]
        self._stride, self._decode = stride, decode

    def __len__(self) -> int:
        return len(self._windows)

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs, targets: (B, context_length) int64 each."""
        if self._decode and not self._decode(indices * self._stride, self._windows.shape[1]):
            self._decode = None
        windows = self._windows[indices].astype(np.int64)  # (B, T + 1)
        return windows[:, :-1], windows[:, 1:]
