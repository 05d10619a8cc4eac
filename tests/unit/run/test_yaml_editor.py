"""One value replaced in the text of a YAML file."""

from pathlib import Path

import pytest

from scratchlm.run.errors import UserError
from scratchlm.run.yaml_editor import as_flow, with_value
from scratchlm.run.yaml_reader import parse_yaml

REPOSITORY = Path(__file__).resolve().parents[3]
KEYS = ("sources", "corpus")


@pytest.mark.parametrize("profile", sorted(path.name for path in (REPOSITORY / "profiles").glob("*.yaml")))
def test_a_profile_changes_in_one_line_only_and_its_comment_stays(profile: str) -> None:
    text = (REPOSITORY / "profiles" / profile).read_text(encoding="utf-8")
    before, after = text.splitlines(), with_value(text, KEYS, {"path": "data/mine/a.txt"}, "x").splitlines()
    (changed,) = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
    assert changed[0].split("#")[1] == changed[1].split("#")[1]
    assert changed[1].split("#")[0].strip() == "corpus: {path: data/mine/a.txt}"


@pytest.mark.parametrize(
    ("text", "edited"),
    [
        ("sources: {corpus: a, messages: b}  # c\n", "sources: {corpus: n, messages: b}  # c\n"),
        ("sources:\n  corpus:\n    path: a\n    # why\n  x: b\n", "sources:\n  corpus:\n    n\n    # why\n  x: b\n"),
        ("sources:\r\n  corpus: 'a'\r\n", "sources:\r\n  corpus: n\r\n"),
        ("sources:\n  corpus: a # b", "sources:\n  corpus: n # b"),
        ("\ufeffsources: {corpus: {path: é}}", "\ufeffsources: {corpus: n}"),
    ],
)  # fmt: skip
def test_every_other_byte_stays(text: str, edited: str) -> None:
    assert with_value(text, KEYS, "n", "x") == edited


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("sources: {messages: b}", "x: sources.corpus is missing; profiles/ shows complete files"),
        ("sources: 3", "x: sources.corpus is missing"),
        ("sources: {corpus: &a b}\nother: *a\n", "x: sources.corpus cannot be replaced on its own; write n there"),
        ("x: &a {corpus: b}\nsources: *a\n", "x: sources.corpus cannot be replaced on its own"),
        ("x: &a {corpus: b}\nsources: {<<: *a, messages: c}\n", "sources.corpus comes from another key of the file"),
        ("sources: [", "x: not valid YAML"),
    ],
)
def test_what_cannot_be_edited_on_its_own_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        with_value(text, KEYS, "n", "x")
    assert str(caught.value).startswith(sentence)


def test_texts_are_quoted_where_they_would_mean_something_else() -> None:
    value = {"path": "https://x.org/a, b}", "columns": "null", "text": "a: b", "é": "plain-word", "label": '"#'}
    assert parse_yaml(as_flow(value), "") == value
    assert as_flow({"path": "data/mine/*.txt"}) == "{path: data/mine/*.txt}"
