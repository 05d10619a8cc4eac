"""Text to token ids and back: GPT-2's byte-pair encoding, one trained here, and the book's word tokenizer.

A tokenizer is a folder: encoder.json and vocab.bpe (GPT-2's two files) or words.json.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal, Protocol

import numpy as np
import tiktoken
from pydantic import Field

from scratchlm.run.errors import UserError
from scratchlm.run.files import atomic_folder, damaged, missing, read_json, write_json, write_text
from scratchlm.run.params import Section

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unk|>"
IGNORE_INDEX = -100  # the target of positions without a loss; torch's default
# Radford et al. 2019, section 2.2: contractions, then runs of letters, digits or punctuation, each after at most
# one space, then white space
# White_Space is Python's \s without four control characters
WHITE_SPACE = r"[^\S\x1c-\x1f]"
LONG_WHITE_SPACE = re.compile(rf"(?<!{WHITE_SPACE}){WHITE_SPACE}{{1000,}}")
LONGEST_TRAINED_WORD = 1000  # bytes; longer ones are divided, because the trainer's time grows with their square
GPT2_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
N_BYTES = 256


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
    """The interface of every tokenizer."""

    vocab_size: int
    end_token_id: int

    def encode(self, text: str) -> list[int]:
        """Return token ids of plain text, in which `<|endoftext|>` is text and not the end token.

        Half of a surrogate pair, which is not a character, is read as U+FFFD.
        """

    def encode_documents(self, text: str) -> np.ndarray:
        """Return token ids, (N,) uint32, of text in which `<|endoftext|>` is the end token. Thread-safe."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids; bytes that are not UTF-8 become U+FFFD."""


class BytePairTokenizer:
    """GPT-2's encoding with any vocabulary in its two-file format, computed by tiktoken."""

    def __init__(self, encoder: dict[str, int], merges: Sequence[tuple[str, str]]) -> None:
        """encoder: token, in GPT-2's printable alphabet, to id. merges: in order of priority.

        Raises UserError if the two disagree.
        """
        from_alphabet = {character: byte for byte, character in byte_alphabet().items()}
        merged = ["".join(pair) for pair in merges]
        if (
            not all(type(token_id) is int for token_id in encoder.values())
            or any(len(pair) != 2 for pair in merges)
            or sorted(encoder) != sorted([*from_alphabet, *merged, END_OF_TEXT])
            or sorted(encoder.values()) != list(range(len(encoder)))
            or merged != sorted(merged, key=encoder.__getitem__)
        ):
            raise UserError(
                "vocabulary and merges do not belong together: each merge must have an id, in order, besides "
                f"{N_BYTES} single bytes and {END_OF_TEXT}; take both from one tokenizer"
            )
        ranks = {
            bytes(from_alphabet[character] for character in token): token_id
            for token, token_id in encoder.items()
            if token != END_OF_TEXT
        }
        self.vocab_size = len(encoder)
        self.end_token_id = encoder[END_OF_TEXT]
        self._ranks = ranks
        self.encoding = tiktoken.Encoding(
            "scratchlm", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: self.end_token_id}
        )

    def encode(self, text: str) -> list[int]:
        try:
            return self.encoding.encode(text, allowed_special=set(), disallowed_special=())
        except ValueError:  # a million characters of white space, which overflow the stack of the regular expression
            return self._encode_around_white_space(text)

    def encode_documents(self, text: str) -> np.ndarray:
        try:
            return self.encoding.encode_to_numpy(text, allowed_special={END_OF_TEXT})
        except ValueError:  # the same, or half of a surrogate pair, which tiktoken replaces only in `encode`
            return _encode_parts(self, text)

    def _encode_around_white_space(self, text: str) -> list[int]:
        """Return the token ids of `text`; each long run of white space is encoded without the regular expression.

        A run is one piece of the pattern, without its last character where text follows.
        """
        whole = tiktoken.Encoding("run", pat_str="(?s:.+)", mergeable_ranks=self._ranks, special_tokens={})
        token_ids, start = [], 0
        for run in LONG_WHITE_SPACE.finditer(text):
            end = run.end() if run.end() == len(text) else run.end() - 1
            between = text[start : run.start()]
            token_ids += self.encoding.encode(between, allowed_special=set(), disallowed_special=())
            token_ids += whole.encode_ordinary(text[run.start() : end])
            start = end
        return token_ids + self.encoding.encode(text[start:], allowed_special=set(), disallowed_special=())

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.encoding.decode(list(token_ids))


class WordTokenizer:
    """The book's SimpleTokenizerV2: split at punctuation and white space; an unknown word becomes `<|unk|>`."""

    def __init__(self, words: Sequence[str]) -> None:
        """words: the vocabulary in order of id, including END_OF_TEXT and UNKNOWN."""
        self.words = list(words)
        self.ids = {word: i for i, word in enumerate(self.words)}
        self.vocab_size = len(self.words)
        self.end_token_id = self.ids[END_OF_TEXT]

    def encode(self, text: str) -> list[int]:
        unknown = self.ids[UNKNOWN]
        return [unknown if word == END_OF_TEXT else self.ids.get(word, unknown) for word in split_words(text)]

    def encode_documents(self, text: str) -> np.ndarray:
        return _encode_parts(self, text)

    def decode(self, token_ids: Sequence[int]) -> str:
        text = " ".join(self.words[i] for i in token_ids)
        return re.sub(r'\s+([,.:;?!"()\'])', r"\1", text)


