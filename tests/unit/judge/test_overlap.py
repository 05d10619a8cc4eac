import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchlm.judge.overlap import normalise, token_f1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Paris.", "paris"),
        ("  The\tcat,\n sat!  ", "the cat sat"),
        ("It's 3.5", "it s 3 5"),
        ("ÉCOLE Größe 東京", "école größe 東京"),
        ("", ""),
        (" \n", ""),
        ("+", "+"),
        (" ? ! ", "? !"),
    ],
)
def test_texts_are_compared_without_case_punctuation_and_spacing(text: str, expected: str) -> None:
    assert normalise(text) == expected


@given(st.text(alphabet=st.characters(max_codepoint=0x17F)))
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


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
