"""Make the sample's texts from this project's own grammar and word lists.

    python3 tools/make_text.py [--out DIR]

writes stories.txt, sms+spam+collection.zip, instruction-data.json and preference-data.json.
It needs nothing but the standard library. Every draw comes from `random.Random.random`, the one method
whose sequence the Python documentation promises to keep for a seed, so every Python
version writes the same text.
"""

import argparse
import json
import random
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import words

SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample"

SEED = 20
STORY_BYTES = 1_000_000
STORY_WORDS = range(60, 201)
QUIZ_SHARE = 0.13  # of the stories that are neither a lesson nor a riddle
SCHOOL_SHARE = 0.35
RIDDLE_SHARE = 0.05
STORY_SEPARATOR = "\n<|endoftext|>\n"
HAM_COUNT, SPAM_COUNT = 2425, 375
HAM_REPEATS, SPAM_REPEATS = 14, 3  # exact duplicates, as the real collection has some
MESSAGE_CHARACTERS = 160
TASK_COUNT = 1100
PAIR_COUNT = 560

T = TypeVar("T")


class Dice:
    """Random draws that depend only on the seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._random() < probability

    def below(self, limit: int) -> int:
        """A whole number in [0, limit)."""
        return int(self._random() * limit)

    def pick(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[self.below(len(items))]

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """`count` different places of the sequence, in random order."""
        pool = list(items)
        return [pool.pop(self.below(len(pool))) for _ in range(count)]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """All the items in random order."""
        return self.sample(items, len(items))


def capitalised(text: str) -> str:
    """The text with its first letter in upper case, the rest as it is."""
    return text[:1].upper() + text[1:]


# --- Tasks ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """One task without its wording: its subject, the input and the only right answer."""

    slots: tuple[str, ...]
    input: str
    output: str


@dataclass(frozen=True)
class Kind:
    """A kind of task: its wordings, with {0}, {1}, … for the item's slots, and its maker."""

    wordings: tuple[str, ...]
    make: Callable[[Dice], Item]


def person(dice: Dice) -> str:
    """A name."""
    return dice.pick(words.GIRLS + words.BOYS)


def people(dice: Dice) -> list[str]:
    """Two names."""
    return dice.sample(words.GIRLS + words.BOYS, 2)


def thing(dice: Dice) -> str:
    """A thing with its colour."""
    return f"{dice.pick(words.COLOURS)} {dice.pick(words.THINGS)}"


def two_things(dice: Dice) -> list[str]:
    """Two things that share neither colour nor noun."""
    pairs = zip(dice.sample(words.COLOURS, 2), dice.sample(words.THINGS, 2), strict=True)
    return [f"{colour} {noun}" for colour, noun in pairs]


def at(place: str) -> str:
    """The place with its preposition: in the park, on the hill."""
    return f"{words.PLACES[place]} the {place}"


def somewhere(dice: Dice) -> str:
    """Any place with its preposition."""
    return at(dice.pick(list(words.PLACES)))


def past_sentence(dice: Dice) -> str:
    """A sentence of one of four shapes, with varied first and last words."""
    verb = dice.pick(list(words.VERBS.values()))
    animal = f"{dice.pick(words.COATS)} {dice.pick(words.ANIMALS)}"
    whose = dice.pick(("The", "A", "My", "Our"))
    when = dice.pick(("Today", "Yesterday", "Then", "Soon"))
    return dice.pick(
        (
            f"{person(dice)} {verb} a {thing(dice)}.",
            f"{person(dice)} {verb} a {thing(dice)} {somewhere(dice)}.",
            f"{whose} {animal} {dice.pick(words.MOVES)} {somewhere(dice)}.",
            f"{when} {person(dice)} {verb} a {thing(dice)}.",
        )
    )


def repeat(dice: Dice) -> Item:
    sentence = past_sentence(dice)
    return Item((), sentence, sentence)


def first_word(dice: Dice) -> Item:
    sentence = past_sentence(dice)
    return Item((), sentence, sentence.split()[0])


