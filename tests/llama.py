"""Tiny tokenizers of the kinds of Llama 2, Llama 3 and Qwen2, with the tokenizer.json that these models have."""

import json
import tempfile
from pathlib import Path
from typing import Any, Literal, get_args

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from scratchlm.data.byte_pairs import BytePairs
from scratchlm.formats.huggingface_tokenizer import load_huggingface_tokenizer
from tests import smollm

Kind = Literal["llama2", "metaspace", "llama3", "qwen2"]  # metaspace: Llama 2's as transformers 5 saves it
KINDS: tuple[Kind, ...] = get_args(Kind)
TEXT = (
    smollm.TEXT
    + "I'LL we'Ve; so;\r\n x;\r\n\r\n  (1234567)...\n\n\tdef f(x):\n\t\treturn x ** 2  #!?\n cafe\u0301 한국\n" * 4
)
ODD = [
    *smollm.ODD, "\r\n", "'LL", "'\u017f", "!\n", "1234", "\u2581", "  ", " " * 17, "<0x41>", "<unk>", "<s>", "</s>",
    "the", "\u1100\u1161", "\u212b", "e\u0323\u0301", "<|begin_of_text|>",
]  # fmt: skip
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)  # fmt: skip
SPECIAL = {
    "llama2": ["<unk>", "<s>", "</s>"],
    "llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved|>", "<|eot_id|>"],
    "qwen2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
}  # fmt: skip
SPECIAL["metaspace"] = SPECIAL["llama2"]
BEGIN = {"llama2": "<s>", "metaspace": "<s>", "llama3": "<|begin_of_text|>", "qwen2": None}
END = {"llama2": "</s>", "metaspace": "</s>", "llama3": "<|eot_id|>", "qwen2": "<|im_end|>"}


def _by_character() -> dict[str, int]:
    """The vocabulary that Llama 2's rules learn from TEXT: special tokens, bytes, longer tokens, characters."""
    hub = Tokenizer(models.BPE())
    hub.normalizer = normalizers.Replace(" ", "▁")
    hub.pre_tokenizer = pre_tokenizers.Split(Regex("▁+[^▁]*"), "isolated")
    hub.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=160, show_progress=False))
    learnt = sorted(hub.get_vocab(), key=hub.get_vocab().__getitem__)
    spaces = ["▁" * n for n in range(2, 17) if "▁" * n not in learnt]
    learnt = [token for token in learnt if not set(token) & set("\n\t7é")]  # which become bytes
    longer = [token for token in learnt if len(token) > 1] + spaces + [";\r"]
    characters = [token for token in learnt if len(token) == 1]
    tokens = [*SPECIAL["llama2"], *(f"<0x{byte:02X}>" for byte in range(256)), *longer, *characters]
    return {token: i for i, token in enumerate(tokens)}


def _by_byte(kind: Kind) -> dict[str, int]:
    hub = Tokenizer(models.BPE())
    split = SPLIT if kind == "llama3" else SPLIT.replace("{1,3}", "")
    hub.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    hub.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=380, initial_alphabet=alphabet, show_progress=False))
    return hub.get_vocab()


def _merges(encoder: dict[str, int], first: int) -> list[tuple[str, str]]:
    """Every pair of tokens that is a token, by id, as the published files have them."""
    text = {token for token, i in encoder.items() if i >= first}
    pairs = [(token[:i], token[i:]) for token in text for i in range(1, len(token))]
    found = [pair for pair in pairs if text.issuperset(pair)]
    return sorted(found, key=lambda pair: (encoder["".join(pair)], encoder[pair[0]], encoder[pair[1]]))


def tokenizer_json(kind: Kind) -> dict[str, Any]:
    """The content of a tokenizer.json."""
    by_character = kind in ("llama2", "metaspace")
    encoder = _by_character() if by_character else _by_byte(kind)
    merges = _merges(encoder, 259 if by_character else 0)
    first = 0 if by_character else len(encoder)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    content: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [
            {"id": first + i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True} for i, token in enumerate(SPECIAL[kind])
        ],
    }  # fmt: skip
    if by_character:
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        steps = [{"type": "Prepend", "prepend": "▁"}, replace]
        back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
        strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        content["normalizer"], content["pre_tokenizer"] = {"type": "Sequence", "normalizers": steps}, None
        if kind == "metaspace":
            metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
            content |= {"normalizer": None, "pre_tokenizer": metaspace}
        decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]
        content["decoder"] = {"type": "Sequence", "decoders": decoders}
    else:
        regex = SPLIT if kind == "llama3" else SPLIT.replace("{1,3}", "")
        split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, byte_level]}
        content["normalizer"] = {"type": "NFC"} if kind == "qwen2" else None
        content["decoder"] = byte_level
    content["post_processor"] = byte_level
    if begin := BEGIN[kind]:
        text, ids = {"Sequence": {"id": "A", "type_id": 0}}, [first + SPECIAL[kind].index(begin)]
        single = [{"SpecialToken": {"id": begin, "type_id": 0}}, text]
        names = {begin: {"id": begin, "ids": ids, "tokens": [begin]}}
        template = {"type": "TemplateProcessing", "single": single, "pair": [*single, text], "special_tokens": names}
        sequence = {"type": "Sequence", "processors": [byte_level, template]}
        content["post_processor"] = template if by_character else sequence
    content["model"] = {
        "type": "BPE", "dropout": None, "unk_token": "<unk>" if kind == "llama2" else None,
        "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": by_character,
        "byte_fallback": by_character, "ignore_merges": kind == "llama3", "vocab": encoder, "merges": merges,
    }  # fmt: skip
    return content


def reference(kind: Kind) -> Tokenizer:
    """The library's tokenizer: text does not become special tokens."""
    hub = Tokenizer.from_str(json.dumps(tokenizer_json(kind)))
    hub.encode_special_tokens = True
    return hub


def write(folder: Path, kind: Kind, **changes: Any) -> Path:
    """Write the files of a published tokenizer. changes: of tokenizer.json's sections."""
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(kind) | changes))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END[kind], "bos_token": "<other>"}))
    return folder


def tiny_pairs(kind: Kind) -> BytePairs:
    with tempfile.TemporaryDirectory() as folder:
        return load_huggingface_tokenizer(write(Path(folder), kind))
