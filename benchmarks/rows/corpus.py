"""Tokenize a text file to Parquet, and read windows of tokens for training."""

import atexit
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.baselines import SEED
from benchmarks.harness import Contender, Row, Run
from benchmarks.sources import text_of, tokenizer_of
from scratchlm.data.corpus import CorpusParams, text_chunks, write_corpus
from scratchlm.data.windows import Corpus
from scratchlm.tasks.pretraining import pretraining_task
from scratchlm.training.order import batch_indices

CORPUS = CorpusParams(split="position", deduplicate="none", train_fraction=0.9, shard_tokens=10_000_000)


def varied_text(source: Path, n_bytes: int) -> Iterator[bytes]:
    """Repeat a text's lines in a new order each time, a tenth of them with permuted lower-case letters.

    The permutations give the tokenizer new words each time.
    """
    draws = random.Random(SEED)
    letters = bytes(range(ord("a"), ord("z") + 1))
    lines = source.read_bytes().splitlines(keepends=True)
    while n_bytes > 0:
        cipher = bytes.maketrans(letters, bytes(draws.sample(letters, len(letters))))
        draws.shuffle(lines)
        block = b"".join(line.translate(cipher) if i % 10 == 0 else line for i, line in enumerate(lines))[:n_bytes]
        n_bytes -= len(block)
        yield block


def write_text(path: Path, source: str, n_bytes: int) -> None:
    """`n_bytes` of varied text from the one text file of a source of the catalogue."""
    with path.open("wb") as file:
        file.writelines(varied_text(text_of(source), n_bytes))


def tokenizing(text: Path, folder: Path, vocabulary: str) -> Run:
    """As in stages/tokenize.py: from a file to Parquet, flushed to disk."""
    tokenizer, n_bytes = tokenizer_of(vocabulary), text.stat().st_size

    def run() -> float:
        write_corpus(text, tokenizer, folder, CORPUS)
        return n_bytes

    return run


def our_tokenizing(source: str, n_bytes: int, vocabulary: str) -> Run:
    own = tempfile.TemporaryDirectory()
    atexit.register(own.cleanup)  # the work needs it until its process ends
    text = Path(own.name) / "text.txt"
    write_text(text, source, n_bytes)
    return tokenizing(text, Path(own.name) / "corpus", vocabulary)


def tiktokens_tokenizing(source: str, n_bytes: int, vocabulary: str, at_once: int | None) -> Run:
    """at_once: pieces per call, whose lists are dropped before the next; None: all in one."""
    encoding = tokenizer_of(vocabulary).encoding
    with tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder) / "text.txt", source, n_bytes)
        pieces = list(text_chunks(Path(folder) / "text.txt"))

    def run() -> float:
        size = at_once or len(pieces)
        for start in range(0, len(pieces), size):
            encoding.encode_ordinary_batch(pieces[start : start + size], num_threads=os.cpu_count() or 1)
        return n_bytes

    return run


def opening(folder: Path, batch_size: int, context_length: int) -> Run:
    """The work until the first batch, the first windows of the corpus. Its units are the tokens of all windows."""

    def run() -> float:
        windows = Corpus(folder).windows("train", context_length, context_length)
        windows.batch(np.arange(batch_size))
        return len(windows) * context_length

    return run


def reading(folder: Path, batch_size: int, context_length: int) -> Run:
    """An epoch of training batches, without the training."""
    windows = Corpus(folder).windows("train", context_length, context_length)
    task = pretraining_task(windows, None, lambda model: {})  # type: ignore[arg-type]

    def run() -> float:
        batches = range(task.n_examples // batch_size)
        return sum(task.batch(batch_indices(i, task.n_examples, batch_size, SEED)).n_scored for i in batches)

    return run


def our_reading(source: str, n_bytes: int, vocabulary: str, batch_size: int, context_length: int) -> Run:
    own = tempfile.TemporaryDirectory()
    atexit.register(own.cleanup)  # windows are read while the work is done
    folder = Path(own.name)
    write_text(folder / "text.txt", source, n_bytes)
    write_corpus(folder / "text.txt", tokenizer_of(vocabulary), folder / "corpus", CORPUS)
    return reading(folder / "corpus", batch_size, context_length)


def books_reading(source: str, n_bytes: int, vocabulary: str, batch_size: int, context_length: int) -> Run:
    """The book's create_dataloader_v1 with the vocabulary of our files; its own would be downloaded."""
    from llms_from_scratch.ch02 import GPTDatasetV1
    from torch.utils.data import DataLoader

    with tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder) / "text.txt", source, n_bytes)
        text = (Path(folder) / "text.txt").read_text(encoding="utf-8")
    dataset = GPTDatasetV1(text, tokenizer_of(vocabulary).encoding, context_length, context_length)
    loader = DataLoader(dataset, batch_size=batch_size, shuffle=True, drop_last=True, num_workers=0)

    def run() -> float:
        return sum(targets.numel() for _, targets in loader)

    return run


def reading_row(shape: dict[str, Any], n_bytes: int, books_bytes: int) -> Row:
    contenders = {
        "scratchlm": Contender(our_reading, shape | {"n_bytes": n_bytes}),
        "llms-from-scratch": Contender(books_reading, shape | {"n_bytes": books_bytes}),
    }
    notes = (
        "Equal: text, tokens, an epoch in random order, int64 tensors of inputs and targets. scratchlm reads a "
        f"memory map made of the shards of {n_bytes:,} bytes of text, whose pages count in its peak though the system "
        f"may drop them; llms-from-scratch has the windows of {books_bytes:,} bytes in memory."
    )
    return Row("tokens", contenders, {}, notes)


def make_rows(
    source: str, vocabulary: str, n_bytes: int, books_bytes: int, shapes: list[tuple[int, int]]
) -> dict[str, Row]:
    texts = {"source": source, "vocabulary": vocabulary}
    texts_of_size = texts | {"n_bytes": n_bytes}
    tokenize = Row(
        "bytes",
        {
            "scratchlm": Contender(our_tokenizing, texts_of_size),
            "tiktoken": Contender(tiktokens_tokenizing, texts_of_size | {"at_once": None}),
            "tiktoken, 32 pieces a call": Contender(tiktokens_tokenizing, texts_of_size | {"at_once": 32}),
        },
        {"tiktoken": 0.85, "tiktoken, 32 pieces a call": 0.85},
        "Equal: text, vocabulary, pieces of 2**20 characters, all cores. scratchlm reads the file, divides it into "
        "train and val, knows the end token and writes compressed Parquet, flushed to disk; tiktoken's "
        "encode_ordinary_batch has the pieces in memory and makes lists, whose release counts: those of the whole "
        "text are gigabytes, which takes time too.",
        repeats=3,
    )
    return {"tokenize": tokenize} | {
        f"read_windows_{name}": reading_row(
            texts | {"batch_size": batch_size, "context_length": context_length}, n_bytes, books_bytes
        )
        for name, (batch_size, context_length) in zip(("long", "short"), shapes, strict=True)
    }  # fmt: skip


ROWS = make_rows("tiny-shakespeare", "gpt2-124M", 200_000_000, 20_000_000, [(8, 1024), (2, 256)])
TINY = make_rows("sample-stories", "gpt2-nano", 60_000, 30_000, [(2, 32), (2, 16)])
