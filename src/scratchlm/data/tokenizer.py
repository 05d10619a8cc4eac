"""Text to token ids and back: byte-pair encodings, and the book's word tokenizer, a folder with words.json."""

import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal, Protocol

import numpy as np
from pydantic import Field

from scratchlm.data.byte_pairs import (
    END_OF_TEXT,
    N_BYTES,
    SETTINGS_FILE,
    BytePairTokenizer,
    encode_parts,
    read_byte_pairs,
    save_byte_pairs,
    train_byte_pairs,
)
from scratchlm.run.errors import UserError
from scratchlm.run.files import atomic_folder, damaged, read_json, write_json
from scratchlm.run.params import Section

UNKNOWN = "<|unk|>"
WORDS_FILE = "words.json"
IGNORE_INDEX = -100  # the target of positions without a loss; torch's default


class GPT2TokenizerParams(Section):
    """Byte-pair encoding with the vocabulary that `sources.vocabulary` names."""

    kind: Literal["gpt2"]


class TrainedTokenizerParams(Section):
    """Byte-pair encoding trained on the train split of the corpus."""

    kind: Literal["bpe"]
    vocab_size: Annotated[int, Field(ge=N_BYTES + 2, le=100_000)]


class WordTokenizerParams(Section):
    """Every word and punctuation mark of the corpus is a token (the book's chapter 2)."""

    kind: Literal["word"]


_AnyParams = GPT2TokenizerParams | TrainedTokenizerParams | WordTokenizerParams
TokenizerParams = Annotated[_AnyParams, Field(discriminator="kind")]


class Tokenizer(Protocol):
    """The interface of every tokenizer.

    begin_ids: the token that a text of its own begins with, if the model has one. special_tokens: to id; text never
    becomes one of them.
    """

    vocab_size: int
    begin_ids: list[int]
    end_token_id: int
    special_tokens: dict[str, int]

    def encode(self, text: str) -> list[int]:
        """Return token ids of plain text, without begin_ids; `<|endoftext|>` is text in it and not the end token.

        Half of a surrogate pair, which is not a character, is read as U+FFFD.
        """

    def encode_documents(self, text: str) -> np.ndarray:
        """Return token ids, (N,) uint32, of text in which `<|endoftext|>` is a token. Thread-safe.

        It is the special token of that name, or the end token where there is none; begin_ids follow it.
        """

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids; bytes that are not UTF-8 become U+FFFD."""


class WordTokenizer:
    """The book's SimpleTokenizerV2: split at punctuation and white space; an unknown word becomes `<|unk|>`."""

    def __init__(self, words: Sequence[str]) -> None:
        """words: the vocabulary in order of id, including END_OF_TEXT and UNKNOWN."""
        self.words = list(words)
        self.ids = {word: i for i, word in enumerate(self.words)}
        self.vocab_size = len(self.words)
        self.begin_ids: list[int] = []
        self.end_token_id = self.ids[END_OF_TEXT]
        self.special_tokens = {END_OF_TEXT: self.end_token_id}

    def encode(self, text: str) -> list[int]:
        unknown = self.ids[UNKNOWN]
        return [unknown if word == END_OF_TEXT else self.ids.get(word, unknown) for word in split_words(text)]

    def encode_documents(self, text: str) -> np.ndarray:
        return encode_parts(self, text)

    def decode(self, token_ids: Sequence[int]) -> str:
        text = " ".join(self.words[i] for i in token_ids)
        return re.sub(r'\s+([,.:;?!"()\'])', r"\1", text)


def split_words(text: str) -> list[str]:
    """Return words and punctuation marks without white space. Source: the book, section 2.2."""
    return [part.strip() for part in re.split(r'([,.:;?_!"()\']|--|\s)', text) if part.strip()]


def make_tokenizer(params: TokenizerParams, vocabulary: Path, texts: Iterable[str], folder: Path) -> Tokenizer:
    """Make the tokenizer that `params` describe, save it in `folder` and return it.

    vocabulary: the folder of the tokenizer's files for kind `gpt2`. texts: the corpus for the other kinds.
    """
    if params.kind == "gpt2":
        save_byte_pairs(folder, *read_byte_pairs(vocabulary))
    elif params.kind == "bpe":
        save_byte_pairs(folder, *train_byte_pairs(texts, params.vocab_size))
    else:
        with atomic_folder(folder) as temporary:
            write_json(temporary / WORDS_FILE, collect_words(texts))
    return load_tokenizer(folder)


def copy_tokenizer(source: Path, folder: Path) -> Tokenizer:
    """Copy the tokenizer's files among those in `source` to a folder of their own, and return it."""
    with atomic_folder(folder) as temporary:
        for name in ("encoder.json", "vocab.bpe", SETTINGS_FILE, WORDS_FILE):
            if (source / name).exists():
                shutil.copyfile(source / name, temporary / name)
    return load_tokenizer(folder)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer saved in `folder`. Raises UserError naming what is missing or inconsistent."""
    if (folder / WORDS_FILE).exists():
        words = read_json(folder / WORDS_FILE, list)
        if not {END_OF_TEXT, UNKNOWN} <= {str(word) for word in words} or not all(
            isinstance(word, str) for word in words
        ):
            raise damaged(folder / WORDS_FILE, f"expected a list of texts with {END_OF_TEXT} and {UNKNOWN}")
        return WordTokenizer(words)
    pairs = read_byte_pairs(folder)
    try:
        return BytePairTokenizer(*pairs)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None


def collect_words(texts: Iterable[str]) -> list[str]:
    """Return the vocabulary of a word tokenizer: every word of `texts`, sorted, then the two special tokens."""
    words = {word for text in texts for part in text.split(END_OF_TEXT) for word in split_words(part)}
    return [*sorted(words - {UNKNOWN}), END_OF_TEXT, UNKNOWN]
