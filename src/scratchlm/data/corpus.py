"""Write the corpus: text to Parquet shards of token ids, in bounded memory."""

import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from scratchlm.data.byte_pairs import END_OF_TEXT, WHITE_SPACE
from scratchlm.data.tables import text_blocks
from scratchlm.data.tokenizer import Tokenizer
from scratchlm.data.windows import COUNTS_FILE, SHARD_SCHEMA
from scratchlm.run.errors import UserError
from scratchlm.run.files import PARQUET_OPTIONS, atomic_folder, write_json
from scratchlm.run.params import Section
from scratchlm.run.progress import Progress

CHUNK_CHARACTERS = 1 << 20
ROW_GROUP_TOKENS = 1 << 20
# Where white space follows other text, but no end of a line follows punctuation: some tokenizers join these
UP_TO_LAST_BOUNDARY = re.compile(rf"(?s:.*)(?:[^\W_](?={WHITE_SPACE})|\S(?=(?![\r\n]){WHITE_SPACE}))")


class NearDuplicates(Section):
    """near: the least share of their runs of words that near duplicates have in common (Jaccard's similarity)."""

    near: Annotated[float, Field(ge=0.5, le=1)]


class CorpusParams(Section):
    """Splitting and storage of the corpus; val is the rest.

    split: by position, the first train_fraction of the characters; or each document by a hash of its text, so that
    equal documents are in one split. deduplicate: exact keeps only the first of equal documents; or NearDuplicates,
    only the first of similar ones.
    """

    split: Literal["position", "documents"]
    deduplicate: Literal["none", "exact"] | NearDuplicates
    train_fraction: Annotated[float, Field(gt=0, lt=1)]
    shard_tokens: Annotated[int, Field(ge=1000)]  # fewer would give a file for each few words

    @model_validator(mode="after")
    def _has_documents(self) -> Self:
        if self.split == "position" and self.deduplicate != "none":
            raise ValueError("deduplicate needs split: documents; set that, or deduplicate: none")
        return self


def text_chunks(path: Path) -> Iterator[str]:
    """Yield a UTF-8 file in pieces of about CHUNK_CHARACTERS, in constant memory; see text_pieces, and text_blocks."""
    return text_pieces(text_blocks(path, CHUNK_CHARACTERS))


def text_pieces(blocks: Iterable[str]) -> Iterator[str]:
    """Yield a text that comes in blocks in pieces of about CHUNK_CHARACTERS.

    A piece ends where white space begins. No token of our tokenizers spans such a boundary, so the tokens of the
    pieces are those of the whole text (of SentencePiece's kind, each piece has a space before it). Only text with no
    boundary in 16 pieces is divided elsewhere.
    """
    pending, boundary = "", 0
    for block in blocks:
        n_searched = len(pending)
        pending += block
        if found := UP_TO_LAST_BOUNDARY.match(pending, max(0, n_searched - 1)):
            boundary = found.end()
        if len(pending) >= CHUNK_CHARACTERS:
            cut = boundary or (len(pending) if len(pending) > 16 * CHUNK_CHARACTERS else 0)
            if cut:
                yield pending[:cut]
                pending, boundary = pending[cut:], 0
    if pending:
        yield pending


