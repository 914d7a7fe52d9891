"""English, both ways: everything the generators write is understood, and nothing else is guessed at."""

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from milr.lab.curriculum import CATEGORIES, DrawingErrors, contradict, make_item, training_sample
from milr.lab.language import agrees, parse, read_reading, write_plan, write_prompt
from milr.lab.lexicon import LORE, lore_phrase, plural, third_person
from milr.lab.world import Group, Meaning, Relation, Scene, Thing

SEEDS = st.integers(0, 2**40)


@settings(deadline=None, max_examples=400)
@given(seed=SEEDS, category=st.sampled_from(CATEGORIES))
def test_every_prompt_is_understood(seed, category):
    item = make_item(category, random.Random(seed), riddles=0.1)
    assert parse(item.prompt).meaning == item.meaning, item.prompt


@settings(deadline=None, max_examples=300)
@given(seed=SEEDS)
@example(seed=632)  # 'A fish below a fish.': the dog of the prompt is taken for a fish
def test_every_reading_is_understood_and_consistent(seed):
    sample = training_sample(random.Random(seed), DrawingErrors())
    reading = read_reading(sample.reading)
    assert reading is not None
    assert reading.consistent
    assert agrees(reading.meaning, sample.meaning)


def test_a_reading_says_what_stands_where():
    reading = read_reading("A red fox below a car. Bottom left: a red fox. Top left: a car. A blue frame.")
    assert reading is not None
    assert reading.consistent
    assert reading.scene == Scene((Thing("car", None, 0), Thing("fox", "red", 6)), "blue")
    assert reading.meaning == Meaning((Group("fox", "red"), Group("car")), (Relation(0, "below", 1),), "blue")


@pytest.mark.parametrize(
    "layout",
    [
        "Top left: a blue fox. Middle: a car.",  # another colour
        "Top left: a red fox.",  # one is missing
        "Top left: a red fox. Top right: a red fox. Middle: a car.",  # one too many
        "Top left: a car. Middle left: a red fox.",  # the relation is turned round
        "Bottom left: a car. Top left: a red fox.",  # not in the order of the plan
        "Top left: a red fox. Top left: a car.",  # one place twice
        "A red fox is there, and a car.",  # not in the usual words
        "Top left: two red foxes. Middle: a car.",
        "",
    ],
)
def test_a_reading_whose_layout_contradicts_its_plan_is_not_consistent(layout):
    reading = read_reading(f"A red fox above a car. {layout} No frame.")
    assert reading is not None
    assert not reading.consistent


@pytest.mark.parametrize(
    ("text", "groups", "relations", "frame"),
    [
        ("two red foxes above a blue car", [("fox", "red", 2), ("car", "blue", 1)], [(0, "above", 1)], None),
        ("a blue car beneath two foxes that are red", [("car", "blue", 1), ("fox", "red", 2)], [(0, "below", 1)], None),
        ("An animal that swims and waddles!", [("duck", None, 1)], [], None),
        ("the animal that says moo", [("cow", None, 1)], [], None),
        ("an animal which gives us milk", [("cow", None, 1)], [], None),
        ("I'd like to see 3 ducks, please.", [("duck", None, 3)], [], None),
        (
            "a grey bunny to the left of an aeroplane",
            [("rabbit", "gray", 1), ("airplane", None, 1)], [(0, "left of", 1)], None,
        ),
        ("a cow in a red frame", [("cow", None, 1)], [], "red"),
        ("a cow that is pink framed in blue", [("cow", "pink", 1)], [], "blue"),
        ("one bell without a frame", [("bell", None, 1)], [], "none"),
        ("two cacti", [("cactus", None, 2)], [], None),
        ("a fish and two fish", [("fish", None, 1), ("fish", None, 2)], [], None),
    ],
)  # fmt: skip
def test_a_users_own_wording(text, groups, relations, frame):
    meaning = Meaning(tuple(Group(*g) for g in groups), tuple(Relation(*r) for r in relations), frame)
    assert parse(text).meaning == meaning


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("the Eiffel tower at night", "'eiffel'"),
        ("foxes", "how many"),
        ("a fox above", "both sides"),
        ("above a fox", "both sides"),
        ("an animal", "which animal"),
        ("an animal that plays chess", "plays chess"),
        ("a dog next to a cat", "next to"),
        ("red", "names nothing"),
        ("", "names nothing"),
        ("ten dogs", "'ten'"),
        ("nine dogs and a cat", "room for 9"),
        ("a dog in a frame", "which colour"),
    ],
)
def test_what_it_cannot_check_it_refuses_with_a_reason(text, reason):
    parsed = parse(text)
    assert parsed.meaning is None
    assert reason in parsed.reason


@settings(deadline=None, max_examples=300)
@given(st.text(max_size=200))
def test_any_text_is_parsed_or_refused(text):
    parsed = parse(text)
    assert (parsed.meaning is None) == bool(parsed.reason)
    read_reading(text)


@settings(deadline=None, max_examples=200)
@given(seed=SEEDS, category=st.sampled_from(CATEGORIES))
def test_a_contradiction_changes_the_plan(seed, category):
    rng = random.Random(seed)
    meaning = make_item(category, rng).meaning
    other = contradict(meaning, rng)
    assert other != meaning
    assert write_plan(other) != write_plan(meaning) or other.frame != meaning.frame
    assert not agrees(meaning, other)


def test_no_lore_is_shared_and_every_riddle_has_one_answer():
    phrases = [phrase for lore in LORE.values() for phrase in lore]
    assert len(phrases) == len(set(phrases)) == 160


def test_small_english():
    assert [plural(w) for w in ("fox", "butterfly", "key", "bus/buses")] == ["foxes", "butterflies", "keys", "buses"]
    assert [third_person(w) for w in ("fly", "have", "catch", "say", "go")] == [
        "flies",
        "has",
        "catches",
        "says",
        "goes",
    ]
    assert lore_phrase("swim & waddle", many=False) == "swims and waddles"
    rng = random.Random(0)
    assert any("an orange" in write_prompt(Meaning((Group("dog", "orange"),)), rng) for _ in range(40))