def last_word(dice: Dice) -> Item:
    sentence = past_sentence(dice)
    return Item((), sentence, sentence.rstrip(".").split()[-1])


def past_tense(dice: Dice) -> Item:
    present = dice.pick(list(words.VERBS))
    who, rest = person(dice), f"a {thing(dice)}"
    return Item((), f"{who} {present} {rest}.", f"{who} {words.VERBS[present]} {rest}.")


def opposite(dice: Dice) -> Item:
    first, second, nouns = dice.pick(words.OPPOSITES)
    adjective, other = dice.sample((first, second), 2)
    subject = dice.pick((f"The {dice.pick(nouns)}", f"{person(dice)}'s {dice.pick(nouns)}"))
    verb = dice.pick(("is", "was"))
    return Item((), f"{subject} {verb} {adjective}.", f"{subject} {verb} {other}.")


def replace_name(dice: Dice) -> Item:
    old, new = people(dice)
    rest = f"{dice.pick(list(words.VERBS.values()))} a {thing(dice)}."
    return Item((old, new), f"{old} {rest}", f"{new} {rest}")


def who_has(dice: Dice) -> Item:
    holders = list(zip(people(dice), two_things(dice), strict=True))
    facts = [f"{who} has the {what}." for who, what in holders]
    asked = dice.below(2)
    return Item((holders[asked][1],), " ".join(facts), facts[asked])


def what_colour(dice: Dice) -> Item:
    pairs = [text.split() for text in two_things(dice)]
    facts = [f"The {noun} is {colour}." for colour, noun in pairs]
    asked = dice.below(2)
    return Item((pairs[asked][1],), " ".join(facts), facts[asked])


def where_did(dice: Dice) -> Item:
    names, places = people(dice), dice.sample(list(words.PLACES), 2)
    facts = [f"{who} went to the {place}." for who, place in zip(names, places, strict=True)]
    asked = dice.below(2)
    return Item((names[asked],), " ".join(facts), facts[asked])


def which_animal(dice: Dice) -> Item:
    animal = dice.pick(words.ANIMALS)
    options = dice.shuffled([animal, dice.pick(words.THINGS), dice.pick(list(words.PLACES))])
    return Item(tuple(options), "", animal)


def plural(dice: Dice) -> Item:
    number, noun = dice.pick(("two", "three")), dice.pick(list(words.PLURALS))
    colour = dice.pick(words.COATS if noun in words.ANIMALS else words.COLOURS)
    return Item((number, f"one {colour} {noun}"), "", f"{number} {colour} {words.PLURALS[noun]}")


def negate(dice: Dice) -> Item:
    first, second, nouns = dice.pick(words.OPPOSITES)
    subject = dice.pick((f"The {dice.pick(nouns)}", f"{person(dice)}'s {dice.pick(nouns)}"))
    verb, adjective = dice.pick(("is", "was")), dice.pick((first, second))
    return Item((), f"{subject} {verb} {adjective}.", f"{subject} {verb} not {adjective}.")


def join(dice: Dice) -> Item:
    first, second = (f"{who} {move}" for who, move in zip(people(dice), dice.sample(words.MOVES, 2), strict=True))
    return Item((), f"{first}. {second}.", f"{first} and {second}.")


def compose(dice: Dice) -> Item:
    who, what = person(dice), thing(dice)
    return Item((who, *what.split()), "", f"{who} has a {what}.")


