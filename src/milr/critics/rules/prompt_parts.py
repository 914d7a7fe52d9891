"""What a prompt asks for, read from its words: things with number and colours, and how they lie to each other.

A small grammar, no tagger and no model: noun phrases start at a determiner, a number, or a clause; they end at a
conjunction, a preposition or a verb. Words that it passes over are in `rest`, so a critic can see how much of a prompt
it understood. It never fails: of a text that is no such prompt it finds nothing, or phrases that mean little. Things
that a prompt wants absent ('without a tail') are no things.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


NUMBERS = {
    "a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8,
    "nine": 9, "ten": 10, "eleven": 11, "twelve": 12,
}  # fmt: skip
DETERMINERS = _set("the this that these those some several many few both another its his her their my your our")
COLOURS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray", "grey", "golden",
    "silver", "beige", "turquoise", "violet", "cyan", "magenta", "maroon", "teal", "tan",
)  # fmt: skip
SHADES = ("light", "dark", "bright", "pale", "deep")  # before a colour they belong to it
ADJECTIVES = _set(  # besides colours; the common ones, since nothing here tells adjectives from nouns
    "big small large little tiny huge tall short long wide narrow thick thin high low heavy old new young ancient "
    "modern round square rectangular oval circular triangular spherical cubic cylindrical conical pentagonal "
    "hexagonal pyramidal oblong flat curved soft hard rough smooth shiny dull fluffy fresh crisp crunchy sweet "
    "spicy juicy ripe sticky damp wet dry dusty rusty bright dark pale vibrant striped wooden metallic "
    "delicate gentle sharp cold warm cool bold dramatic intricate sturdy "
    "fragrant beautiful elegant colorful"
)
# Several ways to say it are one relation. 'on', 'in' and 'behind' need more than a flat picture.
RELATIONS = {
    "on the left hand side of": "left of", "on the right hand side of": "right of",
    "on the left side of": "left of", "on the right side of": "right of",
    "to the left of": "left of", "to the right of": "right of",
    "on the left of": "left of", "on the right of": "right of",
    "at the left of": "left of", "at the right of": "right of",
    "on the bottom of": "below", "on the top of": "on top of", "on the side of": "next to",
    "in front of": "in front of", "on top of": "on top of", "on side of": "next to", "adjacent to": "next to",
    "left of": "left of", "right of": "right of", "next to": "next to", "close to": "near", "hidden by": "behind",
    "hidden behind": "behind", "inside of": "in", "above": "above", "over": "above", "below": "below", "under": "below",
    "underneath": "below", "beneath": "below", "atop": "on top of", "beside": "next to", "alongside": "next to",
    "near": "near", "behind": "behind", "hidden": "behind", "inside": "in", "within": "in", "into": "in", "in": "in",
    "onto": "on", "on": "on",
}  # fmt: skip
BETWEEN = _set("and or , ; & plus")  # things may follow, and no relation is meant
OTHERS = _set(  # whatever else ends a noun phrase
    "with without to for from by at through across around between among against along past toward towards during "
    "as than like while when where which who whose that's but so because before after until if off out up down "
    "about upon beyond despite it they he she them him we you i there here each other . : ! ? ( ) -- - "
    "is are was were be been being am has have had do does did could will would may might must should not no "
    "sits sit sat lies lie lay laid stands stood hangs hang hung holds hold held wears wear wore eats ate "
    "rides ride rode flies flew walks runs ran sleeps slept sang sings grows grew fell falls made makes gave gives "
    "wearing holding riding carrying sitting standing lying playing eating "
    "took takes covers shows contains provides reflects swims swam sank very gently gracefully slowly carefully"
)
ABSENT = ("without", "no")
NO_VERBS = _set(  # nouns and adjectives that end like a verb
    "ring wing king string spring swing thing ceiling building painting clothing earring awning wedding bowling "
    "lightning morning evening railing stocking pudding dumpling duckling bed shed sled seed weed reed red breed"
)
OPENING = re.compile(
    r"\s*(?:an?|the)?\s*(?:[\w-]+\s+){0,2}?(?:photo|photograph|picture|image)s?\s+(?:of|showing|with)\s+", re.IGNORECASE
)
IRREGULAR = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse", "geese": "goose",
    "teeth": "tooth", "feet": "foot", "oxen": "ox", "knives": "knife", "leaves": "leaf", "wolves": "wolf",
    "shelves": "shelf", "loaves": "loaf", "halves": "half", "calves": "calf", "scarves": "scarf", "wives": "wife",
    "thieves": "thief", "elves": "elf", "buses": "bus", "cookies": "cookie", "brownies": "brownie", "movies": "movie",
    "zombies": "zombie", "hoodies": "hoodie", "smoothies": "smoothie", "selfies": "selfie", "tomatoes": "tomato",
    "potatoes": "potato", "mangoes": "mango", "heroes": "hero", "volcanoes": "volcano", "echoes": "echo",
    "cacti": "cactus", "fungi": "fungus", "lenses": "lens", "octopuses": "octopus", "walruses": "walrus",
    "broccolis": "broccoli", "taxis": "taxi", "bikinis": "bikini",
    "firemen": "fireman", "policemen": "policeman", "fishermen": "fisherman", "snowmen": "snowman",
}  # fmt: skip
SAME = _set("skis scissors sheep deer fish sunglasses jeans pants shorts series species trousers pliers")
LONGEST = 6  # words of a name, so that a text without any grammar does not become one


@dataclass(frozen=True)
class Thing:
    """One noun phrase. `name` is without number and colours, singular where a number says so ('traffic light').

    `count` is what the prompt says (1 for 'a'), None where it names no number. `phrase` is as the prompt has it.
    """

    name: str
    count: int | None = None
    colours: tuple[str, ...] = ()
    phrase: str = ""

    @property
    def described(self) -> str:
        """With its colours: 'red traffic light'."""
        return " ".join((" and ".join(self.colours), self.name)).strip()


@dataclass(frozen=True)
class Place:
    """How one thing lies to another (indices of `things`); relations are the values of RELATIONS."""

    first: int
    relation: str
    second: int


@dataclass(frozen=True)
class Parts:
    """`rest` are the words that mean more than the things and places say: verbs, other prepositions."""

    things: tuple[Thing, ...] = ()
    places: tuple[Place, ...] = ()
    rest: tuple[str, ...] = ()

    def __str__(self) -> str:
        """What was understood: '2 red fox, car; red fox above car'."""
        things = ", ".join(f"{thing.count or ''} {thing.described}".strip() for thing in self.things) or "nothing"
        places = ", ".join(
            f"{self.things[place.first].described} {place.relation} {self.things[place.second].described}"
            for place in self.places
        )
        return f"{things}; {places}" if places else things


def read(prompt: str) -> Parts:
    """Things and places that a prompt names. Never fails."""
    opening = OPENING.match(prompt)
    words = re.findall(r"[\w'’]+(?:-[\w'’]+)*|[^\w\s]", prompt[opening.end() if opening else 0 :].lower())
    reader = _Reader(words)
    reader.run()
    return Parts(tuple(reader.things), tuple(reader.places), tuple(reader.rest))


def singular(word: str) -> str:
    """The singular of an English noun; a word that is none comes back as it is or shorter by an s."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word in SAME or not word.endswith("s") or word.endswith(("ss", "us", "is")) or len(word) < 3:
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "ches", "shes", "xes", "zzes")):
        return word[:-2]
    return word[:-1]


