"""data/sample's texts: made again byte for byte, hard enough, and right."""

import collections
import csv
import itertools
import json
import random
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
SAMPLE, TOOLS = REPOSITORY / "data" / "sample", REPOSITORY / "tools"
ARCHIVE = "sms+spam+collection.zip"
INSTRUCTIONS, PREFERENCES = "instruction-data.json", "preference-data.json"
sys.path.insert(0, str(TOOLS))

import make_text  # noqa: E402
import words  # noqa: E402


@pytest.fixture(scope="module")
def stories() -> list[str]:
    return (SAMPLE / "stories.txt").read_text("utf-8").rstrip("\n").split("\n<|endoftext|>\n")


@pytest.fixture(scope="module")
def messages() -> list[tuple[str, str]]:
    with zipfile.ZipFile(SAMPLE / ARCHIVE) as archive:
        lines = archive.read("SMSSpamCollection").decode().split("\n")
    assert lines.pop() == ""
    return [tuple(line.split("\t")) for line in lines]  # type: ignore[misc]


@pytest.fixture(scope="module")
def tasks() -> list[dict[str, str]]:
    return json.loads((SAMPLE / INSTRUCTIONS).read_text("utf-8"))


@pytest.fixture(scope="module")
def kinds(tasks: list[dict[str, str]]) -> list[str]:
    """The kind of every task, known from the maker and in the order of the file."""
    made = make_text.make_tasks(make_text.Dice(make_text.SEED), set())
    assert [entry for _, entry in made] == tasks
    return [kind for kind, _ in made]


def of_kind(kind: str, tasks: list[dict[str, str]], kinds: list[str]) -> list[dict[str, str]]:
    return [task for task, name in zip(tasks, kinds, strict=True) if name == kind]


def test_making_the_texts_again_gives_the_committed_bytes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, TOOLS / "make_text.py", "--out", tmp_path], check=True)
    for name in ("stories.txt", INSTRUCTIONS, PREFERENCES):
        assert (tmp_path / name).read_bytes() == (SAMPLE / name).read_bytes(), name
    with zipfile.ZipFile(tmp_path / ARCHIVE) as made, zipfile.ZipFile(SAMPLE / ARCHIVE) as kept:
        assert made.namelist() == kept.namelist() == ["SMSSpamCollection", "readme"]
        for member in kept.namelist():
            assert made.read(member) == kept.read(member), member


def test_the_files_have_the_sizes_that_the_data_card_names(
    stories: list[str], messages: list[tuple[str, str]], tasks: list[dict[str, str]]
) -> None:
    card = (SAMPLE / "README.md").read_text("utf-8")
    assert 1_000_000 <= (SAMPLE / "stories.txt").stat().st_size < 1_010_000
    assert (SAMPLE / ARCHIVE).stat().st_size < 100_000
    assert (SAMPLE / INSTRUCTIONS).stat().st_size < 200_000
    assert (SAMPLE / PREFERENCES).stat().st_size < 100_000
    vocabulary = set(re.findall(r"\w+", " ".join(stories).lower()))
    for count in (len(stories), len(messages), len(tasks), len(vocabulary)):
        assert f"{count:,}" in card


# --- Stories -------------------------------------------------------------------------


def test_no_two_stories_are_the_same_and_each_has_60_to_200_words(stories: list[str]) -> None:
    assert len(set(stories)) == len(stories)
    assert all(60 <= len(story.split()) <= 200 for story in stories)


def test_stories_have_no_unfilled_slot_and_close_their_quotes(stories: list[str]) -> None:
    assert not any("{" in story or "}" in story for story in stories)
    assert all(story.count('"') % 2 == 0 for story in stories)


def test_the_article_a_is_right_because_no_noun_starts_with_a_vowel() -> None:
    lists = (words.COLOURS, words.COATS, words.THINGS, words.ANIMALS, words.TRAITS, words.WEATHERS)
    assert not [word for table in lists for word in table if word[0] in "aeiou"]


def test_a_quarter_of_the_stories_asks_and_answers_questions(stories: list[str]) -> None:
    signs = "the teacher (said|asked)|asked the teacher|What am I|about it all|all about it|questions"
    asking = [story for story in stories if re.search(signs, story)]
    assert 0.2 < len(asking) / len(stories) < 0.32


