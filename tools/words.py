"""The word lists and sentence templates behind data/sample: tables only, no logic.

Nouns, colours and animals all start with a consonant sound, so that "a" is always the
right article. Templates are filled by `str.format`; `make_text.make_cast` names the slots.
"""

# --- People, animals, things, places -------------------------------------------------

GIRLS = ("Anna", "Mia", "Lily", "Sara", "Rosa", "Emma", "Nora", "Lucy", "Kate", "Maya")
BOYS = ("Tom", "Ben", "Max", "Sam", "Leo", "Jack", "Tim", "Paul", "Finn", "Dan")
PRONOUNS = {  # is it a girl's name? -> words that agree with it
    True: {"he": "she", "him": "her", "his": "her", "child": "girl"},
    False: {"he": "he", "him": "him", "his": "his", "child": "boy"},
}
PARENTS = ("mother", "father", "grandmother", "grandfather")
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown", "pink", "grey", "purple")
COATS = ("brown", "black", "white", "grey")  # the colours of animals
THINGS = (
    "ball", "kite", "hat", "book", "cup", "box", "bag", "boat", "drum", "lamp",
    "coat", "bell", "key", "flag", "doll", "basket",
)  # fmt: skip
ANIMALS = (
    "dog", "cat", "fox", "rabbit", "mouse", "duck", "goose", "horse",
    "cow", "bear", "frog", "hen", "pig", "goat",
)  # fmt: skip
PLACES = {  # place -> preposition that fits it
    "park": "in", "garden": "in", "forest": "in", "market": "at", "beach": "on",
    "river": "by", "farm": "on", "library": "in", "hill": "on", "lake": "by",
    "barn": "in", "bridge": "on", "station": "at", "village": "in",
}  # fmt: skip
SPOTS = (
    "under a tree", "behind a big stone", "in the long grass", "behind a bush",
    "under a bench", "beside the path", "near the old wall", "in the dry leaves",
)  # fmt: skip
FOODS = ("bread", "soup", "cake", "cheese", "pie", "rice", "jam", "corn")
WEATHERS = ("sunny", "rainy", "windy", "cold", "warm", "snowy", "hot", "cloudy")
DAYTIMES = ("morning", "afternoon", "evening", "day")
TRAITS = ("kind", "brave", "clever", "quiet", "happy", "little", "funny", "shy")
GLAD = ("happy", "glad", "proud", "full of joy")
SAD = ("sad", "unhappy", "upset")

# --- Closed mappings that the tasks ask about ----------------------------------------

VERBS = {  # third person present -> past, each with a thing as its object
    "finds": "found", "sees": "saw", "buys": "bought", "brings": "brought",
    "takes": "took", "loses": "lost", "holds": "held", "hides": "hid",
    "keeps": "kept", "makes": "made", "draws": "drew", "carries": "carried",
    "paints": "painted", "wants": "wanted", "washes": "washed",
}  # fmt: skip
MOVES = ("ran", "sat", "walked", "sang", "slept", "jumped", "danced", "laughed", "waited", "read")
OPPOSITES = (  # adjective, its opposite, nouns that both can describe
    ("big", "small", ("box", "ball", "hat", "boat", "dog", "bear")),
    ("hot", "cold", ("cup", "lamp", "soup", "milk", "bread", "pie")),
    ("old", "new", ("coat", "book", "key", "drum", "bridge", "barn")),
    ("happy", "sad", ("dog", "rabbit", "horse", "cow", "frog", "goat")),
    ("fast", "slow", ("horse", "fox", "boat", "duck", "cat", "mouse")),
    ("clean", "dirty", ("hat", "coat", "cup", "pig", "bag", "doll")),
    ("wet", "dry", ("coat", "flag", "dog", "kite", "book", "cat")),
    ("full", "empty", ("cup", "bag", "basket", "box", "barn", "boat")),
    ("loud", "quiet", ("drum", "bell", "hen", "goose", "dog", "cow")),
    ("heavy", "light", ("box", "bag", "book", "basket", "lamp", "key")),
)
PLURALS = {
    "ball": "balls", "kite": "kites", "hat": "hats", "book": "books", "cup": "cups",
    "bag": "bags", "boat": "boats", "key": "keys", "dog": "dogs", "duck": "ducks",
    "frog": "frogs", "box": "boxes", "fox": "foxes", "mouse": "mice", "goose": "geese",
}  # fmt: skip
RIDDLES = {  # animal -> what it says of itself
    "dog": "I bark and I love to play with a ball",
    "cat": "I drink milk and I catch mice",
    "fox": "I am red and I am very clever",
    "rabbit": "I have long ears and I eat grass",
    "mouse": "I am very small and I eat cheese",
    "duck": "I swim on the lake and I say quack",
    "horse": "I am big and fast and you can ride me",
    "cow": "I eat grass and I give you milk",
    "bear": "I am big and brown and I love honey",
    "frog": "I am green and I jump by the lake",
    "hen": "I cannot fly far and I live on the farm",
    "pig": "I am pink and dirty and I live on the farm",
}

# --- Stories: a plot is a list of beats, a beat a choice of templates ----------------