class _Reader:
    """One pass over the words."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.things: list[Thing] = []
        self.places: list[Place] = []
        self.rest: list[str] = []
        self._phrase: list[str] = []
        self._is_open = True  # whether any word may start a phrase here; after a verb only a determiner does
        self._is_absent = False  # whether the next thing is one that must not be there
        self._relation: tuple[int, str] | None = None  # which thing lies how to the one that comes next

    def run(self) -> None:
        position = 0
        while position < len(self.words):
            position += self._step(position)
        self._close()

    def _step(self, position: int) -> int:
        """Take in the word here (or the words of a relation); returns how many."""
        word = self.words[position]
        if (said := _relation_at(self.words, position)) is not None:
            self._close()
            if self.things:
                self._relation = (len(self.things) - 1, RELATIONS[said])
            else:
                self.rest += said.split()
            self._is_open = True
            return len(said.split())
        if word == "and" and self._joins_colours(position):
            self._phrase.append(word)
            return 1
        if word == "," and self._phrase and self._phrase[-1] in ADJECTIVES:  # 'the soft, fluffy clouds'
            return 1
        if word in BETWEEN:
            self._close()
            self._is_open, self._relation = True, None
        elif word in DETERMINERS or word in NUMBERS or word.isdecimal():
            self._close()
            self._phrase, self._is_open = [word], True
        elif self._ends_phrase(position):
            self._close()
            self._is_absent = word in ABSENT
            if word not in (".", "of", "is", "are", "was", "were", "there"):
                self.rest.append(word)
            self._is_open = word in ("with", *ABSENT)
        elif self._phrase or self._is_open or word in COLOURS:
            self._phrase.append(word)
            self._is_open = True
        else:
            self.rest.append(word)
        return 1

    def _joins_colours(self, position: int) -> bool:
        """'and' in 'a black and white cat'."""
        before, after = self._phrase, self.words[position + 1 : position + 3]
        return bool(before) and before[-1] in COLOURS and len(after) == 2 and after[0] in COLOURS and after[1].isalpha()

    def _ends_phrase(self, position: int) -> bool:
        word = self.words[position]
        if word in OTHERS or not re.search(r"\w", word):
            return True
        nouns = [one for one in self._phrase if one not in DETERMINERS and one not in NUMBERS and one not in COLOURS]
        after = self.words[position + 1] if position + 1 < len(self.words) else "."
        if nouns and (after in DETERMINERS or after in NUMBERS):  # nothing but a verb (or 'of') stands in between
            return True
        if not nouns or word in NO_VERBS or not word.endswith(("ing", "ed")):
            return False
        if word.endswith("ed") and singular(nouns[-1]) != nouns[-1]:  # 'eight sofas provided seating'
            return True
        return (  # a verb has something else than a noun behind it
            after in OTHERS or after in BETWEEN or after.endswith("ly")
            or _relation_at(self.words, position + 1) is not None or not re.search(r"\w", after)
        )  # fmt: skip

    def _close(self) -> None:
        """The phrase so far becomes a thing, if there is a noun in it."""
        phrase, self._phrase = self._phrase, []
        first = phrase[0] if phrase else ""
        has_head = first in DETERMINERS or first in NUMBERS or first.isdecimal()
        inside = phrase[1:] if has_head else phrase
        if not inside or not re.search(r"[^\W\d_]", inside[-1]):
            return
        if len(inside) > LONGEST or self._is_absent:
            self._is_absent = False
            self.rest += phrase
            return
        colours, names = [], []
        for index, word in enumerate(inside):
            is_last = index + 1 == len(inside)
            if word in COLOURS and not is_last:
                colours.append(word)
            elif word != "and" and not (word in SHADES and not is_last and inside[index + 1] in COLOURS):
                names.append(word)
        count = NUMBERS.get(first) if not first.isdecimal() else min(int(first[:6]), 10**6)
        if count != 1:
            names[-1] = singular(names[-1])
        self.things.append(Thing(" ".join(names), count, tuple(colours), " ".join(phrase)))
        if self._relation is not None:
            self.places.append(Place(self._relation[0], self._relation[1], len(self.things) - 1))
            self._relation = None


def _relation_at(words: list[str], position: int) -> str | None:
    """The longest relation that starts here."""
    for length in (6, 5, 4, 3, 2, 1):
        said = " ".join(words[position : position + length])
        if said in RELATIONS and position + length <= len(words):
            return said
    return None
