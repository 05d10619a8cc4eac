"""A corpus of any size to token shards: each file by one thread, in bounded memory, resumed after an interruption."""

import shutil
from collections.abc import Iterator, Sequence, Sized
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from scratchlm.data.byte_pairs import END_OF_TEXT
from scratchlm.data.corpus import (
    CHUNK_CHARACTERS,
    COUNTS_FILE,
    CorpusParams,
    ShardWriter,
    split_chunks,
    whole_text_pieces,
    write_corpus,
)
from scratchlm.data.corpus_duplicates import exact_duplicates, near_duplicates
from scratchlm.data.documents import NumberedFile, documents, in_parallel, is_of_train
from scratchlm.data.instructions import InstructionsParams
from scratchlm.data.manifest import MANIFEST, PinnedFile, read_manifest
from scratchlm.data.messages import MessagesParams
from scratchlm.data.preferences import PreferencesParams
from scratchlm.data.tokenizer import Tokenizer
from scratchlm.run.errors import UserError
from scratchlm.run.files import atomic_folder, read_json, sha256_of, stale_temporary_files, write_json
from scratchlm.run.params import Section
from scratchlm.run.resume import Checkpoint
from scratchlm.run.threads import Advance

SPLITS = ("train", "val")
Counts = dict[str, dict[str, float]]


class TokenizeParams(Section):
    """The section `tokenize` of params.yaml.

    finetuning_tokenizer: of messages, instructions and pairs: the corpus' own, or that of `sources.vocabulary`.
    """

    finetuning_tokenizer: Literal["corpus", "vocabulary"]
    corpus: CorpusParams
    messages: MessagesParams
    instructions: InstructionsParams
    preferences: PreferencesParams


class _Work(NamedTuple):
    """What is the same for every file. left_out: the positions of duplicate documents, by file."""

    tokenizer: Tokenizer
    params: CorpusParams
    left_out: Sequence[np.ndarray]


def train_texts(source: Path, params: CorpusParams, checkpoint: Checkpoint, beside: Path) -> Iterator[str]:
    """Return the text of the train split as a stream, in pieces or documents.

    source, checkpoint: as of tokenize_corpus. beside: a path where a temporary folder may be made.
    """
    if params.split == "position":
        return split_chunks(source, params.train_fraction)["train"]
    return _train_documents(_files(source), params, checkpoint, beside)


def _train_documents(
    files: Sequence[NumberedFile], params: CorpusParams, checkpoint: Checkpoint, beside: Path
) -> Iterator[str]:
    with checkpoint.parts(beside) as parts:
        left_out = _duplicates(files, params, parts)
        for each in files:
            for document in _kept(each, left_out[each.number], lambda _: None):
                if is_of_train(document.encode(), params.train_fraction):
                    yield document


def tokenize_corpus(
    source: Path, tokenizer: Tokenizer, folder: Path, params: CorpusParams, checkpoint: Checkpoint
) -> dict[str, Any]:
    """Tokenize a corpus into `folder`/train and `folder`/val; write its counts to counts.json and return them.

    source: a text file, or the manifest of many. Split into documents, each is followed by the end token, and a shard
    holds tokens of one file, so that the number of threads changes no byte. checkpoint: keeps finished files. If
    duplicates are removed, `removed_duplicates` counts them, too.
    Raises UserError naming a file that is not as pinned, or a split that is empty.
    """
    if params.split == "position":
        return write_corpus(source, tokenizer, folder, params)
    files = _files(source)
    with checkpoint.parts(folder) as parts:
        left_out = _duplicates(files, params, parts)
        done = {each.number: found for each in files if (found := _sound_counts(parts / each.name))}
        if done:
            checkpoint.resumed(_position(done, files))
        work, todo = _Work(tokenizer, params, left_out), [each for each in files if each.number not in done]
        write = partial(_write_part, parts, work)
        for number, found in in_parallel("tokenize", files, todo, write):
            done[number] = found
            checkpoint.position = _position(done, files)
        counts = {split: _total([done[each.number][split] for each in files], split) for split in SPLITS}
        from scratchlm.data.sources import place  # with requests, which takes a moment to import

        with atomic_folder(folder) as temporary:
            for each in files:
                for shard in sorted((parts / each.name).glob("*/*.parquet")):
                    place(shard, temporary / shard.parent.name / f"{each.name}-{shard.name}")
            write_json(temporary / COUNTS_FILE, counts)
    return counts if params.deduplicate == "none" else counts | {"removed_duplicates": sum(map(len, left_out))}


def _files(source: Path) -> list[NumberedFile]:
    if source.name == MANIFEST:
        return [NumberedFile(number, file) for number, file in enumerate(read_manifest(source))]
    return [NumberedFile(0, PinnedFile(str(source), source.stat().st_size, sha256_of(source), "txt"))]


def _duplicates(files: Sequence[NumberedFile], params: CorpusParams, parts: Path) -> Sequence[np.ndarray]:
    """The positions of the documents of each file that are left out."""
    if params.deduplicate == "none":
        return [np.empty(0, dtype=np.int64)] * len(files)
    if params.deduplicate == "exact":
        return exact_duplicates(files, parts)
    return near_duplicates(files, parts, params.deduplicate.near)


def _kept(each: NumberedFile, left_out: np.ndarray, advance: Advance) -> Iterator[str]:
    """The documents of a file without those at the positions `left_out`, which are in order."""
    skipped = iter(left_out.tolist())
    skip = next(skipped, None)
    for position, document in enumerate(documents(each.file, advance)):
        if position == skip:
            skip = next(skipped, None)
        else:
            yield document


def _position(done: Sized, files: Sized) -> str:
    return f"file {min(len(done) + 1, len(files))} of {len(files)}"


def _write_part(parts: Path, work: _Work, each: NumberedFile, advance: Advance) -> Counts:
    """Tokenize one file into a folder of `parts`, with its counts and the hashes of its shards; return the counts."""
    folder = parts / each.name
    for stale in [*stale_temporary_files(folder), folder]:  # of a killed process, or damaged
        shutil.rmtree(stale, ignore_errors=True)
    with atomic_folder(folder) as temporary:
        with ExitStack() as stack:
            splits = {name: stack.enter_context(_Split(temporary / name, work)) for name in SPLITS}
            for document in _kept(each, work.left_out[each.number], advance):
                text = document.encode()
                is_train = is_of_train(text, work.params.train_fraction)
                splits["train" if is_train else "val"].add(document, len(text))
        counts = {name: split.counts for name, split in splits.items()}
        hashes = {path.relative_to(temporary).as_posix(): sha256_of(path) for path in temporary.glob("*/*.parquet")}
        write_json(temporary / COUNTS_FILE, {"counts": counts, "sha256": hashes})
    return counts


class _Split:
    """The documents of one split of a file, encoded a few at a time, each followed by the end token."""

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
        for piece in whole_text_pieces(text):
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
