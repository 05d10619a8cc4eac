"""Which texts are duplicates, and that only the first of them is kept, before anything else."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchlm.data.byte_pairs import BytePairTokenizer
from scratchlm.data.duplicates import Deduplicate, comparable, normalised, without_duplicates
from scratchlm.data.instructions import InstructionsParams, write_instructions
from scratchlm.data.messages import MessagesParams, load_messages, write_messages
from scratchlm.data.preferences import PreferencesParams, write_preferences
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_splits, write_json

EXACT = MessagesParams(
    reading="strict", labels=None, deduplicate="exact", balance=False, train_fraction=0.6, val_fraction=0.2
)
NORMALISED = EXACT.model_copy(update={"deduplicate": "normalised"})
TEXTS = st.lists(st.text(alphabet="aA1. -ſ\u00e9e\u0301", max_size=4), max_size=12)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("WIN!!  a\tprize,\nnow…", "win a prize now"),
        ("Use the word 'calm.'", "use the word calm"),
        ("Ｆｕｌｌ width ﬁne", "full width fine"),
        ("STRASSE, Straße", "strasse strasse"),
        ("e\u0301 é", "é é"),
        ("It's 5-3, or -5, or 3.14.", "it s 5-3 or -5 or 3.14"),
        ("50% is C#, not C++.", "50% is c# not c++"),
        ("£5 + $5", "£5 + $5"),
        (":-)", ":-)"),
        (" ?! \n ?", "?! ?"),
        ("", ""),
    ],
)
def test_normalised_texts_lack_case_and_punctuation_between_words(text: str, expected: str) -> None:
    assert normalised(text) == expected


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


@given(TEXTS, st.sampled_from(["none", "exact", "normalised"]))
def test_the_first_of_equal_texts_is_kept_in_order_whatever_is_removed(texts: list[str], how: Deduplicate) -> None:
    def kept(among: list[str]) -> list[int]:
        return without_duplicates(range(len(among)), [comparable((text,), how) for text in among], how)

    found = kept(texts)
    same = normalised if how == "normalised" else str
    if how == "none":
        assert found == [*range(len(texts))]
        return
    assert found == [i for i, text in enumerate(texts) if same(text) not in map(same, texts[:i])]
    unique = [texts[i] for i in found]
    assert kept(unique) == [*range(len(unique))]  # nothing is left to remove
    assert [texts[i] for i in kept(texts + texts)] == unique  # what is removed has no influence


def table(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("label,text\n" + "".join(f'{label},"{text}"\n' for label, text in rows), encoding="utf-8")
    return path


def written(
    rows: list[tuple[str, str]], params: MessagesParams, tokenizer: BytePairTokenizer, folder: Path
) -> tuple[dict[str, Any], dict[str, list[tuple[int, str]]], list[str]]:
    """The counts, label and text by split, and what was said."""
    said: list[str] = []
    counts = write_messages(table(folder / "t.csv", rows), tokenizer, folder / "out", params, 1, said.append)
    splits = load_messages(folder / "out").splits
    return counts, {name: [(row["label"], row["text"]) for row in split] for name, split in splits.items()}, said


def test_removed_messages_are_counted_and_have_no_influence_on_the_splits(
    gpt2: BytePairTokenizer, tmp_path: Path
) -> None:
    rows = [("ab"[i % 2], f"text number {i}") for i in range(20)]
    again = [("a", "Text number 0!"), ("b", "text number 3"), ("a", "text number 3")]  # the last with another label
    alone, of_rows, said = written(rows, EXACT, gpt2, tmp_path)
    assert (alone["removed_duplicates"], said) == (0, [])
    counts, splits, said = written(rows + again[1:], EXACT, gpt2, tmp_path)
    assert (counts["read"], counts["removed_duplicates"], counts["duplicates_across_splits"]) == (22, 2, 0)
    assert splits == of_rows
    at = f"{tmp_path / 't.csv'}: line"
    assert said == [f"1 text has more than one label, as in {at} 5 and {at} 23; correct the labels"]
    counts, splits, said = written(rows + again, NORMALISED, gpt2, tmp_path)
    assert (counts["read"], counts["removed_duplicates"]) == (23, 3)
    assert splits == of_rows and len(said) == 1
    none = EXACT.model_copy(update={"deduplicate": "none"})
    counts, _, said = written(rows + again + [("b", "text number 0")], none, gpt2, tmp_path)
    assert counts["removed_duplicates"] == 0 and said[0].startswith("2 texts have more than one label, as in ")


@settings(max_examples=20, deadline=None)
@given(repeats=st.lists(st.integers(0, 39), max_size=30))
def test_classes_are_balanced_after_duplicates_are_removed(
    gpt2: BytePairTokenizer, tmp_path_factory: pytest.TempPathFactory, repeats: list[int]
) -> None:
    rows = [("a" if i < 25 else "b", f"text number {i}") for i in range(40)]
    balanced = EXACT.model_copy(update={"balance": True})
    _, splits, _ = written(rows + [rows[i] for i in repeats], balanced, gpt2, tmp_path_factory.mktemp("out"))
    labels = [label for split in splits.values() for label, _ in split]
    assert (labels.count(0), labels.count(1)) == (15, 15)
    assert {name: len(split) for name, split in splits.items()} == {"train": 18, "val": 6, "test": 6}


def test_a_class_or_a_split_that_duplicates_leave_empty_is_one_sentence(
    gpt2: BytePairTokenizer, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        written([("a", "x"), ("a", "y"), ("b", "X."), ("b", "y")], NORMALISED, gpt2, tmp_path)
    assert str(caught.value) == (
        f"each text of b is above it with another label, as that of {tmp_path / 't.csv'}: line 4; correct the labels, "
        "or set tokenize.messages.deduplicate to none"
    )
    with pytest.raises(UserError) as caught:
        written([("a", "x"), ("b", "y")] * 20, EXACT, gpt2, tmp_path)
    assert str(caught.value) == (
        "the val split of the 2 records that tokenize.messages.deduplicate leaves is empty; add records, or change the "
        "fractions in tokenize.messages"
    )
    assert not (tmp_path / "out").exists()


def test_instructions_and_pairs_that_ask_the_same_are_removed_whatever_the_responses(
    gpt2: BytePairTokenizer, tmp_path: Path
) -> None:
    base = {"instruction": "Say hi.", "output": "Hi.", "chosen": "Hi.", "rejected": "No."}
    entries = [base | {"input": str(n)} for n in range(8)]
    again = [entries[2] | {"output": "Hello.", "chosen": "Hello."}, entries[3] | {"instruction": "Say 'hi'"}]
    path = tmp_path / "x.json"
    write_json(path, [*entries[:4], *again, *entries[4:]])
    for how, removed in (("none", 0), ("exact", 1), ("normalised", 2)):
        fractions: dict[str, Any] = {"deduplicate": how, "train_fraction": 0.5, "test_fraction": 0.25}
        tasks = write_instructions(
            path, gpt2, tmp_path / "tasks", InstructionsParams(prompt_style="alpaca", **fractions)
        )
        pairs = write_preferences(path, gpt2, tmp_path / "pairs", PreferencesParams(**fractions), "alpaca")
        assert (tasks["removed_duplicates"], pairs["removed_duplicates"], pairs["read"]) == (removed, removed, 10)
        for folder, counts in ((tmp_path / "tasks", tasks), (tmp_path / "pairs", pairs)):
            splits = read_splits(folder)
            asked = [row["input"] for name in ("train", "test", "val") for row in splits[name]]
            assert len(asked) == 10 - removed
            if how == "normalised":
                assert asked == [*"01234567"] and counts["duplicates_across_splits"] == 0
                assert [row["id"][-5:] for row in splits["test"]] == ["00006", "00007"]  # the numbers in the file
