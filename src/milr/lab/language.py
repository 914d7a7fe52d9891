"""English for the lab world: meanings to prompts and reasonings, and text back to a meaning.

`parse` understands every sentence that the generators here can make, and a user's own wording as far as it uses
the world's words; what it cannot turn into a meaning it refuses with a reason, never a guess.
"""

from __future__ import annotations

import functools
import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from milr.lab.lexicon import (
    CLASS_OF,
    CLASS_WORDS,
    CLASSES,
    COLOUR_WORDS,
    LORE,
    NOUN_WORDS,
    NUMBER_WORDS,
    RELATION_WORDS,
    lore_phrase,
    plural,
    singular,
    with_article,
)
from milr.lab.world import CELLS, NO_FRAME, Group, Meaning, Relation, Scene, Thing, cell_centre, holds

OPENINGS = (
    "{}", "a photo of {}", "a picture of {}", "an image of {}", "draw {}", "please draw {}", "show me {}",
    "i would like {}", "paint {}", "a drawing of {}", "can you draw {}?", "{}, please", "a simple scene with {}",
)  # fmt: skip
FRAMES = ("in a {} frame", "with a {} frame", "with a {} border", "framed in {}", "inside a {} frame")
NO_FRAMES = ("without a frame", "with no frame", "without any border")
# How a reasoning names the nine cells, in raster order.
PLACES = (
    "Top left", "Top middle", "Top right",
    "Middle left", "Middle", "Middle right",
    "Bottom left", "Bottom middle", "Bottom right",
)  # fmt: skip


# --- Writing prompts ------------------------------------------------------------------------------------------


def usual(noun: str, many: bool) -> str:
    word = NOUN_WORDS[noun][0]
    return plural(word) if many else singular(word)


def name_phrase(group: Group, rng: random.Random, lore: tuple[str, ...] = ()) -> str:
    """A group as a user would name it; with `lore`, as a riddle that does not say the noun."""
    many = group.count > 1
    colour = ""
    if group.colour:
        words = COLOUR_WORDS[group.colour]
        colour = words[0] if rng.random() < 0.8 else rng.choice(words)
    if lore:
        word = rng.choice(CLASS_WORDS[CLASS_OF[group.noun]])
        noun = plural(word) if many else word
        tail = " that " + " and ".join(lore_phrase(item, many) for item in lore)
    else:
        words = NOUN_WORDS[group.noun]
        word = words[0] if rng.random() < 0.75 else rng.choice(words)
        noun = plural(word) if many else singular(word)
        tail = ""
    if colour and not tail and rng.random() < 0.12:
        noun, tail, colour = noun, f" that {'are' if many else 'is'} {colour}", ""
    core = f"{colour} {noun}".strip()
    if many:
        words = NUMBER_WORDS[group.count]
        return f"{words[0] if rng.random() < 0.6 else rng.choice(words)} {core}{tail}"
    if lore and rng.random() < 0.35:
        return f"the {core}{tail}"
    if rng.random() < 0.12:
        return f"{rng.choice(NUMBER_WORDS[1])} {core}{tail}"
    return f"{with_article(core)}{tail}"


def write_prompt(meaning: Meaning, rng: random.Random, lore: tuple[tuple[str, ...], ...] = ()) -> str:
    """A prompt in one of many wordings. `lore` gives, for each group, the riddle to ask instead of naming it."""
    riddles = lore or ((),) * len(meaning.groups)
    phrases = [name_phrase(group, rng, riddle) for group, riddle in zip(meaning.groups, riddles, strict=True)]
    if meaning.relations:
        relation = meaning.relations[0]
        words = RELATION_WORDS[relation.kind]
        how = words[0] if rng.random() < 0.4 else rng.choice(words)
        verb = rng.choice(["", "", "", "sitting ", "placed "])
        text = f"{phrases[relation.first]} {verb}{how} {phrases[relation.second]}"
        rest = [p for i, p in enumerate(phrases) if i not in (relation.first, relation.second)]
        if rest:
            text += rng.choice([", and ", ", with ", ", plus "]) + " and ".join(rest)
    elif len(phrases) == 1:
        text = phrases[0]
    elif len(phrases) == 2:
        text = rng.choice(["{} and {}", "{} and {}", "{} with {}", "{} together with {}"]).format(*phrases)
    else:
        text = ", ".join(phrases[:-1]) + rng.choice([" and ", ", and "]) + phrases[-1]
    if meaning.frame == NO_FRAME:
        text += " " + rng.choice(NO_FRAMES)
    elif meaning.frame:
        frame = rng.choice(FRAMES)
        words = COLOUR_WORDS[meaning.frame]
        text += " " + frame.replace("a {}", with_article(words[0])).format(words[0])
    return rng.choice(OPENINGS).format(text) if rng.random() < 0.6 else text