KINDS: dict[str, Kind] = {
    "repeat": Kind(("Repeat the sentence.", "Say the sentence again.", "Copy the sentence."), repeat),
    "first_word": Kind(
        ("What is the first word?", "Give the first word.", "Write only the first word."),
        first_word,
    ),
    "last_word": Kind(("What is the last word?", "Give the last word.", "Write only the last word."), last_word),
    "past_tense": Kind(
        ("Put the sentence in the past.", "Say it in the past.", "Tell it as if it was yesterday."),
        past_tense,
    ),
    "opposite": Kind(("Say it with the opposite word.", "Put in the opposite.", "Say the opposite."), opposite),
    "replace_name": Kind(("Change {0} to {1}.", "Say {1} and not {0}.", "Put {1} in the place of {0}."), replace_name),
    "who_has": Kind(("Who has the {0}?", "Tell me who has the {0}."), who_has),
    "what_colour": Kind(("What colour is the {0}?", "Tell me the colour of the {0}."), what_colour),
    "where_did": Kind(("Where did {0} go?", "Tell me where {0} went."), where_did),
    "which_animal": Kind(
        ("Which word is an animal: {0}, {1} or {2}?", "Find the animal: {0}, {1}, {2}."),
        which_animal,
    ),
    "plural": Kind(("Say {0} and not one: {1}.", "Make {0} of it: {1}."), plural),
    "negate": Kind(("Say it with not.", "Say that it is not so.", "Put not in the sentence."), negate),
    "join": Kind(("Join the sentences with and.", "Make one sentence with and."), join),
    "compose": Kind(("Make a sentence with {0}, {1} and {2}.", "Who has what? Use {0}, {1}, {2}."), compose),
}

HARD_KINDS = ("past_tense", "opposite", "plural")  # closed mappings: twice as often in lessons


def unused_item(dice: Dice, name: str, used: set[tuple[str, Item]]) -> Item:
    """A new item of the kind, in any wording; adds it to `used`."""
    while (name, item := KINDS[name].make(dice)) in used:
        pass
    used.add((name, item))
    return item


def make_tasks(dice: Dice, used: set[tuple[str, Item]]) -> list[tuple[str, dict[str, str]]]:
    """TASK_COUNT pairs of kind and entry; see make_rounds."""
    return [
        (name, {"instruction": instruction, "input": item.input, "output": item.output})
        for name, instruction, item in make_rounds(dice, used, TASK_COUNT)
    ]


def make_rounds(dice: Dice, used: set[tuple[str, Item]], count: int) -> list[tuple[str, str, Item]]:
    """Kind, instruction and item of new tasks, in rounds of one of each kind, so that any
    stretch of the file, and so each split by position, has every kind equally often."""
    tasks: list[tuple[str, str, Item]] = []
    while len(tasks) < count:
        for name in dice.shuffled(list(KINDS)):
            item = unused_item(dice, name, used)
            tasks.append((name, dice.pick(KINDS[name].wordings).format(*item.slots), item))
    return tasks[:count]


def wrong_answer(dice: Dice, name: str, item: Item) -> str:
    """A plausible mistake: the input unchanged, the other fact or word, or a word less."""
    if name in ("repeat", "compose"):
        given = item.output.split()
        given.pop(1 + dice.below(len(given) - 2) if name == "repeat" else -2)
        return " ".join(given)
    if name in ("first_word", "last_word"):
        return item.input.rstrip(".").split()[-1 if name == "first_word" else 0]
    if name in ("who_has", "what_colour", "where_did"):
        return next(f"{fact}." for fact in item.input.rstrip(".").split(". ") if f"{fact}." != item.output)
    if name == "which_animal":
        return dice.pick([option for option in item.slots if option != item.output])
    if name == "plural":
        return item.slots[1].replace("one", item.slots[0], 1)
    return item.input


def make_pairs(dice: Dice, used: set[tuple[str, Item]]) -> list[tuple[str, dict[str, str]]]:
    """PAIR_COUNT pairs of kind and entry: tasks of no other file, each with its right answer
    (chosen) and a plausible wrong one (rejected)."""
    return [
        (name, {"instruction": instruction, "input": item.input, "chosen": item.output,
                "rejected": wrong_answer(dice, name, item)})
        for name, instruction, item in make_rounds(dice, used, PAIR_COUNT)
    ]  # fmt: skip


# --- Stories -------------------------------------------------------------------------


class Person:
    """A name with the pronouns that agree with it, as templates ask for them: {a.his}."""

    def __init__(self, name: str) -> None:
        self.name = name
        forms = words.PRONOUNS[name in words.GIRLS]
        self.he, self.him, self.his = forms["he"], forms["him"], forms["his"]
        self.child = forms["child"]
        self.He, self.His = capitalised(self.he), capitalised(self.his)

    def __str__(self) -> str:
        return self.name

    def __format__(self, spec: str) -> str:
        return format(self.name, spec)


