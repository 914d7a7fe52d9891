import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from milr.critics.rules import prompt_parts
from milr.critics.rules.prompt_parts import Place, Thing, read, singular


def things(prompt):
    return [(thing.count, thing.described) for thing in read(prompt).things]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a photo of two red foxes and a blue car", [(2, "red fox"), (1, "blue car")]),
        ("A close-up photo of an orange", [(1, "orange")]),
        ("two oranges and an orange orange", [(2, "orange"), (1, "orange orange")]),
        ("a black and white cat", [(1, "black and white cat")]),
        ("the soft, fluffy clouds", [(None, "soft fluffy cloud")]),
        ("three hot dogs, one bus and 12 traffic lights", [(3, "hot dog"), (1, "bus"), (12, "traffic light")]),
        ("ten women with knives", [(10, "woman"), (None, "knife")]),
        ("two dogs running in a park", [(2, "dog"), (1, "park")]),
        ("a man is holding a book", [(1, "man"), (1, "book")]),
        ("a light blue cup", [(1, "blue cup")]),
        ("red apples on a wooden table", [(None, "red apple"), (1, "wooden table")]),
        ("a wedding ring in a red building", [(1, "wedding ring"), (1, "red building")]),
        ("eight sofas provided seating", [(8, "sofa")]),
        ("four boats, and a person, wearing red shoes", [(4, "boat"), (1, "person"), (None, "red shoe")]),
        ("the plastic ruler cut the paper", [(None, "plastic ruler"), (None, "paper")]),
        ("a soda can", [(1, "soda can")]),
        ("a pair of scissors", [(1, "pair of scissors")]),
        ("a woman in a red shirt holds white flowers", [(1, "woman"), (1, "red shirt"), (None, "white flower")]),
        ("", []),
        ("!!! 7 , and the", []),
    ],
)
def test_things(prompt, expected):
    assert things(prompt) == expected


@pytest.mark.parametrize(
    ("words", "relation"),
    [
        ("left of", "left of"), ("to the left of", "left of"), ("on the right side of", "right of"),
        ("above", "above"), ("under", "below"), ("on the bottom of", "below"), ("on top of", "on top of"),
        ("is on the top of", "on top of"), ("next to", "next to"), ("was lying next to", "next to"),
        ("beside", "next to"), ("on side of", "next to"), ("near", "near"), ("in front of", "in front of"),
        ("behind", "behind"), ("hidden by", "behind"), ("inside", "in"), ("on", "on"),
    ],
)  # fmt: skip
def test_places(words, relation):
    parts = read(f"a red bench {words} two bears")
    assert [(thing.count, thing.described) for thing in parts.things] == [(1, "red bench"), (2, "bear")]
    assert parts.places == (Place(0, relation, 1),)


def test_a_place_joins_neighbours_and_and_ends_it():
    parts = read("a dog to the left of three cats, and a green bird")
    assert parts.places == (Place(0, "left of", 1),)
    assert read("above a dog").places == ()
    assert read("a dog above, a cat").places == ()
    assert read("a dog above").places == ()


def test_the_rest_is_what_was_not_understood():
    assert read("a dog and a cat").rest == ()
    assert read("there are two dogs.").rest == ()
    assert read("a dog chasing a cat").rest == ("chasing",)


def test_what_must_not_be_there_is_no_thing():
    parts = read("a dog without a tail and a cat with no collar on a sofa")
    assert things("a dog without a tail and a cat with no collar on a sofa") == [(1, "dog"), (1, "cat"), (1, "sofa")]
    assert parts.rest == ("without", "a", "tail", "with", "no", "collar")


def test_phrases_are_as_written():
    assert [thing.phrase for thing in read("A green bench and the two black and white cats").things] == [
        "a green bench",
        "the",
        "two black and white cats",
    ][::2]


def test_what_was_understood_in_words():
    assert str(read("two red foxes above a car")) == "2 red fox, 1 car; red fox above car"
    assert str(read("")) == "nothing"


@pytest.mark.parametrize(
    ("plural", "one"),
    [
        ("foxes", "fox"), ("buses", "bus"), ("horses", "horse"), ("glasses", "glass"), ("benches", "bench"),
        ("toothbrushes", "toothbrush"), ("knives", "knife"), ("sandwiches", "sandwich"), ("strawberries", "strawberry"),
        ("ties", "tie"), ("skis", "skis"), ("scissors", "scissors"), ("mice", "mouse"), ("people", "person"),
        ("gloves", "glove"), ("shoes", "shoe"), ("potatoes", "potato"), ("grass", "grass"), ("bus", "bus"),
        ("tennis", "tennis"), ("cactus", "cactus"), ("as", "as"), ("taxis", "taxi"),
    ],
)  # fmt: skip
def test_singulars(plural, one):
    assert singular(plural) == one


WORDS = sorted(
    {word for said in prompt_parts.RELATIONS for word in said.split()}
    | {*prompt_parts.NUMBERS, *prompt_parts.COLOURS[:4]} | {"and", ",", ".", "the", "of", "dog", "cats", "-", "3"}
)  # fmt: skip


@given(st.one_of(st.text(), st.lists(st.sampled_from(WORDS)).map(" ".join)))
@example("٣ cats")
@example("a photo of ")
@example("² dogs, 999999999999999999999999 cats")
@example("9" * 5000 + " cats")
@example("ŉ İ ß's-'s")
def test_any_text_is_read(text):
    parts = read(text)
    assert len(parts.things) <= len(text)
    for thing in parts.things:
        assert isinstance(thing, Thing)
        assert thing.name
        assert thing.name == thing.name.strip()
        assert thing.count is None or thing.count >= 0
        assert not set(thing.colours) - set(prompt_parts.COLOURS)
    for place in parts.places:
        assert place.first < place.second < len(parts.things)
    assert isinstance(str(parts), str)


@given(
    st.sampled_from(["a", "two", "seven"]),
    st.sampled_from(["", "red", "white"]),
    st.sampled_from(["fox", "traffic light", "wine glass", "person"]),
)
def test_what_is_written_is_read(number, colour, name):
    plural = {"fox": "foxes", "wine glass": "wine glasses", "person": "people"}.get(name, f"{name}s")
    prompt = f"a photo of {number} {colour} {name if number == 'a' else plural} above a bed"
    parts = read(" ".join(prompt.split()))
    assert parts.things[0].name == name
    assert parts.things[0].count == prompt_parts.NUMBERS[number]
    assert parts.things[0].colours == ((colour,) if colour else ())
    assert parts.places == (Place(0, "above", 1),)
    assert parts.rest == ()
