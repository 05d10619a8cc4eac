"""The kinds of byte-pair tokenizers: how each divides text, and as what Hugging Face's library `tokenizers` has it."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

Rules = Literal["gpt2", "smollm", "llama3", "qwen2", "sentencepiece", "metaspace"]
N_BYTES = 256
SPACE = "▁"  # SentencePiece's character for a space
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(N_BYTES)]  # its tokens of bytes
_TIKTOKEN = (
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"""
    r"""|\s+(?!\S)|\s+"""
)
# How text is divided before its bytes are merged. No piece spans a place where white space other than the end of a line
# follows other text.
PATTERNS = {
    # Radford et al. 2019, section 2.2: contractions, then runs of letters, digits or punctuation, each after at most
    # one space, then white space
    "gpt2": r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""",
    # Allal et al. 2025 (SmolLM2): every digit is a piece, and GPT-2's pattern divides the text between them
    "smollm": r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+""",
    # Dubey et al. 2024 (Llama 3): up to three digits are a piece, and ends of lines belong to the punctuation before
    "llama3": _TIKTOKEN,
    # Yang et al. 2024 (Qwen2): the same, but every digit is a piece, and the text is normalised first
    "qwen2": _TIKTOKEN.replace("{1,3}", ""),
}
# The other rules are SentencePiece's (Kudo and Richardson 2018): text is not divided, its characters are merged, and a
# space is put before it; of `metaspace`, as transformers 5 saves Llama 2's, only if it does not start with one


def normalizer(rules: Rules) -> Any:
    """Return what changes text before it is divided, of the library: it is the same in all versions of Python."""
    if rules not in ("qwen2", "sentencepiece"):
        return None
    from tokenizers import normalizers

    if rules == "qwen2":
        return normalizers.NFC()
    return normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])


def hub_tokenizer(rules: Rules, encoder: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> Any:
    """Return the encoding of a vocabulary in Hugging Face's library, without the special tokens."""
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as HubTokenizer

    by_character = rules not in PATTERNS
    # Llama 3 takes a piece that is a token whole; in the others, its merges lead to the same token
    options = {"ignore_merges": rules == "llama3", "byte_fallback": by_character, "fuse_unk": by_character}
    hub = HubTokenizer(models.BPE(vocab=dict(encoder), merges=list(merges), **options))
    hub.normalizer = normalizer(rules)
    if by_character:
        if rules == "metaspace":
            hub.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="always", split=False)
        bytes_and_space = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        hub.decoder = decoders.Sequence([*bytes_and_space, decoders.Strip(" ", 1, 0)])
        return hub
    hub.decoder = decoders.ByteLevel()
    words: Any = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rules in ("gpt2", "smollm"))
    before: Any = pre_tokenizers.Digits(individual_digits=True)
    if rules in ("llama3", "qwen2"):
        before = pre_tokenizers.Split(Regex(PATTERNS[rules]), "isolated")
    hub.pre_tokenizer = words if rules == "gpt2" else pre_tokenizers.Sequence([before, words])
    return hub


def single_tokens(rules: Rules, encoder: Collection[str]) -> set[str]:
    """Return the tokens of a vocabulary that no merge makes: of all bytes, and of SentencePiece's characters."""
    if rules not in PATTERNS:
        return {*BYTE_TOKENS, *(token for token in encoder if len(token) == 1)}
    return set(byte_alphabet().values())


def merges_by_score(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return every pair of tokens that makes a token, the best first: SentencePiece's rule as a list of merges.

    scores: of the tokens that text can become. Of equal scores, as those of runs of spaces, the leftmost is merged
    first: a list has no such rule, but two halves before unequal parts gives the same tokens.
    """
    pairs = [
        (token[:i], token[i:])
        for token in scores
        for i in range(1, len(token))
        if token[:i] in scores and token[i:] in scores
    ]
    return sorted(pairs, key=lambda pair: (-scores["".join(pair)], pair[0] != pair[1]))


def scores_by_merge(merges: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Return scores that give these merges back: each token's is above those of the tokens that are made later.

    Tokens whose merges stand between each other's, as those of runs of spaces do, have the same score.
    """
    ranks: dict[str, list[int]] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), []).append(rank)
    scores, score, last = {}, 0.0, -1
    for token, found in ranks.items():
        score -= found[0] > last
        scores[token], last = score, max(last, found[-1])
    return scores


def missing_bytes(encoder: Collection[str]) -> list[int]:
    """Return the bytes that are no token of a vocabulary, in order."""
    return sorted(byte for byte, character in byte_alphabet().items() if character not in encoder)


def byte_alphabet() -> dict[int, str]:
    """Return GPT-2's character for each byte: its own if printable in Latin-1, else one from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(N_BYTES) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(N_BYTES + i) for i, byte in enumerate(hidden)}
