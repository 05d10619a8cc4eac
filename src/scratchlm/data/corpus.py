"""The corpus: text to Parquet shards of token ids in bounded memory, and sliding windows over them."""

import codecs
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field
from tqdm import tqdm

from scratchlm.artifacts import PARQUET_OPTIONS, missing, read_json, whole_folder, write_json
from scratchlm.data.tokenizer import END_OF_TEXT, Tokenizer
from scratchlm.params import Section

CHUNK_CHARACTERS = 1 << 20
ROW_GROUP_TOKENS = 1 << 20
SEPARATORS = "\x1c\x1d\x1e\x1f"  # white space to Python, but signs to the byte-pair pattern (Unicode's White_Space)
COUNTS_FILE = "counts.json"
SHARD_SCHEMA = pa.schema([pa.field("token_id", pa.uint32(), nullable=False)])


class CorpusParams(Section):
    """How the corpus is split and stored."""

    train_fraction: Annotated[float, Field(gt=0, lt=1)]
    shard_tokens: Annotated[int, Field(ge=1)]


def text_chunks(path: Path) -> Iterator[str]:
    """A UTF-8 file in pieces of about CHUNK_CHARACTERS, in constant memory.

    A piece ends where white space begins: no token of any of our tokenizers spans that place, so the
    pieces' tokens are the whole text's. Only a run of 16 pieces without white space is cut inside.
    Raises ValueError if the file is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    pending = ""
    with path.open("rb") as file:
        at_end = False
        while not at_end:
            block = file.read(CHUNK_CHARACTERS)
            at_end = not block
            try:
                pending += decoder.decode(block, final=at_end)
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}: not UTF-8 text ({error}); convert the file to UTF-8") from None
            if len(pending) >= CHUNK_CHARACTERS:
                cut = _last_boundary(pending) or (len(pending) if len(pending) > 16 * CHUNK_CHARACTERS else 0)
                if cut:
                    yield pending[:cut]
                    pending = pending[cut:]
    if pending:
        yield pending


def write_corpus(text: Path, tokenizer: Tokenizer, folder: Path, params: CorpusParams) -> dict[str, dict[str, float]]:
    """Tokenize a text file into `folder`/train, `folder`/val and `folder`/counts.json, which it also returns."""
    with whole_folder(folder) as temporary:
        counts = {
            split: write_shards(chunks, tokenizer, temporary / split, params.shard_tokens)
            for split, chunks in split_chunks(text, params.train_fraction).items()
        }
        write_json(temporary / COUNTS_FILE, counts)
    return counts


def split_chunks(path: Path, train_fraction: float) -> dict[str, Iterator[str]]:
    """The file's text as two streams: `train`, the first `train_fraction` of its characters, and `val`, the rest.

    Raises ValueError if the file is missing, is not UTF-8 or leaves a split empty.
    """
    if not path.exists():
        raise missing(path)
    n_characters = sum(map(len, text_chunks(path)))
    n_train = int(train_fraction * n_characters)
    if not 0 < n_train < n_characters:
        raise ValueError(f"{path}: {n_characters} characters cannot be split at {train_fraction}; use a longer corpus")
    return {"train": _between(path, 0, n_train), "val": _between(path, n_train, n_characters)}


def write_shards(chunks: Iterable[str], tokenizer: Tokenizer, folder: Path, shard_tokens: int) -> dict[str, float]:
    """Tokenize a stream of text into `folder`/00000.parquet, … of `shard_tokens` tokens each.

    Returns the counts of tokens, bytes (of UTF-8 text) and documents (pieces between end tokens).
    """
    counts: dict[str, float] = {"tokens": 0, "bytes": 0, "documents": 1}
    buffer = np.empty(0, dtype=np.uint32)
    n_shards = 0
    with whole_folder(folder) as temporary, tqdm(unit="B", unit_scale=True, desc=f"tokenize {folder.name}") as bar:
        for batch in _batched(chunks, os.cpu_count() or 1):
            pieces = tokenizer.encode_documents(batch)
            buffer = np.concatenate([buffer, *(np.array(piece, dtype=np.uint32) for piece in pieces)])
            n_bytes = sum(len(text.encode()) for text in batch)
            counts["tokens"] += sum(map(len, pieces))
            counts["bytes"] += n_bytes
            counts["documents"] += sum(text.count(END_OF_TEXT) for text in batch)
            bar.update(n_bytes)
            while len(buffer) >= shard_tokens:
                _write_shard(temporary, n_shards, buffer[:shard_tokens])
                buffer = buffer[shard_tokens:]
                n_shards += 1
        if len(buffer):
            _write_shard(temporary, n_shards, buffer)
    if not counts["tokens"]:
        raise ValueError(f"the {folder.name} split of the corpus holds no token; use a longer corpus")
    counts["bytes_per_token"] = counts["bytes"] / counts["tokens"]
    return counts


def read_counts(folder: Path) -> dict[str, dict[str, float]]:
    """What write_corpus counted, by split."""
    return read_json(folder / COUNTS_FILE)


def read_tokens(folder: Path, split: str) -> np.ndarray:
    """All token ids of a split of the corpus in `folder`, (N,) uint32. Raises ValueError if there is none."""
    shards = sorted((folder / split).glob("*.parquet"))
    if not shards:
        raise missing(folder / split / "*.parquet")
    return np.concatenate([pq.read_table(shard)["token_id"].to_numpy() for shard in shards])


class TokenWindows:
    """Overlapping stretches of a token stream: window i starts at i * stride.

    Its inputs are context_length tokens, its targets the same one token later (the book, section 2.6).
    """

    def __init__(self, token_ids: np.ndarray, context_length: int, stride: int) -> None:
        """Raises ValueError if the tokens do not fill one window."""
        self.n_windows = (len(token_ids) - context_length - 1) // stride + 1
        if len(token_ids) <= context_length:
            raise ValueError(
                f"{len(token_ids)} tokens do not fill one window of {context_length} + 1; "
                "lower the context_length (of model or evaluation) or take a larger corpus"
            )
        self._windows = np.lib.stride_tricks.sliding_window_view(token_ids, context_length + 1)[::stride]

    def __len__(self) -> int:
        return self.n_windows

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """inputs, targets: (B, context_length) int64 each."""
        windows = self._windows[indices].astype(np.int64)  # (B, T + 1)
        return windows[:, :-1], windows[:, 1:]


def _write_shard(folder: Path, number: int, token_ids: np.ndarray) -> None:
    pq.write_table(
        pa.table([token_ids], schema=SHARD_SCHEMA),
        folder / f"{number:05d}.parquet",
        row_group_size=ROW_GROUP_TOKENS,
        use_dictionary=False,
        **PARQUET_OPTIONS,
    )


def _last_boundary(text: str) -> int:
    """The last index at which white space follows something else; 0 if there is none."""
    for i in range(len(text) - 1, 0, -1):
        if text[i].isspace() and text[i] not in SEPARATORS and not text[i - 1].isspace():
            return i
    return 0


def _between(path: Path, start: int, end: int) -> Iterator[str]:
    """The characters [start, end) of a file, chunk by chunk."""
    seen = 0
    for chunk in text_chunks(path):
        piece = chunk[max(0, start - seen) : max(0, end - seen)]
        seen += len(chunk)
        if piece:
            yield piece


def _batched(chunks: Iterable[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for chunk in chunks:
        batch.append(chunk)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
