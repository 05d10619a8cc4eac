"""The tokenizer of a Hugging Face folder, read and written."""

import json
import math
from pathlib import Path
from typing import Any, get_args

from scratchlm.data.byte_pairs import (
    END_OF_TEXT,
    GPT2_SETTINGS,
    BytePairs,
    BytePairTokenizer,
    check_settings,
    read_merges,
    write_vocabulary,
)
from scratchlm.data.hub_tokenizer import PATTERNS, Rules, hub_tokenizer, missing_bytes
from scratchlm.run.errors import UserError
from scratchlm.run.files import damaged, read_json, write_json, write_text

# Settings of tokenizer.json that change no token
_WITHOUT_EFFECT = (
    ("use_regex", True), ("trim_offsets", True), ("trim_offsets", False), ("invert", False),
    ("prepend_scheme", "always"), ("prepend_scheme", "first"),  # which differ after a special token
)  # fmt: skip
CONFIG_FILE = "tokenizer_config.json"
_FLAGS = ("byte_fallback", "ignore_merges", "dropout", "continuing_subword_prefix", "end_of_word_suffix")


def save_huggingface_tokenizer(
    folder: Path, tokenizer: BytePairTokenizer, context_length: int, template: str | None
) -> None:
    """Write GPT-2's kind of tokenizer as its two files, any other as tokenizer.json."""
    settings = tokenizer.pairs.settings
    end = settings.end_token
    own: dict[str, object] = {"model_max_length": context_length, "add_prefix_space": False, "eos_token": end}
    own["pad_token"] = end  # as in training
    if settings.model_copy(update={"chat_template": None}) == GPT2_SETTINGS:
        write_vocabulary(folder / "vocab.json", folder / "merges.txt", tokenizer.pairs.encoder, tokenizer.pairs.merges)
        own |= {"bos_token": end, "unk_token": end, "tokenizer_class": "GPT2Tokenizer"}
    else:
        from tokenizers import processors

        hub = hub_tokenizer(settings.pattern, tokenizer.pairs.encoder, tokenizer.pairs.merges)
        hub.add_special_tokens(settings.special_tokens)
        if begin := settings.begin_token:
            own["bos_token"] = begin
            texts = {"single": f"{begin} $A", "pair": f"{begin} $A {begin}:1 $B:1"}
            hub.post_processor = processors.TemplateProcessing(
                **texts, special_tokens=[(begin, tokenizer.special_tokens[begin])]
            )
        write_text(folder / "tokenizer.json", hub.to_str(pretty=True) + "\n")
        own["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(folder / CONFIG_FILE, own | ({"chat_template": template} if template else {}))


def load_huggingface_tokenizer(folder: Path) -> BytePairs:
    """Return the byte-pair tokenizer of a folder: tokenizer.json, or vocab.json and merges.txt.

    Tokens that were added after the merges are special: text never becomes one. Those beyond the vocab_size of
    config.json, for which the model has no vector, are left out.
    Raises UserError naming the file that is missing, or if vocabulary and merges disagree.
    """
    path, settings = folder / CONFIG_FILE, GPT2_SETTINGS
    config = read_json(path) if path.exists() else {}
    if (folder / "tokenizer.json").exists():
        model = folder / "config.json"
        rows = read_json(model).get("vocab_size") if model.exists() else None
        n_rows = rows if isinstance(rows, int) else math.inf
        encoder, merges, settings = _read_tokenizer(folder / "tokenizer.json", config.get("eos_token"), n_rows)
    else:
        encoder, merges = read_json(folder / "vocab.json"), read_merges(folder / "merges.txt")
    if config.get("add_prefix_space") and settings.pattern in PATTERNS:
        raise UserError(f"{path}: add_prefix_space is true; only tokenizers without it can be read")
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


def _read_tokenizer(path: Path, end: Any, n_rows: float) -> BytePairs:
    """Return what a tokenizer.json holds. end: eos_token of tokenizer_config.json. n_rows: of the model's embedding.

    Source: tokenizers, models.BPE.
    """
    theirs = read_json(path)
    try:
        model, found = theirs["model"], _rules(theirs)
        encoder = dict(model["vocab"])
        merges: list[Any] = [
            tuple(map(str, pair.split(" ") if isinstance(pair, str) else pair)) for pair in model["merges"]
        ]
        added = {token["content"]: token["id"] for token in theirs["added_tokens"]}
        steps = _steps(theirs.get("post_processor"))
        templates = [step["single"] for step in steps if step["type"] == "TemplateProcessing"]
        around = [part.get("SpecialToken", {}).get("id") for part in sum(templates, [])] or [None]
        end = (end["content"] if isinstance(end, dict) else end) or END_OF_TEXT
        encoder |= {token: i for token, i in added.items() if not (isinstance(i, int) and i >= n_rows)}
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise damaged(path, f"not the file of a byte-pair tokenizer ({error!r})") from None
    known = {rules: _rules(json.loads(hub_tokenizer(rules, {}, []).to_str())) for rules in get_args(Rules)}
    pattern = next((rules for rules in known if known[rules] == found), None)
    missing = missing_bytes(encoder) if pattern in PATTERNS else []
    if pattern is None or (missing and model.get("unk_token")):
        raise UserError(
            f"{path}: not a kind of tokenizer that can be read; its normalizer, pre_tokenizer or model's options "
            "are not those of GPT-2, SmolLM2, Llama 2, Llama 3 or Qwen2"
        )
    if around not in ([None], [around[0], None]):
        raise UserError(f"{path}: it adds more to a text than one token before it; take another model")
    settings = {
        "pattern": pattern,
        "begin_token": around[0],
        "end_token": end,
        "special_tokens": [token for token in encoder if token in added or token == end],
        "missing_bytes": missing,
        "chat_template": None,
    }
    return BytePairs(encoder, merges, check_settings(settings, path))


def _rules(theirs: Any) -> tuple[Any, ...]:
    """Return what decides into which pieces a text is divided, and whether pieces become tokens by merges alone."""
    model = theirs["model"]
    flags = [bool(model.get(flag)) for flag in _FLAGS]
    return model["type"], flags, _steps(theirs["normalizer"]), _steps(theirs["pre_tokenizer"])


def _steps(step: Any) -> list[dict[str, Any]]:
    """Return the steps of a normalizer, pre_tokenizer or post_processor, or of a sequence of them."""
    inner = next((step[name] for name in ("normalizers", "pretokenizers", "processors") if step and name in step), None)
    steps = inner or ([step] if step else [])
    return [{key: value for key, value in one.items() if (key, value) not in _WITHOUT_EFFECT} for one in steps]