def whole_text_pieces(text: str) -> Iterable[str]:
    """Return a whole text in pieces; see text_pieces."""
    blocks = [text[i : i + CHUNK_CHARACTERS] for i in range(0, len(text), CHUNK_CHARACTERS)]
    return text_pieces(blocks) if len(blocks) > 2 else [text]


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield the texts in lists of about CHUNK_CHARACTERS."""
    batch, n_characters = list[str](), 0
    for text in texts:
        batch.append(text)
        n_characters += len(text)
        if n_characters >= CHUNK_CHARACTERS:
            yield batch
            batch, n_characters = [], 0
    if batch:
        yield batch


def write_corpus(text: Path, tokenizer: Tokenizer, folder: Path, params: CorpusParams) -> dict[str, dict[str, float]]:
    """Tokenize a text file into `folder`/train and `folder`/val. Write its counts to counts.json and return them."""
    with atomic_folder(folder) as temporary:
        counts = {
            split: write_shards(chunks, tokenizer, temporary / split, params.shard_tokens)
            for split, chunks in split_chunks(text, params.train_fraction).items()
        }
        write_json(temporary / COUNTS_FILE, counts)
    return counts


def split_chunks(path: Path, train_fraction: float) -> dict[str, Iterator[str]]:
    """Return the text as two streams: `train`, the first `train_fraction` of the characters, and `val`, the rest.

    Raises UserError if the file is missing, is not UTF-8 or leaves a split empty.
    """
    n_characters = sum(map(len, text_chunks(path)))
    n_train = int(train_fraction * n_characters)
    if not 0 < n_train < n_characters:
        raise UserError(f"{path}: {n_characters} characters cannot be split at {train_fraction}; use a longer corpus")
    return {"train": _between(path, 0, n_train), "val": _between(path, n_train, n_characters)}


def write_shards(chunks: Iterable[str], tokenizer: Tokenizer, folder: Path, shard_tokens: int) -> dict[str, float]:
    """Tokenize a stream of text into `folder`/00000.parquet, … of `shard_tokens` tokens each.

    Every core tokenizes while this thread writes. Memory holds a few pieces of text and one row group.
    Returns the counts of tokens, bytes (of UTF-8 text) and documents (separated by end tokens).
    """
    counts: dict[str, float] = {"tokens": 0, "bytes": 0, "documents": 1}
    with (
        atomic_folder(folder) as temporary,
        Progress(f"tokenize {folder.name}", None, 0, "B") as bar,
        ShardWriter(temporary, shard_tokens) as writer,
    ):
        for text, token_ids in _tokenized(chunks, tokenizer):
            writer.add(token_ids)
            n_bytes = len(text.encode())
            counts["tokens"] += len(token_ids)
            counts["bytes"] += n_bytes
            counts["documents"] += text.count(END_OF_TEXT)
            bar.update(n_bytes)
    if not counts["tokens"]:
        raise UserError(f"the {folder.name} split of the corpus has no tokens; use a longer corpus")
    counts["bytes_per_token"] = counts["bytes"] / counts["tokens"]
    return counts


class ShardWriter:
    """Writes token ids as they come into `folder`/00000.parquet, … of `shard_tokens` each, a row group in memory."""

    def __init__(self, folder: Path, shard_tokens: int) -> None:
        folder.mkdir(exist_ok=True)
        self._folder, self._shard_tokens = folder, shard_tokens
        self._rest, self._n_written = np.empty(0, dtype=np.uint32), 0
        self._shard: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and len(self._rest):
            self._write(self._rest)
        if self._shard:
            self._shard.close()

    def add(self, token_ids: np.ndarray) -> None:
        """token_ids: (N,) uint32."""
        self._rest = np.concatenate([self._rest, token_ids])
        while len(self._rest) >= (
            size := min(ROW_GROUP_TOKENS, self._shard_tokens - self._n_written % self._shard_tokens)
        ):
            self._write(self._rest[:size])
            self._rest = self._rest[size:]

    def _write(self, token_ids: np.ndarray) -> None:
        if self._shard is None:
            path = self._folder / f"{self._n_written // self._shard_tokens:05d}.parquet"
            self._shard = pq.ParquetWriter(path, SHARD_SCHEMA, use_dictionary=False, **PARQUET_OPTIONS)
        self._shard.write_table(pa.table([token_ids], schema=SHARD_SCHEMA))
        self._n_written += len(token_ids)
        if self._n_written % self._shard_tokens == 0:
            self._shard.close()
            self._shard = None


def _tokenized(chunks: Iterable[str], tokenizer: Tokenizer) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each piece of text and its token ids, in order, while every core tokenizes a few pieces ahead."""
    n_threads = os.cpu_count() or 1
    waiting: deque[tuple[str, Future[np.ndarray]]] = deque()
    with ThreadPoolExecutor(n_threads) as pool:
        for chunk in chunks:
            waiting.append((chunk, pool.submit(tokenizer.encode_documents, chunk)))
            if len(waiting) > 2 * n_threads:
                text, token_ids = waiting.popleft()
                yield text, token_ids.result()
        for text, token_ids in waiting:
            yield text, token_ids.result()


def _between(path: Path, start: int, end: int) -> Iterator[str]:
    """Yield the characters [start, end) of a file in pieces."""
    seen = 0
    for chunk in text_chunks(path):
        piece = chunk[max(0, start - seen) : max(0, end - seen)]
        seen += len(chunk)
        if piece:
            yield piece
        if seen >= end:
            return