# --- Writing reasonings ---------------------------------------------------------------------------------------


def plain_phrase(group: Group) -> str:
    many = group.count > 1
    core = f"{group.colour or ''} {usual(group.noun, many)}".strip()
    return f"{NUMBER_WORDS[group.count][0]} {core}" if many else with_article(core)


def write_plan(meaning: Meaning) -> str:
    """The first sentence of a reasoning: what to draw, decisions first, in the usual words."""
    phrases = [plain_phrase(group) for group in meaning.groups]
    if meaning.relations:
        relation = meaning.relations[0]
        text = f"{phrases[relation.first]} {relation.kind} {phrases[relation.second]}"
        rest = [p for i, p in enumerate(phrases) if i not in (relation.first, relation.second)]
        text += "".join(f", and {p}" for p in rest)
    elif len(phrases) < 3:
        text = " and ".join(phrases)
    else:
        text = ", ".join(phrases[:-1]) + " and " + phrases[-1]
    return text[0].upper() + text[1:] + "."


def write_layout(things: Iterable[Thing]) -> str:
    """Which thing stands where, in the order given: drawing then looks each place up, and needs no counting."""
    return " ".join(f"{PLACES[thing.cell]}: {plain_phrase(Group(thing.noun, thing.colour))}." for thing in things)


def write_frame(frame: str | None) -> str:
    """The last sentence of a reasoning; None means no frame."""
    return "No frame." if frame in (None, NO_FRAME) else f"{with_article(str(frame)).capitalize()} frame."


def write_reading(meaning: Meaning, scene: Scene) -> str:
    """A reasoning: the plan (what `meaning` says), then the layout and the frame of the `scene` that shows it.

    Things are listed in the order of the plan, so that the list can be copied from it.
    """
    named = [(group.noun, group.colour) for group in meaning.groups]
    things = sorted(scene.things, key=lambda thing: (named.index((thing.noun, thing.colour)), thing.cell))
    return f"{write_plan(meaning)} {write_layout(things)} {write_frame(scene.frame)}"


@dataclass(frozen=True)
class Reading:
    """What a reasoning says. `scene` is None where a later sentence is not of this world; `consistent`: the scene
    shows the plan, and the wording is the usual one."""

    meaning: Meaning
    scene: Scene | None
    consistent: bool


def read_reading(text: str) -> Reading | None:
    """Understand a reasoning: plan, layout, frame, and whether they agree. None if the plan is unreadable."""
    text = " ".join(text.split())
    plan, *rest = text.removesuffix(".").split(". ")
    meaning = parse(plan).meaning
    if meaning is None:
        return None
    scene = _read_layout(rest)
    if scene is None:
        return Reading(meaning, None, False)
    meaning = replace(meaning, frame=scene.frame or NO_FRAME)
    return Reading(meaning, scene, _shows(scene, meaning) and write_reading(meaning, scene) == text)


def _read_layout(sentences: list[str]) -> Scene | None:
    """The scene that 'Top left: a red fox', ..., 'No frame' describe."""
    things: list[Thing] = []
    frame: str | None = None
    for sentence in sentences:
        place, colon, phrase = sentence.partition(": ")
        if colon and place in PLACES:
            said = parse(phrase).meaning
            if said is None or said.objects != 1 or PLACES.index(place) in (thing.cell for thing in things):
                return None
            things.append(Thing(said.groups[0].noun, said.groups[0].colour, PLACES.index(place)))
        elif found := re.fullmatch(r"[Aa]n? (\w+) frame", sentence):
            frame = found.group(1)
        elif sentence != "No frame":
            return None
    return Scene(tuple(sorted(things, key=lambda thing: thing.cell)), frame)


def _shows(scene: Scene, meaning: Meaning) -> bool:
    """Does the scene hold the plan's things, no others, in the plan's relations? Colours are as the plan says them."""
    wanted: Counter[tuple[str, str | None]] = Counter()
    for group in meaning.groups:  # a misread plan may name one thing twice: 'a fish below a fish'
        wanted[group.noun, group.colour] += group.count
    if Counter((thing.noun, thing.colour) for thing in scene.things) != wanted:
        return False

    def members(group: Group) -> list[Thing]:
        return [t for t in scene.things if (t.noun, t.colour) == (group.noun, group.colour)]

    def related(relation: Relation) -> bool:
        first, second = (members(meaning.groups[side]) for side in (relation.first, relation.second))
        pairs = [(a, b) for a in first for b in second if a is not b]
        hold = [holds(relation.kind, cell_centre(a.cell), cell_centre(b.cell)) for a, b in pairs]
        return any(hold) if first == second else all(hold)  # two of a kind: either may be meant

    return all(related(relation) for relation in meaning.relations)


