"""A corpus of any size to token shards: each file by one thread, in bounded memory, resumed after an interruption."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from threading import Event
from typing import NamedTuple

from scratchlm.data.byte_pairs import END_OF_TEXT
from scratchlm.data.corpus import (
    CHUNK_CHARACTERS,
    COUNTS_FILE,
    CorpusParams,
    ShardWriter,
    split_chunks,
    text_pieces,
    write_corpus,
)
from scratchlm.data.documents import documents, is_of_train
from scratchlm.data.manifest import MANIFEST, PinnedFile, in_turns, read_manifest
from scratchlm.data.sources import place
from scratchlm.data.tokenizer import Tokenizer
from scratchlm.run.context import available_cores
from scratchlm.run.errors import UserError
from scratchlm.run.files import atomic_folder, read_json, sha256_of, stale_temporary_files, write_json
from scratchlm.run.progress import Progress
from scratchlm.run.resume import Checkpoint
from scratchlm.run.workers import requested_workers

SPLITS = ("train", "val")
Counts = dict[str, dict[str, float]]


class _Stopped(Exception):
    """Another file has failed, or the user has interrupted the work."""


class _Work(NamedTuple):
    """What is the same for every file. advance: called with the number of bytes of each read."""

    tokenizer: Tokenizer
    params: CorpusParams
    advance: Callable[[int], None]


def train_texts(source: Path, params: CorpusParams) -> Iterator[str]:
    """Return the text of the train split as a stream, in pieces or documents. source: as of tokenize_corpus."""
    if params.split == "position":
        return split_chunks(source, params.train_fraction)["train"]
    every = chain.from_iterable(documents(file, lambda _: None) for file in _files(source))
    return (document for document in every if is_of_train(document.encode(), params.train_fraction))


def tokenize_corpus(
    source: Path, tokenizer: Tokenizer, folder: Path, params: CorpusParams, checkpoint: Checkpoint
) -> Counts:
    """Tokenize a corpus into `folder`/train and `folder`/val; write its counts to counts.json and return them.

    source: a text file, or the manifest of many. Split into documents, each is followed by the end token, and a shard
    holds tokens of one file, so that the number of threads changes no byte. checkpoint: keeps finished files.
    Raises UserError naming a file that is not as pinned, or a split that is empty.
    """
    if params.split == "position":
        return write_corpus(source, tokenizer, folder, params)
    files = _files(source)
    with checkpoint.parts(folder) as parts:
        done = {i: found for i in range(len(files)) if (found := _sound_counts(parts / _name(i)))}
        if done:
            checkpoint.resumed(_position(len(done), files))
        _write_parts(files, done, parts, _Work(tokenizer, params, lambda _: None), checkpoint)
        counts = {split: _total([done[i][split] for i in range(len(files))], split) for split in SPLITS}
        with atomic_folder(folder) as temporary:
            for i in range(len(files)):
                for shard in sorted((parts / _name(i)).glob("*/*.parquet")):
                    place(shard, temporary / shard.parent.name / f"{_name(i)}-{shard.name}")
            write_json(temporary / COUNTS_FILE, counts)
    return counts


def _files(source: Path) -> list[PinnedFile]:
    if source.name == MANIFEST:
        return read_manifest(source)
    return [PinnedFile(str(source), source.stat().st_size, sha256_of(source), "txt")]


def _name(i: int) -> str:
    return f"{i:06d}"


def _position(n_done: int, files: Sequence[PinnedFile]) -> str:
    return f"file {min(n_done + 1, len(files))} of {len(files)}"


def _write_parts(
    files: Sequence[PinnedFile], done: dict[int, Counts], parts: Path, work: _Work, checkpoint: Checkpoint
) -> None:
    """Tokenize what is not done, several files at once, each into a folder of its own; add their counts to `done`.

    Threads suffice: tiktoken, decompression, hashes and Parquet release the interpreter's lock.
    """
    stopped = Event()
    n_bytes = [file.size_bytes for file in files]
    with Progress("tokenize", sum(n_bytes), sum(n_bytes[i] for i in done), "B") as bar:
        shown = in_turns(bar.update)

        def advance(n: int) -> None:
            if stopped.is_set():
                raise _Stopped
            shown(n)

        work = work._replace(advance=advance)
        with ThreadPoolExecutor(requested_workers(otherwise=available_cores())) as pool:
            waiting = {
                pool.submit(_write_part, file, parts / _name(i), work): i
                for i, file in enumerate(files)
                if i not in done
            }
            try:
                for future in as_completed(waiting):
                    done[waiting[future]] = future.result()
                    checkpoint.position = _position(len(done), files)
            except BaseException:
                stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _write_part(file: PinnedFile, folder: Path, work: _Work) -> Counts:
    """Tokenize one file into `folder`/{train,val}, with its counts and the hashes of its shards; return the counts."""
    for stale in [*stale_temporary_files(folder), folder]:  # of a killed process, or damaged
        shutil.rmtree(stale, ignore_errors=True)
    with atomic_folder(folder) as temporary:
        with ExitStack() as stack:
            splits = {name: stack.enter_context(_Split(temporary / name, work)) for name in SPLITS}
            for document in documents(file, work.advance):
                text = document.encode()
                is_train = is_of_train(text, work.params.train_fraction)
                splits["train" if is_train else "val"].add(document, len(text))
        counts = {name: split.counts for name, split in splits.items()}
        hashes = {path.relative_to(temporary).as_posix(): sha256_of(path) for path in temporary.glob("*/*.parquet")}
        write_json(temporary / COUNTS_FILE, {"counts": counts, "sha256": hashes})
    return counts


class _Split:
    """The documents of one split of a file, which are encoded a few at a time, each with the end token behind it."""

    def __init__(self, folder: Path, work: _Work) -> None:
        folder.mkdir()
        self._tokenizer, self._writer = work.tokenizer, ShardWriter(folder, work.params.shard_tokens)
        self._waiting: list[str] = []
        self._n_characters = 0
        self.counts: dict[str, float] = {"tokens": 0, "bytes": 0, "documents": 0}

    def __enter__(self) -> "_Split":
        self._writer.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._encode()
        self._writer.__exit__(*error)  # type: ignore[arg-type]

    def add(self, document: str, n_bytes: int) -> None:
        self._waiting.append(document)
        self._n_characters += len(document)
        self.counts["bytes"] += n_bytes
        self.counts["documents"] += 1
        if self._n_characters >= CHUNK_CHARACTERS:
            self._encode()

    def _encode(self) -> None:
        text = "".join(f"{document}{END_OF_TEXT}" for document in self._waiting)
        blocks = [text[i : i + CHUNK_CHARACTERS] for i in range(0, len(text), CHUNK_CHARACTERS)]
        for piece in text_pieces(blocks) if len(blocks) > 2 else (text,):
            token_ids = self._tokenizer.encode_documents(piece)
            self.counts["tokens"] += len(token_ids)
            self._writer.add(token_ids)
        self._waiting, self._n_characters = [], 0


def _sound_counts(part: Path) -> Counts | None:
    """The counts of a file that was tokenized before; None if it was not, or if a shard is damaged."""
    try:
        found = read_json(part / COUNTS_FILE)
    except UserError:
        return None
    shards = {path.relative_to(part).as_posix(): path for path in part.glob("*/*.parquet")}
    is_sound = shards.keys() == found["sha256"].keys() and all(
        sha256_of(path) == found["sha256"][name] for name, path in shards.items()
    )
    return found["counts"] if is_sound else None


def _total(counts: Sequence[dict[str, float]], split: str) -> dict[str, float]:
    total = {name: sum(each[name] for each in counts) for name in ("tokens", "bytes", "documents")}
    if not total["documents"]:
        raise UserError(
            f"the {split} split of the corpus has no document; use a larger corpus, or change train_fraction"
        )
    return total | {"bytes_per_token": total["bytes"] / total["tokens"]}
