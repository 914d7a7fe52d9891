from collections import Counter

import pytest

from milr.benchmarks.scenes_2 import CATEGORIES, FILE, tasks
from milr.lab.curriculum import is_test_prompt, training_items, unseen_items
from milr.lab.language import parse
from milr.lab.report_set import LOOKED_AT, TUNED_ON, Met, everything_met, key_of, make_set, words_of
from milr.lab.world import Group, Meaning, Relation


def test_the_set_is_even_distinct_and_of_the_test_side():
    found = tasks()
    assert len(found) == len({task.id for task in found}) == len({words_of(task.prompt) for task in found}) == 600
    assert set(Counter(task.category for task in found).values()) == {120}
    assert {task.category for task in found} == set(CATEGORIES)
    assert all(is_test_prompt(task.prompt) and parse(task.prompt).meaning is not None for task in found)


def test_its_wordings_are_none_of_the_lists_that_were_used():
    """Without the training, which takes two minutes to list (see the slow test)."""
    met = Met()
    for seed, count, categories in (*TUNED_ON, *LOOKED_AT[:3], *LOOKED_AT[-3:]):
        for item in unseen_items(min(count, 120), seed, categories):
            met.add("", item)
    assert not {words_of(task.prompt) for task in tasks()} & met.words
    plain = {key_of(meaning, ((),) * len(meaning.groups)) for task in tasks() if task.category != "riddle"
             for meaning in [parse(task.prompt).meaning]}  # fmt: skip
    assert len(plain) == 480
    assert not plain & met.meanings


@pytest.mark.slow
def test_the_set_is_what_its_command_makes():
    import json

    lines = [json.loads(line) for line in FILE.read_text(encoding="utf-8").split("\n") if line]
    assert lines == list(make_set(everything_met()))


FOX, CAR = Group("fox", "red", 2), Group("car", "blue")


def test_what_means_the_same_is_the_same():
    above = Meaning((FOX, CAR), (Relation(0, "above", 1),))
    below = Meaning((CAR, FOX), (Relation(0, "below", 1),))
    assert key_of(above, [(), ()]) == key_of(below, [(), ()])
    assert key_of(above, [(), ()]) != key_of(Meaning((FOX, CAR), (Relation(0, "below", 1),)), [(), ()])
    assert key_of(Meaning((FOX, CAR)), [(), ()]) == key_of(Meaning((CAR, FOX)), [(), ()])
    assert key_of(Meaning((FOX,)), [("a", "b")]) == key_of(Meaning((FOX,)), [("b", "a")])
    assert key_of(Meaning((FOX,)), [("a",)]) != key_of(Meaning((FOX,)), [()])
    assert key_of(Meaning((FOX,), frame="red"), [()]) != key_of(Meaning((FOX,)), [()])


def test_a_met_prompt_is_found_by_words_by_meaning_and_by_first_clue():
    item, *others = training_items(40, 3, ("riddle",))
    met = Met()
    met.add("", item, with_clues=True)
    assert met.holds(item)
    clue = (item.meaning.groups[0].noun, item.lore[0][0])
    same = [other for other in others if (other.meaning.groups[0].noun, other.lore[0][0]) == clue]
    assert all(met.holds(other) for other in same)
    assert not all(met.holds(other) for other in others)
