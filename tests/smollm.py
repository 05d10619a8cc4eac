"""A tiny tokenizer of SmolLM2's kind, and SmolLM2's rules written independently of ours."""

import json
from typing import Any

from tokenizers import Tokenizer

from scratchlm.data.byte_pairs import BytePairs, BytePairSettings, train_byte_pairs
from scratchlm.data.hub_tokenizer import byte_alphabet

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]
MISSING = [0x04, 0x1D, 0xC0, 0xF1, 0xFF]
TEXT = "She said: it's 12 or  345!! The cat's hat isn't  flat;\n\n  naïve café 東京 \U000a0000!\n" * 4
ODD = [
    *" \n\t\r\u3000\xa0\x85", *"059٣½²Ⅷ㊗", *"\x04\x1c\x1d!?.'<|>", *"aéЖ東🙂\u0301",
    "\U00040000", "\ud800", "'s", "<|im_end|>",
]  # fmt: skip


def settings(**changes: Any) -> BytePairSettings:
    values = {"pattern": "smollm", "end_token": "<|im_end|>", "special_tokens": SPECIAL, "missing_bytes": MISSING}
    return BytePairSettings(**values | {"chat_template": None} | changes)


def pairs_of(merges: list[tuple[str, str]], **changes: Any) -> BytePairs:
    """The special tokens, the single bytes and these merges, in this order."""
    chosen = settings(**changes)
    single = [character for byte, character in byte_alphabet().items() if byte not in chosen.missing_bytes]
    tokens = [*chosen.special_tokens, *single, *map("".join, merges)]
    return BytePairs({token: i for i, token in enumerate(tokens)}, merges, chosen)


def tiny_pairs(**changes: Any) -> BytePairs:
    """Merges of TEXT that no missing byte takes part in."""
    _, merges = train_byte_pairs([TEXT], 310)
    absent = {byte_alphabet()[byte] for byte in settings(**changes).missing_bytes}
    return pairs_of([pair for pair in merges if not absent & set("".join(pair))], **changes)


def reference(pairs: BytePairs, *, special: bool = False) -> Tokenizer:
    """SmolLM2's tokenizer over this vocabulary. special: text becomes special tokens."""
    return Tokenizer.from_str(tokenizer_json(pairs, special=special))


def tokenizer_json(pairs: BytePairs, *, special: bool = True) -> str:
    """SmolLM2's tokenizer.json over this vocabulary; over its own, the published bytes."""
    added = [
        {"id": pairs.encoder[token], "content": token, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for token in pairs.settings.special_tokens
    ]  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    content = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added if special else [],
        "normalizer": None, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
        "post_processor": None, "decoder": byte_level | {"add_prefix_space": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": pairs.encoder, "merges": [" ".join(pair) for pair in pairs.merges],
        },
    }  # fmt: skip
    return json.dumps(content, indent=2, ensure_ascii=False)


def whole(text: str) -> str:
    """The text with each half of a surrogate pair replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