def make_cast(dice: Dice) -> dict[str, object]:
    """Every person and thing that one story may mention, by template slot."""
    (thing1, thing2), (animal, animal2) = two_things(dice), dice.sample(words.ANIMALS, 2)
    (place, place2), spots = dice.sample(list(words.PLACES), 2), dice.sample(words.SPOTS, 2)
    coat, coat2 = dice.sample(words.COATS, 2)
    a, b = (Person(name) for name in people(dice))
    trait, trait2 = dice.sample(words.TRAITS, 2)
    return {
        "a": a,
        "b": b,
        "trait": trait,
        "trait2": trait2,
        "parent": dice.pick(words.PARENTS),
        "thing": thing1,
        "thing2": thing2,
        "colour": thing1.split()[0],
        "colour_cap": capitalised(thing1.split()[0]),
        "colour2": thing2.split()[0],
        "noun": thing1.split()[1],
        "noun2": thing2.split()[1],
        "animal": animal,
        "animal2": animal2,
        "beast": f"{coat} {animal}",
        "beast2": f"{coat2} {animal2}",
        "beast_colour": coat,
        "beast2_colour": coat2,
        "beasts": words.PLURALS[dice.pick([name for name in words.ANIMALS if name in words.PLURALS])],
        "place": place,
        "at_place": at(place),
        "place2": place2,
        "at_place2": at(place2),
        "spot": spots[0],
        "spot_cap": capitalised(spots[0]),
        "spot2": spots[1],
        "food": dice.pick(words.FOODS),
        "weather": dice.pick(words.WEATHERS),
        "daytime": dice.pick(words.DAYTIMES),
        "sky": dice.pick(("blue", "grey", "white")),
        "glad": dice.pick(words.GLAD),
        "sad": dice.pick(words.SAD),
    }


def told(dice: Dice, beats: Sequence[Sequence[str]], cast: Mapping[str, object]) -> list[str]:
    """One sentence or two per beat."""
    return [dice.pick(beat).format(**cast) for beat in beats]


def exchange(dice: Dice, asker: str, question: str, speaker: str, answer: str) -> str:
    """A question and its answer as dialogue, each in quotes."""
    if not answer.endswith("."):
        answer += "."
    forms = [f'{asker} said, "{question}" {speaker} said, "{answer}"']
    if question.endswith("?"):
        forms.append(f'{asker} asked, "{question}" {speaker} said, "{answer}"')
        forms.append(f'"{question}" asked {asker[:1].lower() + asker[1:]}. "{answer[:-1]}," said {speaker}.')
    return dice.pick(forms)


def about_a_fact(dice: Dice, question: str, answer: str) -> tuple[str, str]:
    """A parent's question about a true sentence of the story, and the right reply."""
    asked, reply = dice.pick(
        (
            (question, answer),
            (question, answer),
            (f"Repeat the sentence. {answer}", answer),
            (f"{answer} What is the first word?", answer.split()[0]),
            (f"{answer} What is the last word?", answer.rstrip(".").split()[-1]),
        )
    )
    return asked, reply


def quiz(dice: Dice, cast: Mapping[str, object], facts: Sequence[tuple[str, str]]) -> list[str]:
    """Two or three questions at home about what just happened."""
    asker = capitalised(f"{cast['a'].his} {cast['parent']}")  # type: ignore[attr-defined]
    lines = told(dice, (words.QUIZ_OPENINGS,), cast)
    for question, answer in dice.sample(facts, min(len(facts), 2 + dice.below(2))):
        asked, reply = about_a_fact(dice, question.format(**cast), answer.format(**cast))
        lines.append(exchange(dice, asker, asked, str(cast["a"]), reply))
    return lines


