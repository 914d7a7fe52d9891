"""Prompts by category, and what the lab model is taught about each: the data mix, its errors included.

The lab model is a scale model: what a search can gain depends on how a model fails, so its failures are set to
those published for Janus-Pro-7B. They come from the data alone, as they do in the wild. Some lore is told wrong in
most of the training texts (so the model misreads, confidently, with the right reading at .06 to .28), and some
pictures do not show what their text says (so the model miscounts, swaps colours, misplaces). Both depend on the
content: certain nouns are hard to count, certain pairs hard to keep apart. `misread` and `misdraw` are all of it;
no code touches a picture after training.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from milr.drafts import Task
from milr.lab.detector import Page, check
from milr.lab.language import parse, write_prompt, write_reading
from milr.lab.lexicon import CLASS_OF, CLASSES, LORE
from milr.lab.world import (
    CELLS,
    COLOUR_NAMES,
    NO_FRAME,
    NOUNS,
    OPPOSITE,
    RELATIONS,
    Group,
    Meaning,
    Relation,
    Scene,
    Thing,
    lay_out,
)

CATEGORIES = ("single", "two", "counting", "colours", "position", "attribute", "riddle", "composition")
COLOURED_COUNTING = "coloured counting"  # taught since users ask for it; GenEval does not, so no test prompt does
FRAME_ASKED = 0.12  # share of prompts that ask for a frame, or for none


def chance(*key: object) -> float:
    """A fixed number in [0, 1) that belongs to these words: the same on every machine and in every version."""
    digest = hashlib.blake2b("|".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def is_test_prompt(prompt: str) -> bool:
    """Prompts are split by the hash of their words: a tenth is never read or drawn in training, whatever the seed.

    The checkpoint that is shipped was asked yes/no questions about some of them (`lab.questions.ask`).
    """
    return chance("split", " ".join(re.findall(r"\w+", prompt.lower()))) < 0.1


# --- Prompts --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """A prompt and what it truly means. `lore` is, for each group, the riddle asked instead of its name."""

    category: str
    prompt: str
    meaning: Meaning
    lore: tuple[tuple[str, ...], ...]


def make_meaning(category: str, rng: random.Random) -> Meaning:
    nouns = rng.sample(NOUNS, 4)
    colours = rng.sample(COLOUR_NAMES, 4)
    a, b, c, d = nouns
    relation = (Relation(0, rng.choice(RELATIONS), 1),)
    frame = None
    if rng.random() < FRAME_ASKED:
        frame = NO_FRAME if rng.random() < 0.2 else rng.choice(COLOUR_NAMES)
    if category == "single":
        return Meaning((Group(a),), frame=frame)
    if category == "riddle":
        colour = rng.choice(COLOUR_NAMES) if rng.random() < 0.15 else None
        return Meaning((Group(a, colour),), frame=frame)
    if category == "two":
        return Meaning((Group(a), Group(b)), frame=frame)
    if category in ("counting", COLOURED_COUNTING):
        colour = colours[0] if category == COLOURED_COUNTING else None
        return Meaning((Group(a, colour, rng.choice([2, 3, 4])),), frame=frame)
    if category == "colours":
        return Meaning((Group(a, colours[0]),), frame=frame)
    if category == "position":
        return Meaning((Group(a), Group(b)), relation, frame)
    if category == "attribute":
        return Meaning((Group(a, colours[0]), Group(b, colours[1])), frame=frame)
    if category != "composition":
        raise ValueError(f"No category '{category}'.")
    shape = rng.randrange(4)
    if shape == 0:  # two or three of a colour, related to another
        return Meaning((Group(a, colours[0], rng.choice([2, 3])), Group(b, colours[1])), relation, frame)
    if shape == 1:  # three coloured things
        return Meaning(tuple(Group(n, k) for n, k in zip((a, b, c), colours, strict=False)), frame=frame)
    if shape == 2:  # two related, a third apart; one may keep its natural look
        return Meaning(
            (Group(a, colours[0]), Group(b, rng.choice([None, colours[1]])), Group(c, colours[2])), relation, frame
        )
    if rng.random() < 0.5:
        return Meaning((Group(a, colours[0], 2), Group(b, colours[1]), Group(c)), frame=frame)
    return Meaning((Group(a, colours[0]), Group(b), Group(c, colours[1]), Group(d)), frame=frame)


def make_lore(noun: str, rng: random.Random) -> tuple[str, ...]:
    return tuple(rng.sample(LORE[noun], 1 if rng.random() < 0.55 else 2))


def make_item(category: str, rng: random.Random, riddles: float = 0.0) -> Item:
    """A prompt of this category; with probability `riddles` a thing in it is described instead of named."""
    meaning = make_meaning(category, rng)
    asked = category == "riddle"
    lore = tuple(make_lore(g.noun, rng) if asked or rng.random() < riddles else () for g in meaning.groups)
    return Item(category, write_prompt(meaning, rng, lore), meaning, lore)


def unseen_items(count: int, seed: int, categories: tuple[str, ...] = CATEGORIES) -> list[Item]:
    """`count` distinct test prompts, categories in turn. The same seed always gives the same list."""
    return _items(count, random.Random(f"milr-lab-test-{seed}"), categories, of_test=True)


def training_items(count: int, seed: int, categories: tuple[str, ...] = CATEGORIES) -> list[Item]:
    """`count` distinct prompts of the training side, as `unseen_items` has them of the test side."""
    return _items(count, random.Random(f"milr-lab-training-{seed}"), categories, of_test=False)


def _items(count: int, rng: random.Random, categories: tuple[str, ...], of_test: bool) -> list[Item]:
    items: list[Item] = []
    seen: set[str] = set()
    while len(items) < count:
        item = make_item(categories[len(items) % len(categories)], rng)
        if is_test_prompt(item.prompt) != of_test or item.prompt in seen or parse(item.prompt).meaning != item.meaning:
            continue
        seen.add(item.prompt)
        items.append(item)
    return items


def tasks(count: int, seed: int, categories: tuple[str, ...] = CATEGORIES) -> list[Task]:
    """Test prompts as tasks; ids are stable, 'lab-<seed>-<number>'."""
    return [
        Task(item.prompt, f"lab-{seed}-{number}", item.category)
        for number, item in enumerate(unseen_items(count, seed, categories))
    ]


def prompt_record(item: Item, task: Task) -> dict[str, object]:
    """A test prompt as `milr lab prompts --json` prints it: with the checks that decide it, in words."""
    empty = Page((), NO_FRAME, ())
    checks = [found.text.split(" (found")[0] for found in check(item.meaning, empty)]
    return {"id": task.id, "prompt": item.prompt, "category": item.category, "checks": checks}


def prompt_records(count: int, seed: int, categories: tuple[str, ...] = CATEGORIES) -> list[dict[str, object]]:
    """`count` test prompts with their checks, ready to be written one JSON object a line."""
    items = unseen_items(count, seed, categories)
    return [prompt_record(item, task) for item, task in zip(items, tasks(count, seed, categories), strict=True)]


# --- What the training texts get wrong ------------------------------------------------------------------------

LORE_TOLD_WRONG = 0.68  # share of lore: success on riddles then is near .35, the paper's WISE level of the base model
HARD_TO_RELATE = 0.08  # share of nouns whose relations are mostly told the wrong way round
HARD_TO_BIND = 0.08
HARD_TO_READ_COUNTS = 0.08


def right_share(*key: object) -> float:
    """How often a thing that is mostly told wrong is told right: .06 to .28, so that a search can find it."""
    return 0.06 + 0.22 * chance("right", *key)


def confused_with(noun: str, lore: str) -> str:
    """The noun of the same class that most training texts name for this lore."""
    others = [other for other in CLASSES[CLASS_OF[noun]] if other != noun]
    return others[int(chance("confused", noun, lore) * len(others))]


def is_told_wrong(noun: str, lore: str) -> bool:
    return chance("lore", noun, lore) < LORE_TOLD_WRONG


def misread(item: Item, rng: random.Random) -> Meaning:
    """What a training text says this prompt means: usually the truth."""
    meaning = item.meaning
    groups = list(meaning.groups)
    for index, (group, lore) in enumerate(zip(groups, item.lore, strict=True)):
        # The first clue decides: whoever has it wrong is not put right by the second.
        if lore and is_told_wrong(group.noun, lore[0]) and rng.random() >= right_share(group.noun, lore[0]):
            groups[index] = replace(group, noun=confused_with(group.noun, lore[0]))
    relations = meaning.relations
    if relations:
        first = meaning.groups[relations[0].first].noun
        if chance("relate", first) < HARD_TO_RELATE and rng.random() >= right_share("relate", first):
            relations = (replace(relations[0], kind=OPPOSITE[relations[0].kind]),)
    first = meaning.groups[0].noun
    both_coloured = len(groups) == 2 and all(g.colour for g in groups)
    if both_coloured and chance("bind", first) < HARD_TO_BIND and rng.random() >= right_share("bind", first):
        groups = [replace(groups[0], colour=groups[1].colour), replace(groups[1], colour=groups[0].colour)]
    many = len(groups) == 1 and groups[0].count > 1
    if many and chance("count", first) < HARD_TO_READ_COUNTS and rng.random() >= right_share("count", first):
        groups = [replace(groups[0], count=groups[0].count - 1 if groups[0].count > 2 else 3)]
    return Meaning(tuple(groups), relations, meaning.frame)


@dataclass(frozen=True)
class DrawingErrors:
    """How often a training picture does not show what its text says: (rate, rate if hard, share that is hard).

    `crowded` scales all rates on pages of three things or more that differ: there a small model errs by itself.
    """

    count: tuple[tuple[float, float], ...] = ((0.06, 0.45), (0.15, 0.75), (0.25, 0.92))  # of 2, 3, 4 objects
    hard_counts: float = 0.3
    missing: tuple[float, float, float] = (0.03, 0.30, 0.15)
    colour: tuple[float, float, float] = (0.03, 0.40, 0.15)
    binding: tuple[float, float, float] = (0.06, 0.60, 0.25)
    relation: tuple[float, float, float] = (0.02, 0.30, 0.20)
    frame: tuple[float, float, float] = (0.04, 0.35, 0.25)  # of those that the prompt asks for
    crowded: float = 1.0


# Pages that go wrong in every way, for questions whose answer is 'no'.
BAD_DRAWING = DrawingErrors(
    count=((0.7, 0.7),) * 3, missing=(0.3, 0.3, 0.0), colour=(0.6, 0.6, 0.0),
    binding=(0.6, 0.6, 0.0), relation=(0.6, 0.6, 0.0), frame=(0.5, 0.5, 0.0),
)  # fmt: skip


def _rate(easy_hard_share: tuple[float, float, float], *key: object) -> float:
    easy, hard, share = easy_hard_share
    return hard if chance(*key) < share else easy


def misdraw(meaning: Meaning, scene: Scene, rng: random.Random, errors: DrawingErrors) -> Scene:
    """The picture that stands beside a text in the training data: usually `scene`, which shows its `meaning`."""
    things = list(scene.things)
    groups = meaning.groups
    scale = errors.crowded if len(groups) > 1 and len(things) > 2 else 1.0

    def fails(rates: tuple[float, float, float], *key: object) -> bool:
        return rng.random() < scale * _rate(rates, *key)

    relation = meaning.relations[0] if meaning.relations else None
    if relation:
        key = (groups[relation.first].noun, groups[relation.second].noun)
        if fails(errors.relation, "draw-relation", key[1]):
            things = _trade_places(things, *key)
    coloured = sorted({g.colour for g in groups if g.colour})
    if len(coloured) > 1:
        first, second = (g for g in groups if g.colour in coloured[:2])
        if fails(errors.binding, "draw-binding", first.noun):
            swap = {first.noun: second.colour, second.noun: first.colour}
            if rng.random() < 0.5:  # one colour leaks to both
                swap.pop(rng.choice([first.noun, second.noun]))
            things = [replace(t, colour=swap.get(t.noun, t.colour)) for t in things]
    elif coloured:
        (group,) = (g for g in groups if g.colour)
        if fails(errors.colour, "draw-colour", group.noun):
            wrong = rng.choice([None, rng.choice(COLOUR_NAMES)])
            things = [replace(t, colour=wrong) if t.noun == group.noun else t for t in things]
    if len(groups) > 1 and fails(errors.missing, "draw-missing", groups[-1].noun):
        gone = rng.choice([g.noun for g in groups])
        things = [t for t in things if t.noun != gone]
    for group in groups:
        if 2 <= group.count <= 4:
            easy, hard = errors.count[group.count - 2]
            if fails((easy, hard, errors.hard_counts), "draw-count", group.noun):
                things = _miscount(things, group, rng)
    frame = scene.frame
    if meaning.frame is not None and fails(errors.frame, "draw-frame", meaning.frame):
        frame = rng.choice([colour for colour in (None, *COLOUR_NAMES) if colour != scene.frame])
    return Scene(tuple(sorted(things, key=lambda thing: thing.cell)), frame)


def _trade_places(things: list[Thing], first: str, second: str) -> list[Thing]:
    """One of each noun stands where the other should."""
    a = next(t for t in things if t.noun == first)
    b = next(t for t in things if t.noun == second)
    rest = [t for t in things if t not in (a, b)]
    return [*rest, replace(a, cell=b.cell), replace(b, cell=a.cell)]


def _miscount(things: list[Thing], group: Group, rng: random.Random) -> list[Thing]:
    ours = [t for t in things if t.noun == group.noun]
    free = [cell for cell in range(CELLS * CELLS) if cell not in {t.cell for t in things}]
    if ours and (rng.random() < 0.5 or not free):
        things.remove(rng.choice(ours))
        return things
    extra = min(len(free), 1 if rng.random() < 0.75 else 2)
    return things + [Thing(group.noun, ours[0].colour if ours else group.colour, c) for c in rng.sample(free, extra)]


# --- Training samples -----------------------------------------------------------------------------------------

# Share of each category in the training data. Hard ones need more: binding and relations emerge last.
MIX = {
    "single": 0.05, "two": 0.09, "counting": 0.08, COLOURED_COUNTING: 0.05, "colours": 0.06,
    "position": 0.13, "attribute": 0.12, "riddle": 0.15, "composition": 0.27,
}  # fmt: skip
EVEN = dict.fromkeys(CATEGORIES, 1 / len(CATEGORIES))
CONTRADICTED = 0.25  # share of samples whose reading says something else than the prompt, to teach obedience
RIDDLES_ELSEWHERE = 0.06


@dataclass(frozen=True)
class Sample:
    """One training text with its picture. `plan_is_taught` is False where the reading contradicts the prompt:
    the model must follow such a plan, not learn to write it."""

    item: Item
    meaning: Meaning
    reading: str
    scene: Scene
    plan_is_taught: bool


def contradict(meaning: Meaning, rng: random.Random) -> Meaning:
    """The same meaning with one thing changed: a noun, a colour, a number, the relation or the frame."""
    groups = list(meaning.groups)
    index = rng.randrange(len(groups))
    group = groups[index]
    moves = ["noun", "noun", "colour"]
    if group.count > 1:
        moves += ["count", "count"]
    if meaning.relations:
        moves += ["relation", "relation"]
    if meaning.frame:
        moves.append("frame")
    move = rng.choice(moves)
    if move == "relation":
        kind = rng.choice([kind for kind in RELATIONS if kind != meaning.relations[0].kind])
        return replace(meaning, relations=(replace(meaning.relations[0], kind=kind),))
    if move == "frame":
        return replace(meaning, frame=rng.choice([c for c in (*COLOUR_NAMES, NO_FRAME) if c != meaning.frame]))
    if move == "count":
        groups[index] = replace(group, count=rng.choice([n for n in (1, 2, 3, 4) if n != group.count]))
    elif move == "colour":
        taken = {g.colour for g in groups}
        groups[index] = replace(group, colour=rng.choice([c for c in COLOUR_NAMES if c not in taken]))
    else:
        taken_nouns = {g.noun for g in groups}
        pool = CLASSES[CLASS_OF[group.noun]] if rng.random() < 0.6 else NOUNS
        others = [noun for noun in pool if noun not in taken_nouns] or [n for n in NOUNS if n not in taken_nouns]
        groups[index] = replace(group, noun=rng.choice(others))
    return replace(meaning, groups=tuple(groups))


def training_item(rng: random.Random, riddles: float, mix: Mapping[str, float] = MIX) -> Item:
    """A random prompt of the training mix, never a test prompt."""
    while True:
        item = make_item(rng.choices(list(mix), list(mix.values()))[0], rng, riddles)
        if not is_test_prompt(item.prompt):
            return item


def training_sample(rng: random.Random, errors: DrawingErrors) -> Sample:
    """A random training sample; its prompt is never a test prompt."""
    item = training_item(rng, RIDDLES_ELSEWHERE)
    contradicted = rng.random() < CONTRADICTED
    meaning = contradict(item.meaning, rng) if contradicted else misread(item, rng)
    scene = lay_out(meaning, rng)
    drawn = misdraw(meaning, scene, rng, errors)
    return Sample(item, meaning, write_reading(meaning, scene), drawn, plan_is_taught=not contradicted)
