"""A corpus of any size to token shards: each file by one thread, in bounded memory, resumed after an interruption."""

import shutil
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from scratchlm.data.byte_pairs import END_OF_TEXT
from scratchlm.data.corpus import CorpusParams, ShardWriter, batches, split_chunks, whole_text_pieces, write_corpus
from scratchlm.data.corpus_duplicates import duplicates
from scratchlm.data.documents import NumberedFile, documents, in_parallel, is_of_train
from scratchlm.data.instructions import InstructionsParams
from scratchlm.data.manifest import MANIFEST, PinnedFile, read_manifest
from scratchlm.data.messages import MessagesParams
from scratchlm.data.preferences import PreferencesParams
from scratchlm.data.tokenizer import Tokenizer
from scratchlm.data.windows import COUNTS_FILE
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


def train_texts(source: Path, params: CorpusParams, checkpoint: Checkpoint, beside: Path) -> Iterator[str]:
    """Yield the text of the train split, in pieces or documents.

    source, checkpoint: as of tokenize_corpus. beside: a path where a temporary folder may be made.
    """
    if params.split == "position":
        yield from split_chunks(source, params.train_fraction)["train"]
        return
    files = _files(source)
    with checkpoint.parts(beside) as parts:
        left_out = duplicates(files, params.deduplicate, parts)
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
        left_out = duplicates(files, params.deduplicate, parts)
        done = {each: found for each in files if (found := _sound_counts(parts / each.name))}
        if done:
            checkpoint.resumed(_position(done, files))
        write = partial(_write_part, parts, tokenizer, params, left_out)
        for each, found in in_parallel("tokenize", files, [each for each in files if each not in done], write):
            done[each] = found
            checkpoint.position = _position(done, files)
        counts = {split: _total([done[each][split] for each in files], split) for split in SPLITS}
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


def _write_part(
    parts: Path, tokenizer: Tokenizer, params: CorpusParams, left_out: Sequence[np.ndarray], each: NumberedFile,
    advance: Advance,
) -> Counts:  # fmt: skip
    """Tokenize one file into a folder of `parts`, with its counts and the hashes of its shards; return the counts.

    left_out: the positions of duplicate documents, by file.
    """
    folder = parts / each.name
    for stale in [*stale_temporary_files(folder), folder]:  # of a killed process, or damaged
        shutil.rmtree(stale, ignore_errors=True)
    counts: Counts = {name: {"tokens": 0, "bytes": 0, "documents": 0} for name in SPLITS}
    with atomic_folder(folder) as temporary:
        with ExitStack() as stack:
            writers = {name: stack.enter_context(ShardWriter(temporary / name, params.shard_tokens)) for name in SPLITS}
            for batch in batches(_kept(each, left_out[each.number], advance)):
                for split, texts in _divided(batch, params.train_fraction).items():
                    counts[split]["bytes"] += sum(len(text.encode()) for text in texts)
                    counts[split]["documents"] += len(texts)
                    for piece in whole_text_pieces("".join(f"{text}{END_OF_TEXT}" for text in texts)):
                        token_ids = tokenizer.encode_documents(piece)
                        counts[split]["tokens"] += len(token_ids)
                        writers[split].add(token_ids)
        hashes = {path.relative_to(temporary).as_posix(): sha256_of(path) for path in temporary.glob("*/*.parquet")}
        write_json(temporary / COUNTS_FILE, {"counts": counts, "sha256": hashes})
    return counts


def _divided(documents: Iterable[str], train_fraction: float) -> dict[str, list[str]]:
    """The documents of each split."""
    texts: dict[str, list[str]] = {split: [] for split in SPLITS}
    for document in documents:
        texts["train" if is_of_train(document.encode(), train_fraction) else "val"].append(document)
    return texts


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