def plot_story(dice: Dice, cast: Mapping[str, object]) -> list[str]:
    """A plot with an opening, perhaps an aside, perhaps a quiz, and an ending."""
    beats, facts, endings = words.PLOTS[dice.pick(list(words.PLOTS))]
    lines = told(dice, beats, cast)
    if dice.chance(0.4) and beats[0] is not words.TALE_OPENINGS:
        lines.insert(2 + dice.below(len(lines) - 2), dice.pick(words.ASIDES).format(**cast))
    if dice.chance(QUIZ_SHARE):
        return lines + quiz(dice, cast, facts)
    return lines + told(dice, (endings,), cast) if dice.chance(0.8) else lines


def school_story(dice: Dice, cast: Mapping[str, object], used: set[tuple[str, Item]]) -> list[str]:
    """A lesson: three or four tasks, none of which is in the instruction data."""
    lines = told(dice, (words.LESSON_OPENINGS,), cast)
    for number, name in enumerate(dice.sample((*KINDS, *HARD_KINDS), 3 + dice.below(2))):
        while (name, item := KINDS[name].make(dice)) in used:
            pass
        asked = dice.pick(KINDS[name].wordings).format(*item.slots)
        asked = f"{item.input} {asked}" if asked.endswith("?") else f"{asked} {item.input}"
        pupil = str(cast["a"] if number % 2 == 0 else cast["b"])
        lines.append(exchange(dice, "The teacher", asked.strip(), pupil, item.output))
        if dice.chance(0.3):
            lines += told(dice, (words.LESSON_ASIDES,), cast)
    return lines + told(dice, (words.LESSON_ENDINGS,), cast)


def riddle_story(dice: Dice, cast: Mapping[str, object]) -> list[str]:
    """Two or three riddles about animals, and a question about the story itself."""
    lines = told(dice, (words.PAIR_OPENINGS, words.RIDDLE_OPENINGS), cast)
    for answer in dice.sample(list(words.RIDDLES), 2 + dice.below(2)):
        wrong = dice.pick([animal for animal in words.RIDDLES if animal != answer])
        slots = {**cast, "riddle": words.RIDDLES[answer], "answer": answer, "wrong": wrong}
        lines += told(dice, (words.RIDDLE_ASKS, words.RIDDLE_ANSWERS), slots)
    return lines + told(dice, (words.ENDINGS,), cast)


def make_story(dice: Dice, used: set[tuple[str, Item]]) -> str:
    """One story on one line, of a length in STORY_WORDS."""
    while True:
        cast, share = make_cast(dice), dice.below(1000) / 1000
        if share < SCHOOL_SHARE:
            lines = school_story(dice, cast, used)
        elif share < SCHOOL_SHARE + RIDDLE_SHARE:
            lines = riddle_story(dice, cast)
        else:
            lines = plot_story(dice, cast)
        story = " ".join(capitalised(line) for line in lines)
        if len(story.split()) in STORY_WORDS:
            return story


def make_stories(dice: Dice, used: set[tuple[str, Item]]) -> list[str]:
    """Distinct stories, drawn independently from one distribution, STORY_BYTES in total."""
    stories: dict[str, None] = {}
    size = 0
    while size < STORY_BYTES:
        story = make_story(dice, used)
        if story not in stories:
            stories[story] = None
            size += len((story + STORY_SEPARATOR).encode())
    return list(stories)


# --- Messages ------------------------------------------------------------------------


def make_slots(dice: Dice) -> dict[str, str]:
    """A word for every slot of a message; the three names differ, and so do the foods."""
    slots = {name: dice.pick(choices) for name, choices in words.SLOTS.items()}
    slots["name"], slots["friend"], slots["other"] = dice.sample(words.SLOTS["name"], 3)
    slots["food"], slots["food2"] = dice.sample(words.SLOTS["food"], 2)
    slots["n3"] = str(100 + dice.below(900))
    slots["site"] = slots["site"].format(**slots)
    return slots


def texted(dice: Dice, text: str, haste: float) -> str:
    """The message as typed on a phone: each known word is shortened with probability `haste`."""

    def shortened(match: re.Match[str]) -> str:
        word = match.group()
        return words.ABBREVIATIONS[word] if dice.chance(haste) else word

    known = "|".join(map(re.escape, words.ABBREVIATIONS))
    return re.sub(rf"(?<![\w./'-])(?:{known})(?![\w'-])", shortened, text)