OPENINGS = (
    "Once there was a {trait} {a.child} named {a}.",
    "{a} was a {trait} {a.child} who lived near the {place2}.",
    "There was once a {a.child} named {a}. {a.He} lived with {a.his} {parent}.",
    "In a small house near the {place2} lived a {trait} {a.child} named {a}.",
    "This is a story about {a}, a {trait} {a.child}.",
)
PAIR_OPENINGS = (
    *OPENINGS,
    "{a} and {b} were good friends. {a} was {trait} and {b} was {trait2}.",
    "{b} was the best friend of {a}. {b} was {trait2}, and {a} was {trait}.",
    "{a} and {b} lived in the same village, near the {place2}.",
)
TALE_OPENINGS = (
    "One {weather} evening, {a} could not sleep. So {a.his} {parent} told {a.him} a story.",
    '"Please tell me a story," said {a}. "Listen," said {a.his} {parent}.',
    "{a} liked stories. This is the story that {a.his} {parent} told {a.him}.",
)
ASIDES = (
    "Just then, a {beast2} ran by.",
    "A {beast2} sat {spot2} and looked at them.",
    "The wind sang in the trees and the sky was {sky}.",
    "The birds sang in the trees.",
    '"I like {weather} days," said {a}.',
    "{a} could hear a {beast2} far away.",
    "The sun went behind a cloud, and then it came out again.",
    "There were two {beasts} near the {place2}.",
)
ENDINGS = (
    "That night, {a} slept well and was {glad}.",
    "They were {glad}, and they went home together.",
    "{a} never forgot that day.",
    "{a} and {b} were very good friends after that.",
    "After that, {a} and {b} often played together.",
    "It was a good day for {a} and for {b}.",
    "Then they ate some {food} and laughed.",
)
THING_ENDINGS = (
    *ENDINGS,
    "At home, {a} told {a.his} {parent} about the {thing}. {a.His} {parent} smiled.",
    '"I will never forget the {thing}," said {b}.',
)
TALE_ENDINGS = (
    '"That was a good story," said {a}. Soon {a.he} slept.',
    "{a} was {glad}, for {a.he} liked the {animal2}.",
    '"I want to be like the {animal2}," said {a}.',
)
WENT = (
    "One {weather} {daytime}, {a} went to the {place}.",
    "It was a {weather} {daytime}. {a} went to the {place}.",
    "One {weather} {daytime}, {a} and {a.his} {parent} went to the {place}.",
    '"Let us go to the {place}," said {a.his} {parent}. So {a} went to the {place}.',
)
HAS_THING = (
    "{a} had a {thing}. {a.He} loved it very much.",
    "{a.His} {parent} gave {a} a {thing}. {a} took the {thing} everywhere.",
    "The best thing {a} had was a {thing}.",
    "{a} had a new {thing}. It was a gift from {a.his} {parent}.",
)
THANKS = (
    '"Thank you, {b}," said {a}. {a.He} was {glad}.',
    "{a} smiled and thanked {b}. Now {a.he} was {glad}.",
    '"You are a good friend, {b}," said {a}.',
    '{a} gave {b} some {food} to say thank you. "I like {food}," said {b}.',
)
WHERE = ("Where did {a} go?", "{a} went to the {place}.")
COLOUR = ("What colour is the {noun}?", "The {noun} is {colour}.")
COLOUR2 = ("What colour is the {noun2}?", "The {noun2} is {colour2}.")
HAS1 = ("Who has the {thing}?", "{a} has the {thing}.")
HAS2 = ("Who has the {thing2}?", "{b} has the {thing2}.")

