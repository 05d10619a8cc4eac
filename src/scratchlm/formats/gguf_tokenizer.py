"""The tokenizer of a GGUF file."""

from typing import Any

import gguf

from scratchlm.data.byte_pairs import BytePairs, BytePairTokenizer, check_settings, missing_bytes
from scratchlm.formats.gguf_file import PRE_TOKENIZERS, GGUFFile
from scratchlm.run.errors import UserError
from scratchlm.run.files import damaged


def read_gguf_tokenizer(file: GGUFFile) -> BytePairs:
    """Return the byte-pair tokenizer and the chat template of a GGUF file; its control tokens are special.

    Raises UserError if the tokenizer is damaged or of another kind.
    """
    path, patterns = file.path, {pre: pattern for pattern, pre in PRE_TOKENIZERS.items()}
    fields = {name.split(".")[-1]: value for name, value in file.values.items() if name.startswith("tokenizer.")}
    tokens, kinds, merges = (fields.get(name, []) for name in ("tokens", "token_type", "merges"))
    end, template = fields.get("eos_token_id"), fields.get("chat_template")
    model, pre = fields.get("model"), fields.get("pre")
    if model != "gpt2" or pre not in patterns:
        raise UserError(
            f"{path}: its tokenizer is {model!r} with {pre!r}; only byte-pair encoding (gpt2) with "
            f"{' or '.join(patterns)} can be read; take another model"
        )
    if fields.get("add_bos_token"):
        raise UserError(f"{path}: its tokenizer adds a token before every text; only those that add none can be read")
    whole = all(map(_is_list_of, (tokens, merges, kinds), (str, str, int))) and len(tokens) == len(kinds)
    if not whole or not isinstance(end, int) or not 0 <= end < len(tokens):
        raise damaged(path, "a tokenizer without tokens, their types, merges or end token")
    if not set(kinds) <= {gguf.TokenType.NORMAL, gguf.TokenType.CONTROL}:
        raise UserError(
            f"{path}: its tokenizer has tokens that are neither text nor control tokens; take another model"
        )
    encoder = {token: i for i, token in enumerate(tokens)}
    settings = {
        "pattern": patterns[pre],
        "end_token": tokens[end],
        "special_tokens": [token for token, kind in zip(tokens, kinds, strict=True) if kind == gguf.TokenType.CONTROL],
        "missing_bytes": missing_bytes(encoder),
        "chat_template": template,
    }
    pairs = BytePairs(encoder, [tuple(merge.split(" ")) for merge in merges], check_settings(settings, path))
    try:
        BytePairTokenizer(*pairs)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return pairs


def _is_list_of(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)