def agrees(reading: Meaning, prompt: Meaning) -> bool:
    """Does a reasoning's meaning satisfy the prompt's? What the prompt leaves open may be anything."""
    if prompt.frame is not None and (reading.frame or NO_FRAME) != prompt.frame:
        return False
    if len(reading.groups) != len(prompt.groups) or reading.relations != prompt.relations:
        return False
    return all(
        ours.noun == theirs.noun and ours.count == theirs.count and theirs.colour in (None, ours.colour)
        for ours, theirs in zip(reading.groups, prompt.groups, strict=True)
    )


# --- Understanding --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parsed:
    """A meaning, or the reason why there is none."""

    meaning: Meaning | None
    reason: str = ""


_FILLER = """
an are can clear could create cute d draw drawing emoji emojis exactly floating generate give happy i
illustration image in inside is it just let like little located make me need nice of on only paint painting
photo photograph picture placed please positioned render rendering scene see show simple sit sits sitting
sketch small some stand standing stands sticker that the there this to us want which with would you
"""
FILLER = frozenset(_FILLER.split())


@functools.cache
def _vocabulary() -> list[tuple[tuple[str, ...], tuple[str, object]]]:
    """Every phrase with a meaning of its own, longest first: (words, (kind, value))."""
    entries: dict[tuple[str, ...], tuple[str, object]] = {}
    for noun, words in NOUN_WORDS.items():
        for word in words:
            entries[tuple(plural(word).split())] = ("noun", (noun, True))
            entries[tuple(singular(word).split())] = ("noun", (noun, False))
    entries[("fishes",)] = ("noun", ("fish", True))
    for name, class_words in CLASS_WORDS.items():
        for word in class_words:
            entries[(word,)] = ("class", name)
            entries[(plural(word),)] = ("class", name)
    for colour, words in COLOUR_WORDS.items():
        for word in words:
            entries[tuple(word.replace("-", " ").split())] = ("colour", colour)
    for number, words in NUMBER_WORDS.items():
        for word in words:
            entries[tuple(word.split())] = ("number", number)
    for kind, words in RELATION_WORDS.items():
        for word in words:
            entries[tuple(word.split())] = ("relation", kind)
    for join in ("and", "with", "plus", "together with", "along with", "&", "next to", "beside", "as well as"):
        entries[tuple(join.split())] = ("join", join)
    for plain in ("without a frame", "with no frame", "without any border", "without a border", "with no border"):
        entries[tuple(plain.split())] = ("plain", None)
    entries[("no", "frame")] = ("plain", None)
    for word in ("frame", "border", "framed"):
        entries[(word,)] = ("frame", word)
    for noun, lore in LORE.items():
        for item in lore:
            for many in (False, True):
                for that in ("that ", "which ", "who ", "and ", ""):
                    phrase = tuple((that + lore_phrase(item, many)).split())
                    if that or len(phrase) > 1:
                        entries.setdefault(phrase, ("lore", noun))
    entries[("a",)] = ("article", None)
    entries[("an",)] = ("article", None)
    return sorted(entries.items(), key=lambda entry: -len(entry[0]))


@functools.cache
def _by_first_word() -> dict[str, list[tuple[tuple[str, ...], tuple[str, object]]]]:
    table: dict[str, list[tuple[tuple[str, ...], tuple[str, object]]]] = {}
    for words, meaning in _vocabulary():
        table.setdefault(words[0], []).append((words, meaning))
    return table


def _stem(word: str) -> str:
    for ending, put in (("ies", "y"), ("ing", ""), ("es", ""), ("s", "")):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)] + put
    return word


_EMPTY_WORDS = """
a an and are at by for from in is its of on that the their to very which who with
"""
EMPTY_WORDS = frozenset(_EMPTY_WORDS.split())


@functools.cache
def _lore_words() -> list[tuple[str, str, frozenset[str]]]:
    return [
        (noun, CLASS_OF[noun], frozenset(_stem(w) for w in item.replace("&", " ").split() if w not in EMPTY_WORDS))
        for noun, lore in LORE.items()
        for item in lore
    ]


def _guess_riddle(words: list[str], kind: str) -> str | None:
    """A riddle in the user's own words: the one noun of this class whose lore shares the most telling words."""
    said = {_stem(word) for word in words if word not in EMPTY_WORDS}
    best: dict[str, float] = {}
    for noun, noun_class, telling in _lore_words():
        if noun_class == kind and (shared := len(said & telling)):
            best[noun] = max(best.get(noun, 0), shared / len(telling))
    ranked = sorted(best.items(), key=lambda item: -item[1])
    if not ranked or ranked[0][1] < 0.5 or (len(ranked) > 1 and ranked[1][1] == ranked[0][1]):
        return None
    return ranked[0][0]


def _words(text: str) -> list[str]:
    text = text.lower().replace("-", " ")
    return re.findall(r"[^\W_]+|[,;:&]", text)