PLOTS = {  # name -> (beats, questions about the story with their answers, endings)
    "lost_thing": (
        (
            PAIR_OPENINGS,
            HAS_THING,
            WENT,
            (
                "{a.He} played for a long time, and then the {thing} was gone.",
                "But when {a.he} wanted to go home, the {thing} was gone.",
                "A {beast} ran by, and {a} ran after the {animal}. Then the {thing} was gone.",
            ),
            (
                '"Where is my {thing}?" cried {a}. {a.He} was very {sad}.',
                "{a} looked {spot2}, but the {thing} was not there. {a.He} was {sad}.",
                '"Oh no, I lost my {thing}!" said {a}.',
            ),
            (
                '{b} came by. "What is wrong?" asked {b}. "I lost my {thing}," said {a}.',
                '{b} saw that {a} was {sad}. "I will help you," said {b}.',
                '"Did you see a {thing}?" {a} asked {b}. "No, but I will help you," said {b}.',
            ),
            (
                "They looked {spot2}. Then {b} found the {thing} {spot}.",
                'At last {b} found the {thing} {spot}. "Here it is!" said {b}.',
                "They looked and looked. Then {b} found the {thing} {spot}.",
            ),
            THANKS,
        ),
        (
            WHERE,
            COLOUR,
            ("Who found the {thing}?", "{b} found the {thing}."),
            ("Who lost the {thing}?", "{a} lost the {thing}."),
        ),
        THING_ENDINGS,
    ),
    "gift": (
        (
            PAIR_OPENINGS,
            (
                "It was {b}'s birthday, and {a} wanted to give {b.him} a gift.",
                '"{b} has a birthday," said {a.his} {parent}. "What will you give {b.him}?"',
            ),
            WENT,
            (
                "There {a.he} saw a {thing} and a {thing2}.",
                "A man sold a {thing} and a {thing2} there.",
            ),
            (
                '"I like {colour2}," said {a}, "but {b} likes {colour}." {a} bought the {thing}.',
                '"How much is the {thing}?" asked {a}. "Two coins." {a} bought the {thing}.',
                "The {thing2} was too big, so {a} bought the {thing}.",
            ),
            (
                "{a} took the {thing} and carried it to {b}'s house.",
                "{a} hid the {thing} behind {a.his} back and went to see {b}.",
            ),
            (
                '"What is it?" asked {b}. Then {b.he} saw the {thing}.',
                '"Is it a {noun2}?" asked {b}. "No, it is a {noun}," said {a}.',
                '"Happy birthday, {b}!" said {a}. "This {thing} is for you."',
            ),
            (
                '"A {thing}!" cried {b}. "Thank you, {a}!"',
                "{b} held the {thing} and was {glad}.",
                '"{colour_cap} is my best colour," said {b}. {b.He} was {glad}.',
            ),
        ),
        (
            WHERE,
            COLOUR,
            ("Who bought the {thing}?", "{a} bought the {thing}."),
            ("Who has the {thing}?", "{b} has the {thing}."),
        ),
        THING_ENDINGS,
    ),
    "quarrel": (
        (
            PAIR_OPENINGS,
            (
                "{a} had a {thing} and {b} had a {thing2}.",
                "{a} loved {a.his} {thing}, and {b} loved {b.his} {thing2}.",
            ),
            WENT,
            (
                '"Give me your {noun}," said {b}. "No, the {thing} is mine," said {a}.',
                "{b} took the {thing} from {a}. {a} was very {sad}.",
                '"My {thing} is better than your {thing2}," said {a}. {b} was {sad}.',
            ),
            (
                "They did not talk for a long time. {a} sat {spot}, and {b} sat {spot2}.",
                "{b} went away and sat {spot2}. {a} sat {spot} and cried.",
            ),
            (
                'Then {a.his} {parent} came. "You can play with both," {a.his} {parent} said.',
                'A {beast} came and looked at {a}. "You have a friend," {a} told the {animal}.',
                "But it is no fun to play alone. {a} missed {b}, and {b} missed {a}.",
            ),
            (
                '"I am sorry, {b}," said {a}. "I am sorry too," said {b}.',
                '{b} came back. "I am sorry, {a}," said {b}. "You can hold my {thing2}."',
            ),
            (
                "So {a} played with the {thing2} and {b} played with the {thing}.",
                "First they played with the {thing}, and then they played with the {thing2}.",
            ),
        ),
        (WHERE, COLOUR, COLOUR2, HAS1, HAS2),
        THING_ENDINGS,
    ),
    "market": (
        (
            PAIR_OPENINGS,
            (
                "{a} had two coins. {a.He} wanted to buy a {noun}.",
                '"Here are two coins," said {a.his} {parent}. "Please buy some {food}."',
            ),
            (
                "One {weather} {daytime}, {a} went to the market.",
                "{a} went to the market with {a.his} {parent}.",
            ),
            (
                "There were many hats and bags. {a} saw a {thing} and a {thing2}.",
                "A woman sold {food}, and a man sold a {thing} and a {thing2}.",
            ),
            (
                '"The {noun} is old and the {noun2} is new," said the man.',
                '"The {thing} is one coin and the {thing2} is two coins," said the man.',
            ),
            (
                '"I want the {thing}, please," said {a}. {a} bought the {thing}.',
                "{a} looked at the {thing2}, but then {a.he} bought the {thing}.",
            ),
            (
                '{b} was there too. "I want the {thing2}," said {b}. {b} bought the {thing2}.',
                "Then {b} came and bought the {thing2}.",
            ),
            (
                "They carried the {thing} and the {thing2} home.",
                "On the way home they ate {food}. {a} held the {thing}, and {b} held the {thing2}.",
            ),
        ),
        (
            ("Where did {a} go?", "{a} went to the market."),
            COLOUR,
            COLOUR2,
            ("Who bought the {thing}?", "{a} bought the {thing}."),
            ("Who bought the {thing2}?", "{b} bought the {thing2}."),
        ),
        THING_ENDINGS,
    ),
    "journey": (
        (
            PAIR_OPENINGS,
            (
                "{a}'s {parent} lived far away, near the {place2}.",
                '"Let us visit my {parent}," said {a} to {b}.',
            ),
            (
                "{a} took a {thing}, and {b} took a {thing2}.",
                "{a} took some {food} and a {thing}. {b} carried a {thing2}.",
            ),
            (
                "First they went to the {place}. Then they went to the {place2}.",
                "They walked all {daytime} and came to the {place}.",
            ),
            (
                "Then it began to rain, and the path was wet.",
                "The wind was loud and cold, and {b} was {sad}.",
                "The path was long, and {b} was {sad}.",
            ),
            (
                '"Hold my hand," said {a}. "We will sit {spot}."',
                '"I see a light {spot}!" said {a}. It was only a {beast}.',
                'A {beast} stood {spot}. "Do not be afraid," said {a}. "It is a good {animal}."',
            ),
            (
                "Soon the sun came out, and the path was dry again.",
                "After a long time they saw a small house {at_place2}.",
            ),
            (
                '"Come in!" said {a.his} {parent}. "I made {food} for you."',
                "{a.His} {parent} gave them hot {food}. {a} and {b} were {glad}.",
            ),
        ),
        (COLOUR, COLOUR2, ("Who has the {thing2}?", "{b} has the {thing2}.")),
        THING_ENDINGS,
    ),
    "rescue": (
        (
            PAIR_OPENINGS,
            WENT,
            (
                "{spot_cap} {a.he} saw a {beast}. It was very small.",
                '{a} heard a cry. "What is that?" asked {a}. It was a {beast} {spot}.',
            ),
            (
                "The {animal} was wet and cold, and it was {sad}.",
                "The {animal} was hungry and could not walk.",
            ),
            (
                '"Poor {animal}," said {a}. {a} ran home and brought a {thing}.',
                '"{b}, please help me!" called {a}. {b} came and brought a {thing}.',
            ),
            (
                "They put the {animal} into a box and carried it home.",
                "{a} carried the {animal} home, and {b} carried the {thing}.",
            ),
            (
                "{a} gave the {animal} some {food}, and {b} gave it some milk.",
                "{a} washed the {animal}, and {b} made a bed for it.",
            ),
            (
                "Soon the {animal} was strong again. It ran and jumped.",
                "The {animal} slept all night. In the morning it was happy again.",
            ),
            (
                '"Can we keep the {beast}?" asked {a}. "Yes," said {a.his} {parent}.',
                "The {beast} followed {a} everywhere after that.",
                "Then they took the {beast} back to the {place}, and it ran away.",
            ),
        ),
        (
            WHERE,
            ("Who saw the {beast}?", "{a} saw the {beast}."),
            ("What colour is the {animal}?", "The {animal} is {beast_colour}."),
        ),
        ENDINGS,
    ),
    "planting": (
        (
            PAIR_OPENINGS,
            (
                "{a.His} {parent} gave {a} a small brown seed.",
                "{a} found a small seed {spot}.",
            ),
            (
                '"Put it in the garden and give it water," said {a.his} {parent}.',
                '"What will it be?" asked {a}. "Wait and see," said {a.his} {parent}.',
            ),
            (
                "{a} put the seed into the ground. {a.He} put a {thing} beside it.",
                "Every day {a} carried water to the garden. Beside the seed stood a {thing}.",
            ),
            (
                '{b} laughed. "It is only mud," said {b}.',
                "The weather was {weather}, and the seed slept.",
                "A {beast} wanted to eat the seed, but {a} sent it away.",
            ),
            (
                "One day {a} saw a small green leaf. {a.He} was {glad}.",
                "Then a small green leaf came out of the ground.",
            ),
            (
                "The plant grew and grew. Soon it was bigger than {b}.",
                "After many days there was a big {colour2} flower.",
            ),
            (
                '"What a fine {colour2} flower!" said {b}. "I was wrong."',
                "{a} gave the {colour2} flower to {b}, and {b} put it into a cup.",
            ),
        ),
        (
            COLOUR,
            ("What colour is the flower?", "The flower is {colour2}."),
        ),
        ENDINGS,
    ),
    "hide_and_seek": (
        (
            PAIR_OPENINGS,
            WENT,
            (
                '{b} was there. "Let us play hide and seek!" said {b}.',
                'There was {b}. "I will hide, and you will look for me," said {b}.',
            ),
            (
                "{a} closed {a.his} eyes. {b} ran and hid {spot}.",
                "{a} sat down with {a.his} {thing} and waited. {b} hid {spot}.",
            ),
            (
                "{a} looked {spot2}, but there was only a {beast}.",
                '"Are you there?" called {a}. Only a {beast} looked back.',
            ),
            (
                "Then {a} saw a {thing2}. It was {b}'s {noun2}!",
                '"I see your {thing2}!" cried {a}.',
            ),
            (
                "{a} found {b} {spot}. They laughed and laughed.",
                '"You found me!" said {b}. "My {thing2} was too {colour2}!"',
            ),
            (
                "Then {a} hid {spot2}, and {b} looked for {a.him}.",
                "After that they sat down and ate {food}.",
            ),
        ),
        (
            WHERE,
            COLOUR2,
            ("Who hid {spot}?", "{b} hid {spot}."),
            HAS2,
        ),
        ENDINGS,
    ),
    "baking": (
        (
            PAIR_OPENINGS,
            (
                "{a} wanted to make {food} for {b}, who was in bed with a cold.",
                '"Let us make {food} today," said {a.his} {parent}.',
            ),
            (
                "{a} took a {colour} cup, and {a.his} {parent} took a {colour2} bowl.",
                "{a} put milk into a {colour} cup and honey into a {colour2} bowl.",
            ),
            (
                '"Is it hot?" asked {a}. "No, it is still cold," said {a.his} {parent}.',
                "They worked all {daytime}. It was hot in the house.",
            ),
            (
                "Then a {beast} jumped on the table, and the {colour2} bowl fell down.",
                '"Oh no, the cup is empty!" said {a}. A {beast} sat beside it.',
            ),
            (
                '"Bad {animal}!" said {a}, but then {a.he} laughed.',
                '"The {animal} was hungry too," said {a.his} {parent}. So they made more.',
            ),
            (
                "At last the {food} was ready. {a} carried it to {b}.",
                "In the evening the {food} was ready, and {b} came to eat.",
            ),
            (
                '"This is the best {food} of all," said {b}.',
                "{b} ate all the {food} and was {glad}.",
            ),
        ),
        (
            ("What colour is the cup?", "The cup is {colour}."),
            ("What colour is the bowl?", "The bowl is {colour2}."),
            ("Who ate the {food}?", "{b} ate the {food}."),
            ("Who made the {food}?", "{a} made the {food}."),
        ),
        ENDINGS,
    ),
    "race": (
        (
            PAIR_OPENINGS,
            (
                '"I am fast," said {a}. "I am faster," said {b}.',
                "{a} and {b} wanted to know who was faster.",
            ),
            (
                '"Let us run to the {place}," said {a}. "The first one gets the {thing}."',
                '"Who runs to the {place} first will win this {thing}," said {b}.',
            ),
            (
                "They ran past the {place2}. {b} was fast, and {a} was slow.",
                "One, two, three! They ran. {b} ran in front of {a}.",
            ),
            (
                "But then {b} saw a {beast} and sat down to look at the {animal}.",
                "But then {b} fell, and {b.his} coat was full of mud.",
            ),
            (
                "{a} ran and ran and did not stop.",
                '{a} stopped. "Can you walk, {b}?" {a.he} asked. "Yes, run!" said {b}.',
            ),
            (
                "{a} came to the {place} first. {a} won the race.",
                '"I won!" cried {a} at the {place}. {a} won the race.',
            ),
            (
                "{b} gave {a} the {thing}. {a} was {glad}.",
                'So {a} took the {thing}. "We can both play with it," said {a}.',
            ),
        ),
        (
            ("Who won the race?", "{a} won the race."),
            COLOUR,
            HAS1,
        ),
        THING_ENDINGS,
    ),
    "storm": (
        (
            PAIR_OPENINGS,
            (
                "One evening there was a big storm near the {place}.",
                "The sky was black, and the wind was loud.",
            ),
            (
                '"I am afraid," said {a}. {a.He} held {a.his} {thing}.',
                "{a} could not sleep. {a.He} was {sad}.",
            ),
            (
                "Then there was a knock at the door. It was {b}.",
                '"Is somebody there?" asked {a}. "It is me, {b}!"',
            ),
            (
                '"My house is cold and dark," said {b}. {b} had only a {thing2}.',
                '{b} was wet. {b.He} held a {thing2}. "May I come in?" asked {b}.',
            ),
            (
                "{a.His} {parent} gave {b} a dry coat and some hot {food}.",
                '"Sit down and eat some {food}," said {a.his} {parent}.',
            ),
            (
                "{a} showed {b} the {thing}, and {b} showed {a} the {thing2}.",
                "They sang a song, and soon {a} was not {sad} any more.",
            ),
            (
                "In the morning the sun came out. A {beast} sat {spot}.",
                "When they woke up, the sky was blue again.",
            ),
        ),
        (COLOUR, COLOUR2, HAS1, HAS2),
        THING_ENDINGS,
    ),
    "new_friend": (
        (
            OPENINGS,
            (
                "{b} was new in the village. {b} had no friends yet.",
                "{b} lived in a new house near the {place}. {b} was {sad}.",
            ),
            WENT,
            (
                "There {a.he} saw {b}. {b} had a {thing2}.",
                "{b} sat there alone with a {thing2}.",
            ),
            (
                '"My name is {a}," said {a}. "What is your name?" "I am {b}," said {b}.',
                '"Hello," said {a}. "I like your {thing2}." {b} smiled.',
            ),
            (
                '"I have a {thing}," said {a}. "Do you want to see it?"',
                "{a} showed {b} a {thing}.",
            ),
            (
                '"Do you have a {animal}?" asked {b}. "Yes, I have a {beast}," said {a}.',
                "A {beast} came to them, and they both laughed.",
            ),
            (
                "They played with the {thing} and the {thing2} until it was dark.",
                "{b} gave {a} the {thing2}, and {a} gave {b} the {thing}.",
            ),
        ),
        (WHERE, COLOUR, COLOUR2),
        THING_ENDINGS,
    ),
    "broken_thing": (
        (
            PAIR_OPENINGS,
            (
                "{b} had a {thing}. It was very old, and {b} loved it.",
                "{b.His} best thing was a {thing}.",
            ),
            (
                "{a} wanted to hold the {thing}, but {a.he} dropped it.",
                "{a} ran into the house, and the {thing} fell down and broke.",
            ),
            (
                '"My {thing}!" cried {b}. {b.He} was {sad}.',
                "{b} did not see it. {a} hid the {thing} {spot} and was {sad}.",
            ),
            (
                '"I broke the {thing}," said {a}. "I am so sorry."',
                '"What did you do?" asked {b}. "I broke your {noun}," said {a}.',
            ),
            (
                "{a} went to the {place} and looked for a new {noun}.",
                "{a} took some wood and some {colour} paint and worked all {daytime}.",
            ),
            (
                "In the evening {a} gave {b} a new {thing}.",
                '"Look, the {thing} is like new!" said {a}.',
            ),
            (
                '"You told me the truth," said {b}. "That is better than a new {noun}."',
                '{b} was {glad}. "Now it is our {noun}," said {b}.',
            ),
        ),
        (
            COLOUR,
            ("Who broke the {thing}?", "{a} broke the {thing}."),
            ("Who has the {thing}?", "{b} has the {thing}."),
        ),
        THING_ENDINGS,
    ),
    "two_animals": (
        (
            TALE_OPENINGS,
            (
                "A {beast} and a {beast2} lived {at_place}.",
                "Once a {beast} met a {beast2} {at_place}.",
            ),
            (
                "The {animal} was big, and the {animal2} was small.",
                "The {animal} was fast, and the {animal2} was slow.",
                "The {animal} was loud, and the {animal2} was quiet.",
            ),
            (
                '"I have some {food}," said the {animal}. "I have none," said the {animal2}.',
                "The {animal} found some {food} {spot}. The {animal2} was hungry.",
            ),
            (
                '"Please give me some {food}," said the {animal2}. "No," said the {animal}.',
                "The {animal} hid the {food} {spot} and went to sleep.",
            ),
            (
                "The next {daytime} the {animal} fell into the river. It could not swim.",
                "The next {daytime} a man came with a {thing} and caught the {animal}.",
            ),
            (
                '"Help!" cried the {animal}. The {animal2} heard it and ran to help.',
                "Only the {animal2} heard the {animal} cry, and it came at once.",
            ),
            (
                "The {animal2} pulled and pulled, and the {animal} was free.",
                "The {animal2} helped the {animal}, and they ran away together.",
            ),
            (
                '"I was wrong," said the {animal}. It gave the {animal2} half of the {food}.',
                "After that the {animal} and the {animal2} ate {food} together every day.",
            ),
        ),
        (
            ("Who helped the {animal}?", "The {animal2} helped the {animal}."),
            ("What colour is the {animal}?", "The {animal} is {beast_colour}."),
            ("What colour is the {animal2}?", "The {animal2} is {beast2_colour}."),
        ),
        TALE_ENDINGS,
    ),
}
LESSON_OPENINGS = (
    "{a} and {b} went to school. It was a {weather} {daytime}.",
    "One {weather} morning, {a} sat in school beside {b}. {a} had a {thing}.",
    "{a} liked school. {a.He} took a {thing} to school every day.",
    "It was {b}'s first day at school. {b} sat beside {a}.",
)
QUIZ_OPENINGS = (
    "That evening, {a.his} {parent} asked about it all.",
    "After that, {a.his} {parent} wanted to know all about it.",
    "Later, {a.his} {parent} asked {a} some questions.",
)
LESSON_ASIDES = (
    '"Very good," said the teacher. "Now {b}."',
    "{b} looked at {a} and smiled.",
    "A {beast} looked in at the door, and they all laughed.",
    '"That is right," said the teacher.',
    '"Listen to me," said the teacher.',
)
LESSON_ENDINGS = (
    '"You are both clever," said the teacher. {a} was {glad}.',
    "Then the bell rang, and they went home.",
    "After school, {a} and {b} went to the {place}.",
    "{a} told {a.his} {parent} all about it. {a.His} {parent} was {glad}.",
)
RIDDLE_OPENINGS = (
    "It was a {weather} {daytime}. {a} and {b} sat {at_place}.",
    "One {weather} {daytime}, {a} and {b} went to the {place}.",
    "One {weather} {daytime}, {a} and {b} were at home and wanted to play.",
)
RIDDLE_ASKS = (
    '"I know a riddle," said {a}. "{riddle}. What am I?"',
    '"Listen," said {a}. "{riddle}. What am I?"',
)
RIDDLE_ANSWERS = (
    '"You are a {answer}!" said {b}.',
    '"Are you a {wrong}?" asked {b}. "No," said {a}. "Then you are a {answer}," said {b}.',
    '{b} did not know. "I am a {answer}," said {a}.',
)