def _encode_parts(tokenizer: BytePairTokenizer | WordTokenizer, text: str) -> np.ndarray:
    first, *others = (tokenizer.encode(part) for part in text.split(END_OF_TEXT))
    token_ids = [*first, *(token_id for part in others for token_id in (tokenizer.end_token_id, *part))]
    return np.array(token_ids, dtype=np.uint32)


def split_words(text: str) -> list[str]:
    """Return words and punctuation marks without white space. Source: the book, section 2.2."""
    return [part.strip() for part in re.split(r'([,.:;?_!"()\']|--|\s)', text) if part.strip()]


def make_tokenizer(params: TokenizerParams, vocabulary: Path, texts: Iterable[str], folder: Path) -> Tokenizer:
    """Make the tokenizer that `params` describe, save it in `folder` and return it.

    vocabulary: the folder of encoder.json and vocab.bpe for kind `gpt2`. texts: the corpus for the other kinds.
    """
    if params.kind == "gpt2":
        encoder, merges = read_json(vocabulary / "encoder.json"), read_merges(vocabulary / "vocab.bpe")
        save_byte_pairs(folder, encoder, merges)
    elif params.kind == "bpe":
        save_byte_pairs(folder, *train_byte_pairs(texts, params.vocab_size))
    else:
        with atomic_folder(folder) as temporary:
            write_json(temporary / "words.json", collect_words(texts))
    return load_tokenizer(folder)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer saved in `folder`. Raises UserError naming what is missing or inconsistent."""
    if (folder / "words.json").exists():
        words = read_json(folder / "words.json", list)
        if not {END_OF_TEXT, UNKNOWN} <= {str(word) for word in words} or not all(
            isinstance(word, str) for word in words
        ):
            raise damaged(folder / "words.json", f"expected a list of texts with {END_OF_TEXT} and {UNKNOWN}")
        return WordTokenizer(words)
    encoder, merges = read_json(folder / "encoder.json"), read_merges(folder / "vocab.bpe")
    try:
        return BytePairTokenizer(encoder, merges)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None


def read_merges(path: Path) -> list[tuple[str, str]]:
    """Return the pairs of a vocab.bpe file in order of priority; its first line is a version comment."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (FileNotFoundError, NotADirectoryError):
        raise missing(path) from None
    except UnicodeDecodeError as error:
        raise damaged(path, f"not UTF-8 text ({error})") from None
    pairs = [tuple(line.split(" ")) for line in lines[1:] if line]
    if any(len(pair) != 2 for pair in pairs):
        raise damaged(path, "every line but the first must hold two tokens")
    return pairs  # type: ignore[return-value]


def save_byte_pairs(folder: Path, encoder: dict[str, int], merges: Sequence[tuple[str, str]]) -> None:
    """Write GPT-2's two files."""
    with atomic_folder(folder) as temporary:
        (temporary / "encoder.json").write_bytes(json.dumps(encoder).encode())
        write_text(temporary / "vocab.bpe", "\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n")


def train_byte_pairs(texts: Iterable[str], vocab_size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Learn merges from `texts`; return encoder and merges. Ids go to bytes, then merges, then the end token.

    Raises UserError if the texts have too few different words for `vocab_size` tokens.
    Source: Sennrich et al. 2016, on bytes as in Radford et al. 2019.
    """
    from tokenizers import Tokenizer as HubTokenizer
    from tokenizers import models, pre_tokenizers, trainers

    hub = HubTokenizer(models.BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    hub.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.FixedLength(LONGEST_TRAINED_WORD)])
    alphabet = sorted(byte_alphabet().values())
    size = vocab_size - 1  # without the end token
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    hub.train_from_iterator((text.replace(END_OF_TEXT, "\n") for text in texts), trainer)
    merges = [tuple(pair) for pair in json.loads(hub.to_str())["model"]["merges"]]
    tokens = [*byte_alphabet().values(), *(left + right for left, right in merges), END_OF_TEXT]
    if len(tokens) != vocab_size:
        raise UserError(
            f"tokenizer.vocab_size is {vocab_size}, but the corpus supports only {len(tokens)} tokens; "
            "choose at most that many, or a larger corpus"
        )
    return {token: i for i, token in enumerate(tokens)}, merges


def collect_words(texts: Iterable[str]) -> list[str]:
    """Return the vocabulary of a word tokenizer: every word of `texts`, sorted, then the two special tokens."""
    words = {word for text in texts for part in text.split(END_OF_TEXT) for word in split_words(part)}
    return [*sorted(words - {UNKNOWN}), END_OF_TEXT, UNKNOWN]


def byte_alphabet() -> dict[int, str]:
    """Return GPT-2's character for each byte: its own if printable in Latin-1, else one from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(N_BYTES) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(N_BYTES + i) for i, byte in enumerate(hidden)}