def parse(text: str) -> Parsed:
    """The meaning of a prompt (or of a plan), or why it has none."""
    words = _words(text)
    marks: list[tuple[str, object]] = []
    position = 0
    while position < len(words):
        word = words[position]
        for phrase, mark in _by_first_word().get(word, ()):
            if tuple(words[position : position + len(phrase)]) == phrase:
                if mark[0] == "lore" and not any(kind == "class" for kind, _ in marks[-3:]):
                    continue  # 'that fly above the clouds' is only lore after 'animal', 'thing', ...
                marks.append(mark)
                position += len(phrase)
                break
        else:
            if marks and marks[-1][0] == "class" and word in ("that", "which", "who"):
                end = position + 1
                while end < len(words) and not _ends_riddle(words, end):
                    end += 1
                noun = _guess_riddle(words[position:end], str(marks[-1][1]))
                if noun is None:
                    return Parsed(None, f"it does not know what '{' '.join(words[position:end])}' means")
                marks.append(("lore", noun))
                position = end
            elif word in ",;:":
                marks.append(("join", word))
                position += 1
            elif word in FILLER:
                position += 1
            else:
                return Parsed(None, f"it does not know the word '{word}'")
    return _assemble(marks)


def _ends_riddle(words: list[str], position: int) -> bool:
    if words[position] in ",;:":
        return True
    for phrase, (kind, _) in _by_first_word().get(words[position], ()):
        if kind in ("relation", "plain") and tuple(words[position : position + len(phrase)]) == phrase:
            return True
    rest = words[position : position + 4]
    return rest[:1] in (["in"], ["with"], ["inside"], ["framed"]) and bool({"frame", "border", "framed"} & set(rest))


def _assemble(marks: list[tuple[str, object]]) -> Parsed:
    """Build a meaning from the marked phrases: [number] [colour] noun | class lore+, joined or related; frames."""
    groups: list[Group] = []
    relations: list[Relation] = []
    frame: str | None = None
    pending_relation: str | None = None
    count: int | None = None
    colour: str | None = None
    position = 0

    def add(noun: str, many: bool) -> str:
        nonlocal count, colour, pending_relation
        if many and count is None:
            return f"it does not say how many {usual(noun, True)} there are"
        groups.append(Group(noun, colour, count or 1))
        if pending_relation is not None:
            relations.append(Relation(len(groups) - 2, pending_relation, len(groups) - 1))
        count = colour = pending_relation = None
        return ""

    while position < len(marks):
        kind, value = marks[position]
        following = marks[position + 1][0] if position + 1 < len(marks) else ""
        problem = ""
        if kind == "number":
            count = int(str(value))
        elif kind == "colour":
            if following == "frame" and marks[position + 1][1] != "framed":
                frame, position = str(value), position + 1
            elif position and marks[position - 1] == ("frame", "framed"):
                frame = str(value)
            elif groups and following not in ("noun", "class", "colour"):
                groups[-1] = replace(groups[-1], colour=str(value))  # 'a fox that is red'
            else:
                colour = str(value)
        elif kind == "noun":
            assert isinstance(value, tuple)
            name, many = value
            problem = add(str(name), bool(many) and name != "fish")
        elif kind == "class":
            lore = []
            end = position + 1
            while end < len(marks) and marks[end][0] == "lore":
                lore.append(str(marks[end][1]))
                end += 1
            if not lore:
                return Parsed(None, f"it does not say which {value} is meant")
            if len(set(lore)) > 1 or lore[0] not in CLASSES[str(value)]:
                return Parsed(None, "its clues point to different things")
            problem = add(lore[0], False)
            position = end - 1
        elif kind == "relation":
            if not groups or pending_relation is not None:
                return Parsed(None, f"'{value}' needs something on both sides")
            pending_relation = str(value)
        elif kind == "plain":
            frame = NO_FRAME
        elif kind == "lore":
            return Parsed(None, "its clues belong to nothing")
        elif kind == "frame" and value != "framed" and following != "colour" and frame is None:
            return Parsed(None, "it does not say which colour the frame has")
        elif kind == "join" and value in ("next to", "beside"):
            return Parsed(None, f"it cannot check '{value}', only left of, right of, above and below")
        if problem:
            return Parsed(None, problem)
        position += 1
    if pending_relation is not None:
        return Parsed(None, f"'{pending_relation}' needs something on both sides")
    if not groups:
        return Parsed(None, "it names nothing that the lab world has")
    if count is not None or colour is not None:
        return Parsed(None, "a number or a colour belongs to nothing")
    meaning = Meaning(tuple(groups), tuple(relations), frame)
    if meaning.objects > CELLS * CELLS:
        return Parsed(None, f"a page has room for {CELLS * CELLS} objects")
    return Parsed(meaning)