def assembled(dice: Dice, opener: str, core: str, tail: str) -> str:
    """Opener, core and tail as one text, in tidy or in careless style."""
    slots = make_slots(dice)
    body = (opener + core).format(**slots)
    if tail and body[-1] not in "?!.":
        body += "."
    text = texted(dice, body + tail.format(**slots), dice.pick((0.0, 0.0, 0.3, 0.7)))
    if dice.chance(0.2):
        return text.lower()
    return capitalised(re.sub(r"(?<=[.!?] )[a-z](?!$)|\bi\b(?!\.)", lambda m: m.group().upper(), text))


def ham(dice: Dice) -> str:
    """A chat message, sometimes of a few words only."""
    if dice.chance(0.08):
        return texted(dice, dice.pick(words.HAM_SHORT).format(**make_slots(dice)), 0.2)
    core = dice.pick(words.HAM[dice.pick(list(words.HAM))])
    return assembled(dice, dice.pick(words.HAM_OPENERS), core, dice.pick(words.HAM_TAILS))


def spam(dice: Dice) -> str:
    """Spam; the chatty theme is drawn twice as often and takes its frame from ham."""
    theme = dice.pick((*words.SPAM, "chatty"))
    core = dice.pick(words.SPAM[theme])
    if theme == "chatty":
        return assembled(dice, dice.pick(words.HAM_OPENERS), core, dice.pick(words.HAM_TAILS))
    tails = words.SPAM_FEES if theme in words.FEE_THEMES else words.SPAM_TAILS
    text = assembled(dice, dice.pick(words.SPAM_OPENERS), core, dice.pick(tails))
    return text.upper() if dice.chance(0.04) else text


def distinct(dice: Dice, write: Callable[[Dice], str], count: int, repeats: int) -> list[str]:
    """`count` messages of allowed length, all distinct except for `repeats` of them."""
    texts: dict[str, None] = {}
    while len(texts) < count - repeats:
        text = write(dice)
        if len(text) <= MESSAGE_CHARACTERS:
            texts[text] = None
    return list(texts) + dice.sample(list(texts), repeats)


def make_messages(dice: Dice) -> list[tuple[str, str]]:
    """(label, text) pairs in random order."""
    hams = [("ham", text) for text in distinct(dice, ham, HAM_COUNT, HAM_REPEATS)]
    spams = [("spam", text) for text in distinct(dice, spam, SPAM_COUNT, SPAM_REPEATS)]
    return dice.shuffled(hams + spams)


# --- Files ---------------------------------------------------------------------------


def write_archive(path: Path, members: Mapping[str, str]) -> None:
    """Write a zip archive whose bytes depend only on the members and on zlib's version."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 3  # as written on Unix, wherever this runs
            info.external_attr = 0o644 << 16
            archive.writestr(info, text.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the sample's texts, always the same ones.")
    parser.add_argument("--out", type=Path, default=SAMPLE)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)

    used: set[tuple[str, Item]] = set()
    tasks = [entry for _, entry in make_tasks(Dice(SEED), used)]
    stories = make_stories(Dice(SEED + 1), used)
    messages = make_messages(Dice(SEED + 2))
    pairs = [entry for _, entry in make_pairs(Dice(SEED + 3), used)]

    for name, entries in {"instruction-data.json": tasks, "preference-data.json": pairs}.items():
        text = json.dumps(entries, indent=2, ensure_ascii=False) + "\n"
        (out / name).write_bytes(text.encode())
    (out / "stories.txt").write_bytes((STORY_SEPARATOR.join(stories) + "\n").encode())
    collection = "".join(f"{label}\t{message}\n" for label, message in messages)
    members = {"SMSSpamCollection": collection, "readme": words.MESSAGES_README}
    write_archive(out / "sms+spam+collection.zip", members)


if __name__ == "__main__":
    main()