# --- Messages: HAM and SPAM are templates by theme; {slots} are filled from SLOTS -----

SLOTS = {
    "name": (*GIRLS, *BOYS),
    "girl": GIRLS,
    "day": ("today", "tomorrow", "tonight", "on Friday", "on Saturday", "on Sunday", "this week"),
    "weekday": ("Monday", "Tuesday", "Friday", "Saturday", "Sunday", "next week"),
    "time": ("at 6", "at 7", "at half 8", "after work", "after lunch", "at noon", "in an hour"),
    "place": (
        "the gym",
        "the station",
        "the pub",
        "the library",
        "town",
        "the park",
        "the market",
        "my place",
        "the cinema",
        "the office",
        "the bus stop",
        "school",
    ),  # fmt: skip
    "food": ("pizza", "soup", "rice", "cake", "bread", "curry", "pasta", "milk"),
    "who": ("mum", "dad", "my sister", "my brother", "the boss", "grandma", "my teacher"),
    "item": ("phone", "laptop", "bike", "camera", "tv", "watch"),
    "small": ("£5", "£10", "£20", "€5", "€15", "20 quid"),
    "sum": ("£500", "£1000", "£2000", "€750", "£5000", "£250", "€1500"),
    "code": ("4821", "77310", "5096", "21548", "9034", "61277"),
    "phone": ("08712 400 217", "09061 743 386", "08001 950 382", "0906 604 1172", "87066", "84128"),
    "word": ("WIN", "YES", "GO", "CLAIM", "PLAY", "STAR", "CASH"),
    "site": (
        "www.top-prize.example",
        "cash4all.example",
        "my-parcel.example",
        "safe-login.example",
        "bit.example/{n3}",
    ),  # fmt: skip
    "event": ("the match", "the quiz", "the race", "the game", "the spelling test"),
    "shop": ("the shop", "the post office", "the bank", "the bakery", "the phone shop"),
}
HAM_OPENERS = (
    "", "", "", "", "Hey, ", "Hi {friend}, ", "Ok, ", "{friend}! ", "Sorry, ", "Haha, ",
    "Hey {friend}, ", "Well, ", "Morning! ", "Btw ", "So ", "Hiya, ",
)  # fmt: skip
HAM_TAILS = (
    "", "", "", "", "", " See you soon.", " Love you x", " Ok?", " Thanks!", " Tell {other} too.",
    " Miss you.", " Talk later.", " Lol", " :)", " How was your day?", " Take care.", " No rush.",
    " Say hi to {other}.", " x", " Let me know.",
)  # fmt: skip
HAM = {
    "plans": (
        "are you coming to {place} {day}?",
        "shall we meet {time} at {place}?",
        "i will be at {place} {time}, wait for me there",
        "{name} and i are going to {place} {day}, do you want to come?",
        "i can't make it {day}, {who} needs me at home",
        "what time does the film start {day}?",
        "i'm on the bus, there in ten minutes",
        "let me know when you leave {place}",
        "we are eating {food} at {place} {time}, come if you like",
        "running late, start without me",
        "is {name} still coming {day} or not?",
        "can we move it to {weekday}? i have to work",
    ),
    "home": (
        "can you buy {food} on the way home?",
        "i'm home now, {who} made {food}",
        "did you feed the cat? i forgot again",
        "{who} says dinner is ready {time}",
        "i left my keys at {place}, are you in?",
        "the washing machine is broken again, {who} is not happy",
        "please take the bins out before you go to bed",
        "{who} is asking if you want {food} or {food2} {day}",
        "don't wait up, i will be home late",
        "i put your {item} on the kitchen table",
    ),
    "feelings": (
        "i had such a bad day, can i come over later?",
        "i think i am falling ill, my head hurts",
        "i was thinking about you all day",
        "happy birthday {name}! hope you have a lovely day",
        "you were so funny last night, i can't stop laughing",
        "i am sorry about what i said to {name}",
        "good night, sleep well",
        "why are you so quiet {day}? did i do something wrong?",
        '{name} said "never again" and then did it again',
        'my {item} says "no signal" all the time, so annoying',
    ),
    "work": (
        "the boss wants the report {day}, can you send me your part?",
        "i am in a meeting, will ring you {time}",
        "did you finish the homework for {weekday}?",
        "class is cancelled {day}, the teacher is ill",
        "i have an exam {day}, wish me luck",
        "how did the interview go? tell me all about it",
        "can you take my shift {day}? i will take yours on monday",
        "the train is stuck again so i will miss the start of the lesson",
    ),
    # Ham that talks as spam does: prizes, calls, money, parcels, codes, links.
    "wins": (
        "we won {event}! {name} was so good, you missed it",
        "guess what, {who} won a prize in the school raffle, a {item}!",
        "i can't believe you won {event}, congratulations!",
        "{name} got first prize for the {food}, free {food2} for all of us",
        "did you claim your prize from the raffle yet? {name} has it at {place}",
        "you have won! {who} says the bike from the raffle is yours, come and collect it",
        '{who} said "winner takes all" and ate my {food} prize',
        "we need one more win and then we are in the final {day}",
        "free {food} at {place} {day}, {who} told me",
    ),
    "calls": (
        "call me when you are free, it's about {weekday}",
        "lonely without you at {place}, come and chat to me",
        "who is the secret crush? {name} wants to find out, call me {time}",
        "please call {who} now, it is urgent",
        "i tried to call you but no answer, text me back",
        "my new number is 07700 900{n3}, text me there. {name}",
        "reply when you get this, i am waiting at {place}",
        "are you free {day}? i want to call you {time}",
        "{who} has no credit left, so call the house phone {time}",
        "text {name} now, the offer for the flat ends {day}",
        "call the doctor and claim the money back for {who}",
        "can't talk now, just text me your answer",
    ),
    "money": (
        "you still owe me {small} for the {food}, no hurry",
        "can you lend me {small} until {weekday}? i lost my card",
        "i paid {small} into your account, {who} told me to",
        "the {item} costs {sum}, i can't pay that, need to save first",
        "i got my first pay, {sum}! {food} is on me {day}",
        "{who} got a loan from the bank for the new car, {sum}",
        "your loan is approved, the man at the bank told {who}! {sum} for the new kitchen",
        "i saved {sum} with the new bank account, you should ask them",
        "pay {name} back please, they keep asking about the {small}",
        "how much cash do we need {day}? i only have {small}",
    ),
    "deliveries": (
        "your parcel came, i put it behind the door. {name}",
        "the delivery man was here but you were out, it is at {shop}",
        "can you pick up my order from {shop} {day}? it is paid",
        "my {item} is still not delivered, i will ring {shop} {day}",
        "your code for the bank is {code}, do not give it to anyone",
        "{code} is the code for the door at {place}, text me if it fails",
        "your order {code} is ready at {shop}, bring a card with your name",
        "there was a {small} fee on your parcel from {name}, i paid it for you",
        "the office has locked my account, can you send me the password for the {item}?",
        "your appointment is {day}. reply only if you can't come. the dentist",
    ),
    "links": (
        "look at this, photos from {day} are on photos.example/{name}",
        "{name} sent me a link to the {item} you wanted, half price at {shop}",
        "have you seen the new offer at {shop}? two {item}s for one, only {day}",
        "sign up for the run here: run.example/{n3}, {name} did too",
        "the timetable is on www.our-school.example, check your exam {day}",
        "the ticket is free, just click the link that {who} sent you",
    ),
}
HAM_SHORT = (
    "Ok", "Yes please", "Lol ok", "On my way", "Where are you?", "Call me later", "I'm home",
    "Thanks {name}", "Ok see you {time}", "No, {day}", "Which one?", "Just got to {place}",
    "Free {day}?", "Happy birthday!", "I'm at {place}", "Nope, ask {name}", "K. {time} then",
    "Is {name} there?", "Yup {day}", "Sorry, can't talk now", "Ring me {time}",
    "Almost there {name}",
)  # fmt: skip
SPAM_OPENERS = (
    "", "", "", "", "", "Hi, ", "URGENT! ", "Dear customer, ", "Hello! ", "FINAL NOTICE: ",
    "Hey, ", "Good news! ", "Hi {friend}, ",
)  # fmt: skip
SPAM_TAILS = (
    "",
    "",
    "",
    "",
    "",
    " Reply STOP to end.",
    " Act fast.",
    " Offer ends {day}.",
    " Thank you.",
)
SPAM_FEES = ("", "", "", " T&Cs apply.", " 18+ only.", " 150p per msg.", " No strings attached.")
FEE_THEMES = ("prizes", "subscriptions", "dating")
SPAM = {
    "prizes": (
        'they said "you have won" and it is true, collect your {item} {day}, message us back',
        "you have been picked for a {sum} prize. call {phone} to claim",
        "your number was drawn {day}! claim your new {item} at {site}",
        "congratulations, a {sum} gift card is waiting for you. text {word} to {phone}",
        "we tried to reach you about your {sum} award, ring {phone} before it expires",
        "lucky winner! answer one easy question and take home a {item}. send {word} to {phone}",
        "you won the race for free tickets! be quick, call {phone} {day} and take {other} too",
        "free {food} for a year at {shop}, just click {site} and leave your card number",
        "guaranteed {item} or {sum} cash, claim code {code}, call {phone}",
    ),
    "loans": (
        "need money fast? borrow up to {sum} with no credit check, apply at {site}",
        "you are approved for a loan of {sum}, text {word} to {phone} to get paid {day}",
        "bad credit? no problem, our lenders say yes. visit {site}",
        "you may be owed {sum} after your accident, reply {word} to start your claim",
        "{name} from the loan office here, {sum} is ready for you, shall i send it {day}?",
        "pay nothing until {weekday}, then only {small} a week, money in the bank in an hour",
        "clear all your debts with one low monthly payment, ask our advisers for details",
    ),
    "subscriptions": (
        "get the hottest ringtones for your {item}, text {word} to {phone}",
        "half price line rental for 12 months, switch your {item} contract today, call {phone}",
        "your free trial of star quiz starts now, {small} per week after, send {word} to {phone}",
        "unlimited games and tones sent to your {item} weekly, subscribe at {site}",
        "upgrade to the latest {item} at no cost, our sales team is waiting on {phone}",
    ),
    "parcels": (
        "your parcel could not be delivered, pay the {small} fee at {site}",
        "delivery failed: confirm your address at {site} or your order will be returned",
        "a package in your name is held by customs. settle the charge online to release it",
        "we have your parcel but the {small} fee is not paid, reply {word} to get it {day}",
        "the delivery man was here but you were out, pay for a new delivery at {site}",
        "courier notice {code}: reschedule your missed delivery via {site}",
    ),
    "phishing": (
        "your account has been locked, verify your details at {site}",
        "unusual login from a new {item}. if this was not you confirm your password at {site}",
        "you are due a tax refund of {sum}, submit your card details at {site}",
        "your bank card will be suspended {day} unless you verify it through our secure page",
        "{shop} sent you {small} by mistake, log in at {site} to send it back",
        "security alert: verify code {code} with our agent on {phone}",
    ),
    "dating": (
        "someone near you has a secret crush, find out who, text {word} to {phone}",
        "{girl}, 24, wants to chat with local singles tonight. see her pics at {site}",
        "{girl} saw you at {place} and wants to know your name, text {word} to {phone}",
        "lonely? meet singles in your area, it is discreet, call {phone}",
        "i saw your profile and i like it, come and chat to me on {site}",
    ),
    # Spam that chats as ham does: hardly a digit, no shouting, no brand.
    "chatty": (
        "it's {name}, i lost my old phone. can you send me some money for a new one {day}?",
        "i make good money working from home now, let me show you how, just message back",
        "a friend gave me your number and says you want extra income, interested?",
        "remember me? we met at {place}. add me on my private page, i posted new pics",
        "{name} here, my cousin doubled his savings with this trader, i can introduce you",
        "mum this is my new number, i need you to pay a bill for me {day}, please hurry",
        "i am in a meeting, can you buy a gift card for the boss and send me the code?",
        "are you free {day}? i know how you can get {small} for ten minutes of easy work",
        "hi love, i am stuck at the airport without cash, please send some and tell nobody",
        "you seem nice, i am new in town and looking for fun, join my page to see more",
        "i got paid for a few easy surveys {day}, you should sign up with my invite",
        "someone posted a video of you, is this really you? login to watch it",
        "my uncle left a fortune abroad and i need an honest partner to help move it",
    ),
}
ABBREVIATIONS = {
    "you": "u", "are": "r", "your": "ur", "to": "2", "for": "4", "tonight": "2nite",
    "please": "pls",
    "see": "c", "text": "txt", "tomorrow": "tmrw", "because": "cos", "thanks": "thx", "and": "n",
    "message": "msg", "about": "abt", "really": "realy", "don't": "dont", "can't": "cant",
    "what": "wat", "i'm": "im", "love": "luv", "waiting": "waitin", "going": "goin",
    "number": "no.",
}  # fmt: skip
MESSAGES_README = """\
A made-up collection in the layout of the UCI SMS Spam Collection: one message per line,
"ham" or "spam", a tab, the text. No message was ever sent by a person; numbers and
addresses are invented (.example). Made by data/sample/make_text.py. Licence: CC0 1.0.
"""
