"""Byte-pair encodings: GPT-2's, another model's, and one trained here.

A byte-pair tokenizer is a folder: encoder.json and vocab.bpe (GPT-2's two files), and settings.json where it differs
from GPT-2's.
"""

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tiktoken
from pydantic import Field, ValidationError

from scratchlm.data.hub_tokenizer import (
    N_BYTES,
    PATTERNS,
    Rules,
    byte_alphabet,
    hub_tokenizer,
    normalizer,
    single_tokens,
)
from scratchlm.run.errors import UserError
from scratchlm.run.files import atomic_folder, damaged, missing, read_json, write_json, write_text
from scratchlm.run.params import Section

END_OF_TEXT = "<|endoftext|>"
# White_Space is Python's \s without four control characters
WHITE_SPACE = r"[^\S\x1c-\x1f]"
LONGEST_TRAINED_WORD = 1000  # bytes; longer ones are divided, because the trainer's time grows with their square
SETTINGS_FILE = "settings.json"


class BytePairSettings(Section):
    """How a byte-pair tokenizer differs from others with its vocabulary and merges.

    end_token: one of special_tokens, as is begin_token. special_tokens: text never becomes one of them. missing_bytes:
    bytes without a token, which are left out of the text. chat_template: the model's own, in Jinja.
    """

    pattern: Rules
    # Stored only if there is one: settings without it keep their bytes
    begin_token: Annotated[str | None, Field(exclude_if=lambda token: token is None)] = None
    end_token: str
    special_tokens: list[Annotated[str, Field(min_length=1)]]
    missing_bytes: list[Annotated[int, Field(ge=0, lt=N_BYTES)]]
    chat_template: str | None


GPT2_SETTINGS = BytePairSettings(
    pattern="gpt2", end_token=END_OF_TEXT, special_tokens=[END_OF_TEXT], missing_bytes=[], chat_template=None
)


class BytePairs(NamedTuple):
    """What makes a byte-pair tokenizer.

    encoder: token, in GPT-2's printable alphabet, to id; of SentencePiece, in characters. merges: in order of priority.
    """

    encoder: dict[str, int]
    merges: Sequence[tuple[str, str]]
    settings: BytePairSettings = GPT2_SETTINGS


class BytePairTokenizer:
    """A byte-pair encoding with any vocabulary: computed by tiktoken if it is byte-level, else by `tokenizers`."""

    def __init__(
        self, encoder: dict[str, int], merges: Sequence[tuple[str, str]], settings: BytePairSettings = GPT2_SETTINGS
    ) -> None:
        """encoder, merges, settings: as BytePairs describes them. Raises UserError if they disagree."""
        self.pairs = BytePairs(encoder, merges, settings)
        _check_together(self.pairs)
        self.vocab_size = len(encoder)
        self.end_token_id = encoder[settings.end_token]
        self.begin_ids = [encoder[settings.begin_token]] if settings.begin_token else []
        self.special_tokens = {token: encoder[token] for token in settings.special_tokens}
        self._normalizer = normalizer(settings.pattern)
        self.encoding = _tiktoken_encoding(self.pairs) if settings.pattern in PATTERNS else None

    def encode(self, text: str) -> list[int]:
        if self.encoding is None:
            return self._encode_slowly(text)
        if self._normalizer:
            text = self._normalizer.normalize_str(_valid(text))
        try:
            token_ids = self.encoding.encode(text, allowed_special=set(), disallowed_special=())
        except ValueError:  # a million characters of white space, which overflow the stack of the regular expression
            return self._encode_slowly(text)
        if self.pairs.settings.missing_bytes and max(token_ids, default=0) >= self.vocab_size:
            return self._encode_slowly(text)
        return token_ids

    def encode_documents(self, text: str) -> np.ndarray:
        if self.encoding is None or self._normalizer or self.begin_ids or END_OF_TEXT not in self.special_tokens:
            return encode_parts(self, text)
        try:
            token_ids = self.encoding.encode_to_numpy(text, allowed_special={END_OF_TEXT})
        except ValueError:  # as in `encode`, or half of a surrogate pair, which tiktoken replaces only there
            return encode_parts(self, text)
        return token_ids if token_ids.max(initial=0) < self.vocab_size else encode_parts(self, text)

    def _encode_slowly(self, text: str) -> list[int]:
        """Return the ids by Hugging Face's library: it takes any text, and drops missing bytes before merging."""
        token_ids: list[int] = self._hub.encode(_valid(text)).ids
        return token_ids

    @cached_property
    def _hub(self) -> Any:
        return hub_tokenizer(self.pairs.settings.pattern, self.pairs.encoder, self.pairs.merges)

    def decode(self, token_ids: Sequence[int]) -> str:
        if self.encoding is None:
            text: str = self._hub.decode(list(token_ids))
            return text
        return self.encoding.decode(list(token_ids))