def test_the_last_tenth_of_the_stories_has_no_word_that_the_rest_lacks(stories: list[str]) -> None:
    cut = len(stories) * 9 // 10
    seen, unseen = (
        {w for story in part for w in re.findall(r"\w+", story.lower())} for part in (stories[:cut], stories[cut:])
    )
    assert not unseen - seen


# --- Messages ------------------------------------------------------------------------


def tokens(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9']+|[£€!?:&+]", text.lower()))


def test_messages_are_13_percent_spam_with_a_handful_of_duplicates(
    messages: list[tuple[str, str]],
) -> None:
    assert collections.Counter(label for label, _ in messages) == {"ham": 2425, "spam": 375}
    assert 5 <= len(messages) - len(set(messages)) <= 25
    labels = collections.defaultdict(set)
    for label, text in messages:
        labels[text].add(label)
    assert all(len(found) == 1 for found in labels.values())


def test_messages_fit_into_a_text_message_and_balance_their_quotes(
    messages: list[tuple[str, str]],
) -> None:
    lengths = sorted(len(text) for _, text in messages)
    assert lengths[-1] <= 160 and lengths[len(lengths) // 10] >= 30 and lengths[len(lengths) * 9 // 10] <= 140
    assert all(text == text.strip() and text.count('"') % 2 == 0 for _, text in messages)
    assert not any("{" in text or text.startswith('"') for _, text in messages)
    for sign in '"£€':
        assert any(sign in text for _, text in messages)
    lines = ["\t".join(message) for message in messages]
    assert [tuple(row) for row in csv.reader(lines, delimiter="\t", strict=True)] == messages


def test_no_bag_of_three_words_separates_spam_from_ham(messages: list[tuple[str, str]]) -> None:
    """Best word < 0.80 and best any-of-3, most-of-3 or all-of-3 < 0.90 on a balanced set.

    A word speaks for the class that it fits better, by being there or by being absent; the
    triples are those of the 60 best words. Each word is a bit mask over the messages, so
    that a rule is a few operations on whole numbers.
    """
    spam = [text for label, text in messages if label == "spam"]
    ham = [text for label, text in messages if label == "ham"]
    texts = spam + random.Random(0).sample(ham, len(spam))
    everything, truth = (1 << len(texts)) - 1, (1 << len(spam)) - 1
    masks: dict[str, int] = collections.defaultdict(int)
    for index, text in enumerate(texts):
        for word in tokens(text):
            masks[word] |= 1 << index

    def accuracy(mask: int) -> float:
        return 1 - (mask ^ truth).bit_count() / len(texts)

    literals = [m if accuracy(m) >= 0.5 else everything ^ m for m in masks.values()]
    literals.sort(key=accuracy, reverse=True)
    assert accuracy(literals[0]) < 0.80
    best = max(
        max(accuracy(a | b | c), accuracy(a & b | b & c | a & c), accuracy(a & b & c))
        for a, b, c in itertools.combinations(literals[:60], 3)
    )
    assert best < 0.90


# --- Tasks ---------------------------------------------------------------------------


def test_there_are_1100_tasks_and_no_instruction_comes_twice(tasks: list[dict[str, str]]) -> None:
    assert len(tasks) == 1100
    assert len({(task["instruction"], task["input"]) for task in tasks}) == 1100
    assert all(set(task) == {"instruction", "input", "output"} for task in tasks)


def test_questions_have_at_most_25_words_and_answers_1_to_12(tasks: list[dict[str, str]]) -> None:
    assert max(len(f"{task['instruction']} {task['input']}".split()) for task in tasks) <= 25
    assert {len(task["output"].split()) for task in tasks} <= set(range(1, 13))


def test_every_kind_is_in_every_split_and_at_least_four_times_in_test(kinds: list[str]) -> None:
    train, test, val = kinds[:935], kinds[935:1045], kinds[1045:]
    assert set(train) == set(test) == set(val) == set(make_text.KINDS)
    assert min(collections.Counter(test).values()) >= 4
    assert max(collections.Counter(kinds).values()) - min(collections.Counter(kinds).values()) <= 1


def test_words_of_the_tasks_are_words_of_the_stories(tasks: list[dict[str, str]], stories: list[str]) -> None:
    known = set(re.findall(r"\w+", " ".join(stories)))
    asked = {word for task in tasks for text in task.values() for word in re.findall(r"\w+", text)}
    assert not asked - known


def test_first_and_last_word_answers_are_the_first_and_last_word(tasks: list[dict[str, str]], kinds: list[str]) -> None:
    for task in of_kind("first_word", tasks, kinds):
        assert re.match(r"\w+", task["input"]).group() == task["output"]  # type: ignore[union-attr]
    for task in of_kind("last_word", tasks, kinds):
        assert re.search(r"(\w+)\.$", task["input"]).group(1) == task["output"]  # type: ignore[union-attr]


def test_repeat_and_replace_name_answers_copy_the_input(tasks: list[dict[str, str]], kinds: list[str]) -> None:
    assert all(task["output"] == task["input"] for task in of_kind("repeat", tasks, kinds))
    for task in of_kind("replace_name", tasks, kinds):
        old, new = task["input"].split()[0], task["output"].split()[0]
        assert old != new and {old, new} <= set(re.findall(r"\w+", task["instruction"]))
        assert task["input"].replace(old, new) == task["output"]


@pytest.mark.parametrize("kind", ["who_has", "what_colour", "where_did"])
def test_the_fact_that_answers_a_question_is_the_only_one_about_it(
    kind: str, tasks: list[dict[str, str]], kinds: list[str]
) -> None:
    for task in of_kind(kind, tasks, kinds):
        asked = re.search(
            r"(?:has the|colour is the|colour of the|did|where) ([\w ]+?)(?: go\?| went\.|[.?])$",
            task["instruction"],
        )
        assert asked, task
        facts = [fact + "." for fact in task["input"].rstrip(".").split(". ")]
        assert [fact for fact in facts if asked.group(1) in fact] == [task["output"]]


def test_opposite_and_past_change_one_word_and_not_adds_one(tasks: list[dict[str, str]], kinds: list[str]) -> None:
    pairs = {frozenset(pair[:2]) for pair in words.OPPOSITES}
    for task in of_kind("opposite", tasks, kinds):
        given, answer = (task[key].rstrip(".").split() for key in ("input", "output"))
        assert given[:-1] == answer[:-1] and frozenset((given[-1], answer[-1])) in pairs
    for task in of_kind("past_tense", tasks, kinds):
        given, answer = (task[key].split() for key in ("input", "output"))
        assert [i for i, pair in enumerate(zip(given, answer, strict=True)) if pair[0] != pair[1]] == [1]
        assert words.VERBS[given[1]] == answer[1]
    for task in of_kind("negate", tasks, kinds):
        assert task["output"].replace(" not ", " ", 1) == task["input"] != task["output"]


def test_the_animal_is_the_only_animal_among_the_three_words(tasks: list[dict[str, str]], kinds: list[str]) -> None:
    for task in of_kind("which_animal", tasks, kinds):
        options = re.findall(r"\w+", task["instruction"].split(": ")[1])
        assert [word for word in options if word in words.ANIMALS] == [task["output"]]


def test_pairs_are_other_tasks_each_with_the_right_answer_and_a_wrong_one(
    tasks: list[dict[str, str]], stories: list[str]
) -> None:
    pairs = json.loads((SAMPLE / PREFERENCES).read_text("utf-8"))
    assert len(pairs) == make_text.PAIR_COUNT
    assert all(set(pair) == {"instruction", "input", "chosen", "rejected"} for pair in pairs)
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)
    asked = {(task["instruction"], task["input"]) for task in tasks}
    assert len({(pair["instruction"], pair["input"]) for pair in pairs} - asked) == len(pairs)
    known = set(re.findall(r"\w+", " ".join(stories)))
    assert not {word for pair in pairs for text in pair.values() for word in re.findall(r"\w+", text)} - known
    words_of = [{side: pair[side].split() for side in ("chosen", "rejected")} for pair in pairs]
    assert {len(found["rejected"]) for found in words_of} <= set(range(1, 13))


def test_no_lesson_in_the_stories_gives_a_task_away(
    tasks: list[dict[str, str]], kinds: list[str], stories: list[str]
) -> None:
    text = " ".join(stories)
    for task in of_kind("past_tense", tasks, kinds) + of_kind("where_did", tasks, kinds):
        assert task["input"] not in text
