"""The tokenizer of a Hugging Face folder, read and written."""

from pathlib import Path
from typing import Any

from scratchlm.data.byte_pairs import (
    END_OF_TEXT,
    GPT2_SETTINGS,
    BytePairs,
    BytePairTokenizer,
    check_settings,
    hub_tokenizer,
    missing_bytes,
    read_merges,
    write_vocabulary,
)
from scratchlm.run.errors import UserError
from scratchlm.run.files import damaged, read_json, write_json, write_text

# What tokenizer.json says of each pattern, without the settings that change no token
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False}
_PRE_TOKENIZERS = {"gpt2": [_BYTE_LEVEL], "smollm": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL]}
_WITHOUT_EFFECT = (("use_regex", True), ("trim_offsets", True), ("trim_offsets", False))


def save_huggingface_tokenizer(
    folder: Path, tokenizer: BytePairTokenizer, context_length: int, template: str | None
) -> None:
    """Write GPT-2's kind of tokenizer as its two files, any other as tokenizer.json."""
    settings = tokenizer.pairs.settings
    end = settings.end_token
    own: dict[str, object] = {"model_max_length": context_length, "add_prefix_space": False}
    if settings.model_copy(update={"chat_template": None}) == GPT2_SETTINGS:
        write_vocabulary(folder / "vocab.json", folder / "merges.txt", tokenizer.pairs.encoder, tokenizer.pairs.merges)
        own |= {"bos_token": end, "eos_token": end, "unk_token": end, "tokenizer_class": "GPT2Tokenizer"}
    else:
        from tokenizers import decoders

        hub = hub_tokenizer(tokenizer.pairs)
        hub.add_special_tokens(settings.special_tokens)
        hub.decoder = decoders.ByteLevel()
        write_text(folder / "tokenizer.json", hub.to_str(pretty=True) + "\n")
        own |= {"eos_token": end, "tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(folder / "tokenizer_config.json", own | ({"chat_template": template} if template else {}))


def load_huggingface_tokenizer(folder: Path) -> BytePairs:
    """Return the byte-pair tokenizer of a folder: tokenizer.json, or vocab.json and merges.txt.

    Tokens that were added after the merges, other than the end token, are left out: text never becomes one.
    Raises UserError naming the file that is missing, or if vocabulary and merges disagree.
    """
    path, settings = folder / "tokenizer_config.json", GPT2_SETTINGS
    config = read_json(path) if path.exists() else {}
    if config.get("add_prefix_space"):
        raise UserError(f"{path}: add_prefix_space is true; only tokenizers without it can be read")
    if (folder / "tokenizer.json").exists():
        encoder, merges, settings = _read_tokenizer(folder / "tokenizer.json", config.get("eos_token"))
    else:
        encoder, merges = read_json(folder / "vocab.json"), read_merges(folder / "merges.txt")
    pairs = BytePairs(encoder, merges, settings.model_copy(update={"chat_template": _chat_template(folder, config)}))
    try:
        BytePairTokenizer(*pairs)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    return pairs


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """Return the template of chat_template.jinja, or of tokenizer_config.json; of several, none."""
    path = folder / "chat_template.jinja"
    try:
        template = path.read_text(encoding="utf-8") if path.exists() else config.get("chat_template")
    except UnicodeDecodeError as error:
        raise damaged(path, f"not UTF-8 text ({error})") from None
    return template if isinstance(template, str) else None


def _read_tokenizer(path: Path, end: Any) -> BytePairs:
    """Return what a tokenizer.json holds. end: eos_token of tokenizer_config.json. Source: tokenizers, models.BPE."""
    theirs = read_json(path)
    try:
        model, before = theirs["model"], theirs["pre_tokenizer"]
        encoder = dict(model["vocab"])
        merges: list[Any] = [
            tuple(map(str, pair.split(" ") if isinstance(pair, str) else pair)) for pair in model["merges"]
        ]
        added = {token["content"]: token["id"] for token in theirs["added_tokens"]}
        steps = before["pretokenizers"] if before["type"] == "Sequence" else [before]
        steps = [{key: step[key] for key in step if (key, step[key]) not in _WITHOUT_EFFECT} for step in steps]
        kinds = (model["type"], theirs["normalizer"])
        end = (end["content"] if isinstance(end, dict) else end) or END_OF_TEXT
        n_tokens = max((token_id for token_id in encoder.values() if isinstance(token_id, int)), default=0)
        inside = {token for token, token_id in added.items() if isinstance(token_id, int) and token_id < n_tokens}
        encoder |= {token: token_id for token, token_id in added.items() if token in inside or token == end}
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise damaged(path, f"not the file of a byte-pair tokenizer ({error!r})") from None
    pattern = next((pattern for pattern, known in _PRE_TOKENIZERS.items() if steps == known), None)
    missing = missing_bytes(encoder)
    if kinds != ("BPE", None) or pattern is None or (missing and model.get("unk_token")):
        raise UserError(
            f"{path}: not GPT-2's kind of tokenizer; only byte-level BPE without a normalizer or unknown token can be "
            "read, with text divided as GPT-2 or SmolLM2 divides it"
        )
    settings = {
        "pattern": pattern,
        "end_token": end,
        "special_tokens": [token for token in encoder if token in added or token == end],
        "missing_bytes": missing,
        "chat_template": None,
    }
    return BytePairs(encoder, merges, check_settings(settings, path))