def _valid(text: str) -> str:
    """Return the text with each half of a surrogate pair replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _tiktoken_encoding(pairs: BytePairs) -> tiktoken.Encoding:
    encoder, _, settings = pairs
    special_tokens = {token: encoder[token] for token in settings.special_tokens}
    from_alphabet = {character: byte for byte, character in byte_alphabet().items()}
    ranks = {
        bytes(from_alphabet[character] for character in token): token_id
        for token, token_id in encoder.items()
        if token not in special_tokens
    }
    # tiktoken needs a rank for every byte; an id beyond the vocabulary shows that the text has a missing one
    ranks |= {bytes([byte]): len(encoder) + i for i, byte in enumerate(settings.missing_bytes)}
    return tiktoken.Encoding(
        "scratchlm", pat_str=PATTERNS[settings.pattern], mergeable_ranks=ranks, special_tokens=special_tokens
    )


def _check_together(pairs: BytePairs) -> None:
    """Raise UserError unless bytes, merges and special tokens are the whole vocabulary."""
    encoder, merges, settings = pairs
    absent = {byte_alphabet()[byte] for byte in settings.missing_bytes}
    single = single_tokens(settings.pattern, encoder) - absent - set(settings.special_tokens)
    merged = ["".join(pair) for pair in merges]
    known = single.union(merged)
    named = {token for token in (settings.begin_token, settings.end_token) if token is not None}
    if (
        not all(len(pair) == 2 and known.issuperset(pair) for pair in merges)
        or not all(type(token_id) is int for token_id in encoder.values())
        or sorted(encoder) != sorted([*known, *settings.special_tokens])
        or sorted(encoder.values()) != list(range(len(encoder)))
        # tiktoken merges by id
        or (settings.pattern in PATTERNS and merged != sorted(merged, key=encoder.__getitem__))
        or not named <= set(settings.special_tokens)
        or not set(" \n").isdisjoint("".join(merged))  # which separate tokens in vocab.bpe
    ):
        special = settings.special_tokens
        singles = f"{len(single)} single {'bytes' if settings.pattern in PATTERNS else 'bytes and characters'}"
        besides = special[0] if len(special) == 1 else f"{len(special)} special tokens"
        raise UserError(
            "vocabulary and merges do not belong together: each merge must have an id, in order, besides "
            f"{singles} and {besides}; take both from one tokenizer"
        )


def encode_parts(tokenizer: Any, text: str) -> np.ndarray:
    """Return what encode_documents returns, by `encode`. tokenizer: any with special_tokens."""
    first, *others = (tokenizer.encode(part) for part in text.split(END_OF_TEXT))
    end = tokenizer.special_tokens.get(END_OF_TEXT, tokenizer.end_token_id)
    token_ids = [*first, *(token_id for part in others for token_id in (end, *tokenizer.begin_ids, *part))]
    return np.array(token_ids, dtype=np.uint32)


def read_byte_pairs(folder: Path) -> BytePairs:
    """Return what the files of a byte-pair tokenizer hold. Raises UserError naming the file that cannot be read."""
    encoder, merges = read_json(folder / "encoder.json"), read_merges(folder / "vocab.bpe")
    path = folder / SETTINGS_FILE
    if not path.exists():
        return BytePairs(encoder, merges)
    return BytePairs(encoder, merges, check_settings(read_json(path), path))


def check_settings(values: dict[str, Any], path: Path) -> BytePairSettings:
    """Return the settings that a file holds. Raises UserError naming the file and the first mistake."""
    try:
        return BytePairSettings.model_validate(values)
    except ValidationError as error:
        mistake = error.errors()[0]
        raise damaged(path, f"{'.'.join(map(str, mistake['loc']))}: {mistake['msg'].lower()}") from None


def read_merges(path: Path) -> list[tuple[str, str]]:
    """Return the pairs of a vocab.bpe file in order of priority; its first line is a version comment."""
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")  # read_text would make other ends of lines of \r
    except (FileNotFoundError, NotADirectoryError):
        raise missing(path) from None
    except UnicodeDecodeError as error:
        raise damaged(path, f"not UTF-8 text ({error})") from None
    pairs = [tuple(line.split(" ")) for line in lines[1:] if line]
    if any(len(pair) != 2 for pair in pairs):
        raise damaged(path, "every line but the first must hold two tokens")
    return pairs  # type: ignore[return-value]


def save_byte_pairs(
    folder: Path, encoder: dict[str, int], merges: Sequence[tuple[str, str]], settings: BytePairSettings = GPT2_SETTINGS
) -> None:
    """Write GPT-2's two files, and the settings where they differ from GPT-2's."""
    with atomic_folder(folder) as temporary:
        write_vocabulary(temporary / "encoder.json", temporary / "vocab.bpe", encoder, merges)
        if settings != GPT2_SETTINGS:
            write_json(temporary / SETTINGS_FILE, settings.model_dump())


def write_vocabulary(
    encoder_file: Path, merges_file: Path, encoder: dict[str, int], merges: Sequence[tuple[str, str]]
) -> None:
    """Write GPT-2's two files, under any names."""
    write_text(encoder_file, json.dumps(encoder))
    write_text(merges_file, "\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n")


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
