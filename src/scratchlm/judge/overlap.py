"""Compare two texts word by word: which differences count, and how much the words overlap."""

import re
import unicodedata
from collections import Counter

INVISIBLE = re.compile(
    "[\u00ad\u180b-\u180f\u200c-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\U000e0100-\U000e01ef]"
)
DASHES = re.compile("[\u2010-\u2015\u2212\ufe58\ufe63\uff0d]")
# Every character has a class: a letter or mark, 0 digit, o arithmetic operator, s other symbol, a space, a line end,
# itself if TOKEN names it, or a comma for other punctuation
OPERATORS, SYMBOLS, QUOTES, NAMED = "+/^×÷", "%‰&@\\§", "`´", "-.*#!<>=()\n"
TOKEN = re.compile(
    r"(?:(?<!a)-|(?<=0 )- )?(?<![a0.])\.(?=0)[a0]+(?:\.(?=0)[a0]+)*"  # -.5
    r"|(?:(?:(?<!a)-|(?<=0 )- )(?=0)|#)?[a0]+(?:(?<=0)\.(?=0)[a0]+)*#*"  # words, 3.14, -5, C#, #1
    r"|(?:[!-](?==)|-(?=>))?[<>=os]+"  # C++, x != 3, $5, 5 %
    r"|(?<=[a0)])\*{1,2}(?=[a0(])|(?<=[a0)] )\*{1,2}(?= [a0(])"  # a product or a power, but no Markdown
    r"|\)(?= ?o|\*{1,2}[a0(]| \*{1,2} [a0(])|(?<=o)\(|(?<=o )\("  # the brackets of (1 + 2) / 3
    r"|(?<=[a0)]\*)\(|(?<=[a0)] \* )\(|(?<=[a0)]\*\*)\(|(?<=[a0)] \*\* )\("  # and of 3 * (1 + 2)
)


def normalise(text: str) -> str:
    """Return `text` without the differences that do not count: case, spacing, and punctuation between words.

    Symbols, marks, signs and decimal points count: C++ is not C, -5 not 5, x > 3 not x < 3, $5 not 5%. Canonically
    equivalent texts (NFC and NFD) give the same. A text of punctuation only keeps it.
    Source: The Unicode Standard, section 3.13, default caseless matching.
    """
    folded = unicodedata.normalize("NFD", INVISIBLE.sub("", text)).casefold()
    plain = DASHES.sub("-", unicodedata.normalize("NFC", folded))
    tokens = [
        plain[found.start() : found.end()].replace(" ", "") for found in TOKEN.finditer(plain.translate(_CLASSES))
    ]
    return " ".join(tokens or plain.split())


def token_f1(wanted: list[str], given: list[str]) -> float:
    """Return the harmonic mean of precision and recall over the two bags of words; 0 if they share none."""
    shared = sum((Counter(wanted) & Counter(given)).values())
    return 2 * shared / (len(wanted) + len(given)) if shared else 0.0


class _Classes(dict[int, str]):
    """The class of each character, as str.translate asks for it."""

    def __missing__(self, code: int) -> str:
        self[code] = found = _class(chr(code))
        return found


def _class(character: str) -> str:
    category = unicodedata.category(character)
    if character in NAMED:
        return character
    if character in OPERATORS:
        return "o"
    if character.isdecimal():
        return "0"
    if character.isalnum() or character == "_" or category[0] == "M":
        return "a"
    if character.isspace() or category == "Cc" or character == "\u200b":
        return " "
    return "," if character in QUOTES or (category[0] == "P" and character not in SYMBOLS) else "s"


_CLASSES = _Classes()
