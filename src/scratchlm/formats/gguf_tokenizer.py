"""The tokenizer of a GGUF file."""

from typing import Any

from gguf import TokenType

from scratchlm.data.byte_pairs import BytePairs, BytePairTokenizer, check_settings
from scratchlm.data.hub_tokenizer import merges_by_score, missing_bytes
from scratchlm.formats.gguf_file import PRE_TOKENIZERS, GGUFFile
from scratchlm.run.errors import UserError
from scratchlm.run.files import damaged

_NO_TEXT = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.UNUSED)
_BEGIN_BY_DEFAULT = ("llama3", "sentencepiece")  # of files that do not say whether a text begins with a token


def read_gguf_tokenizer(file: GGUFFile) -> BytePairs:
    """Return the byte-pair tokenizer and the chat template of a GGUF file; tokens that are no text are special.

    Raises UserError if the tokenizer is damaged or of another kind.
    """
    path, patterns = file.path, {pre: pattern for pattern, pre in PRE_TOKENIZERS.items()}
    fields = {name.split(".")[-1]: value for name, value in file.values.items() if name.startswith("tokenizer.")}
    tokens, kinds, merges, scores = (fields.get(name, []) for name in ("tokens", "token_type", "merges", "scores"))
    model, pre = fields.get("model"), fields.get("pre")
    by_score = model == "llama"
    pattern = "sentencepiece" if by_score else patterns.get(str(pre)) if model == "gpt2" else None
    if pattern is None or (by_score and not fields.get("add_space_prefix", True)):
        raise UserError(
            f"{path}: its tokenizer is {model!r} with {pre!r}; only byte-pair encoding (gpt2) with "
            f"{', '.join(patterns)} or SentencePiece's (llama) with a space before a text can be read"
        )
    adds_begin = fields.get("add_bos_token", pattern in _BEGIN_BY_DEFAULT)
    named = [fields.get("eos_token_id"), *([fields.get("bos_token_id")] if adds_begin else [])]
    whole = all(map(_is_list_of, (tokens, merges, kinds, scores), (str, str, int, float)))
    whole = whole and len(tokens) == len(kinds) == len(scores if by_score else tokens)
    if not whole or not all(isinstance(token_id, int) and 0 <= token_id < len(tokens) for token_id in named):
        raise damaged(path, "a tokenizer without tokens, their types, merges or scores, or without end or begin token")
    if not set(kinds) <= {TokenType.NORMAL, TokenType.BYTE, *_NO_TEXT}:
        raise UserError(
            f"{path}: its tokenizer has tokens that are neither text nor control tokens; take another model"
        )
    encoder = {token: i for i, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    if by_score:
        pairs = merges_by_score({tokens[i]: scores[i] for i, kind in enumerate(kinds) if kind == TokenType.NORMAL})
    end, *begin = (tokens[token_id] for token_id in named)
    settings = {
        "pattern": pattern,
        "begin_token": begin[0] if begin else None,
        "end_token": end,
        "special_tokens": [token for token, kind in zip(tokens, kinds, strict=True) if kind in _NO_TEXT],
        "missing_bytes": [] if by_score else missing_bytes(encoder),
        "chat_template": fields.get("chat_template"),
    }
    found = BytePairs(encoder, pairs, check_settings(settings, path))
    try:
        BytePairTokenizer(*found)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return found


def _is_list_of(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)
