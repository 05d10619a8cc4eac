import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scratchlm.judge.overlap import normalise, token_f1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Paris.", "paris"),
        ("  The\tcat,\n sat!  ", "the cat sat"),
        ("It's 3.5", "it s 3.5"),
        ("ÉCOLE Größe 東京", "école grösse 東京"),
        ("", ""),
        (" \n", ""),
        ("+", "+"),
        (" ? ! ", "? !"),
        ("C++ costs -$5.00 (5%)", "c ++ costs $ 5.00 5 %"),
        ("हिंदी\N{DEVANAGARI DANDA} snake_case", "हिंदी snake_case"),  # marks and _ belong to words
        ("bell\x07rings\u200bhere", "bell rings here"),  # a control character, a space without width
    ],
)
def test_texts_are_compared_without_case_punctuation_and_spacing(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("It’s", "it's"),
        ("Straße", "STRASSE"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("Paris - the capital", "Paris, the capital"),
        ("well-known", "well known"),
        ("COVID-19", "COVID 19"),
        ("**Paris** is `the` capital", "Paris is the capital"),
        ("# Title\n* a\n- 5 b", "title a 5 b"),
        ("[Paris]", "(Paris)"),
        ("「東京」", "東京"),
        ("x>3", "x > 3"),
        ("5 %", "5%"),
        ("2*3", "2 * 3"),
        ("2**(3)", "2 ** (3)"),
        ("2***(3)", "2 3"),  # a rule of Markdown
        ("5-3", "5 – 3"),
        ("\N{MINUS SIGN}5", "-5"),
        ("❤\ufe0f", "❤"),  # a variation selector
        ("co\u00adoperate", "cooperate"),  # a soft hyphen
        ("\u200eright", "right\u200f"),
        ("caf\u00e9", "cafe\u0301"),
        ("\u1112\u1161\u11ab", "\ud55c"),  # Hangul, decomposed
        ("\u2126", "\u03a9"),  # ohm, canonically omega
    ],
)
def test_differences_that_do_not_count(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("C++", "C"),
        ("C#", "C"),
        ("-5", "5"),
        ("-.5", ".5"),
        (".5", "5"),
        ("3.14", "3 14"),
        ("2-1", "2 1"),
        ("x > 3", "x < 3"),
        ("x != 3", "x = 3"),
        ("x -> y", "x > y"),
        ("x -= 1", "x += 1"),
        ("a**b", "a b"),
        ("1/2", "1 2"),
        ("(1+2)/3", "1+2/3"),
        ("2*(3+4)", "2*3+4"),
        ("2**(3+4)", "2**3+4"),
        ("(2+3) ** 4", "2+3 ** 4"),
        ("x^2", "x 2"),
        ("$5", "5%"),
        ("$5", "€5"),
        ("5°", "5"),
        ("R&D", "R D"),
        ("😊", "☹"),
        ("हिंदी", "हैदा"),  # marks are vowels
        ("ไม่", "ไม้"),  # and tones
        ("café", "cafe"),
        ("x²", "x2"),
    ],
)
def test_differences_that_count(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


TRICKY = "aé1 2.-*#!<>=()+/%,\n'\u0301\u0345\u200d"


@given(st.text(alphabet=st.characters(max_codepoint=0x17F)) | st.text(alphabet=TRICKY))
@example("#2" + 47 * "*" + "(" + 40 * "*" + " \ufffd")
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(st.text() | st.text(alphabet=TRICKY))
def test_every_unicode_form_of_a_text_is_the_same(text: str) -> None:
    assert normalise(unicodedata.normalize("NFC", text)) == normalise(unicodedata.normalize("NFD", text))


@pytest.mark.parametrize(
    ("wanted", "given_words", "expected"),
    [
        ("a b c", "a b c", 1.0),
        ("a b c", "c a b", 1.0),
        ("a b", "a", 2 / 3),  # precision 1, recall 1/2
        ("a a b", "a b b", 2 / 3),  # a bag counts: one a, one b
        ("a", "b", 0.0),
        ("a", "", 0.0),
        ("", "", 0.0),
    ],
)
def test_overlap_is_the_harmonic_mean_of_precision_and_recall(wanted: str, given_words: str, expected: float) -> None:
    assert token_f1(wanted.split(), given_words.split()) == pytest.approx(expected)


@given(st.lists(st.sampled_from("abc")), st.lists(st.sampled_from("abc")))
def test_overlap_is_symmetric_and_between_0_and_1(one: list[str], other: list[str]) -> None:
    assert token_f1(one, other) == token_f1(other, one)
    assert 0 <= token_f1(one, other) <= 1
    assert (token_f1(one, other) == 1) == (sorted(one) == sorted(other) != [])
