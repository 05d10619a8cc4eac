r"""Text of unknown origin where it is shown: no character of it may act. One function per medium.

A terminal, a page and JSON: printable. A cell or one line of these: one_line. A comment on GitHub: markdown.
"""

import re

# Controls but line end and tab, marks and overrides of the writing direction, line separators, halves of pairs
_ACTING = (*range(9), *range(11, 32), *range(127, 160), 0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F),
           *range(0x2066, 0x2070), *range(0xD800, 0xE000))  # fmt: skip
_ESCAPES = {code: f"\\u{code:04x}" for code in _ACTING}
_ONE_LINE = {**_ESCAPES, ord("\n"): "\\n", ord("\t"): "\\t"}
# Markup, HTML, tables, formulas, and what becomes a link; an underscore within a word is none of these
_MARKUP = r"[\\`*\[\]<>&|~$]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\."
_MENTION = r"[@#]|GH(?=-)"  # of people, teams and issues, which would be notified
_LITERAL = re.compile(f"(?P<mention>{_MENTION})|{_MARKUP}", re.IGNORECASE)


def printable(text: str) -> str:
    r"""Return `text` with its acting characters as escapes such as \u001b, which in JSON mean the same."""
    return text.translate(_ESCAPES)


def say(text: str) -> None:
    """Print `text` so that it cannot act on the terminal."""
    print(printable(text), flush=True)


def one_line(text: str) -> str:
    """Like `printable`, line ends and tabs included."""
    return text.translate(_ONE_LINE)


def shortened(text: str, n_characters: int) -> str:
    """Return at most so many characters of a text, with … for the rest."""
    return text if len(text) <= n_characters else f"{text[: n_characters - 1].rstrip()}…"


def without_secrets(sentence: str) -> str:
    """Hide what follows the question mark of a URL, and a name and a password in it."""
    sentence = re.sub(r"://[^/\s'\"]*@", "://***@", sentence)
    return re.sub(r"(://[^?\s'\"]*\?)[^\s'\",)]*", r"\1***", sentence)


def markdown(text: str) -> str:
    """Return `text` as one line of GitHub's Markdown that shows it literally.

    An entity is never markup (CommonMark 0.31, section 2.5). Mentions are looked for after entities are decoded, so a
    space without width follows their sign.
    """
    return _LITERAL.sub(
        lambda found: f"{found[0]}&#8203;" if found["mention"] else f"&#{ord(found[0])};", one_line(text)
    )
