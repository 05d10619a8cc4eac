import html
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from scratchlm.run.display import markdown, one_line, printable

ACTING = "\x00\x07\x08\r\x1b\x7f\x85\x9b\u061c\u200e\u200f\u2028\u2029\u202a\u202e\u2066\u2069\ud83d\udc00"


@pytest.mark.parametrize("character", ACTING)
def test_a_character_that_acts_becomes_its_code(character: str) -> None:
    assert printable(f"a{character}b") == f"a\\u{ord(character):04x}b"
    assert character not in one_line(character) + markdown(character)


@pytest.mark.parametrize(
    "text",
    ["Grüße 東京 ไม่ हिंदी שלום 🎉 👩\u200d💻 ❤\ufe0f", "a\tb\nc", "5 % < 6 & \\ `x` | @me #1", "\N{NO-BREAK SPACE}"],
)
def test_other_text_is_shown_as_it_is(text: str) -> None:
    assert printable(text) == text


@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_nothing_that_is_shown_controls_or_turns_the_writing_direction(text: str) -> None:
    shown = printable(text)
    assert not {unicodedata.category(character) for character in shown if character not in "\n\t"} & {"Cc", "Cs"}
    assert not {unicodedata.bidirectional(c) for c in shown} & {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI"}
    assert "\n" not in one_line(text) and "\t" not in one_line(text)


@given(st.text(alphabet=st.characters(exclude_categories=("Cs",))))
def test_json_means_the_same(text: str) -> None:
    assert json.loads(printable(json.dumps({text: text}, ensure_ascii=False))) == {text: text}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("finetune_spam.test.f1_low 0.96 → −0.5 (5 %)", "finetune_spam.test.f1_low 0.96 → −0.5 (5 %)"),
        ("a|b", "a&#124;b"),
        ("<img src=x>", "&#60;img src=x&#62;"),
        ("**x** _y_ `z` ~~w~~", "&#42;&#42;x&#42;&#42; &#95;y&#95; &#96;z&#96; &#126;&#126;w&#126;&#126;"),
        ("[a](b) ![c](d)", "&#91;a&#93;(b) !&#91;c&#93;(d)"),
        ("&lt; \\| $x$", "&#38;lt; &#92;&#124; &#36;x&#36;"),
        ("@team #12 GH-12 gh-1", "@&#8203;team #&#8203;12 GH&#8203;-12 gh&#8203;-1"),
        ("https://x.y www.x.y", "https&#58;//x.y www&#46;x.y"),
        ("a\n\n### b", "a&#92;n&#92;n#&#8203;#&#8203;#&#8203; b"),
    ],
)
def test_markdown_shows_markup_literally_and_mentions_nobody(text: str, shown: str) -> None:
    assert markdown(text) == shown


@given(st.text(alphabet="<>@#|`*_[]()~$\\\n&:/.w!-+=ab1 GH\x1b"))
def test_no_markup_is_left(text: str) -> None:
    shown = markdown(text).replace("&#8203;", "\u200b")
    assert not set(shown) & set("<>|`*[]~$\\\n\x1b")
    assert "@" not in shown.replace("@\u200b", "") and "://" not in shown and "www." not in shown


@given(st.text(alphabet="<>@#|`*_[]()~\\\n&;:/.!-+=ab1 ") | st.text())
def test_a_parser_of_markdown_finds_the_text_alone(text: str) -> None:
    page = MarkdownIt("commonmark").enable("table").render(f"- x {markdown(text)} x")
    rendered = page.removeprefix("<ul>\n<li>").removesuffix("</li>\n</ul>\n")
    assert "<" not in rendered
    assert html.unescape(rendered).replace("\u200b", "") == f"x {one_line(text)} x".replace("\u200b", "")
