"""The formulas on cases worked by hand. Pictures of 480 x 480 pixels: one pixel is 479 / 480 of the detector's."""

from collections import Counter

import pytest

from milr.benchmarks import t2i_compbench
from milr.critics.rules.t2i_compbench import (
    Relation,
    asked_counts,
    asked_relation,
    attribute_binding,
    boxes_3d,
    detector_scale,
    numeracy,
    place_2d,
    spatial,
    spatial_3d,
    three_in_one,
)

SIZE = (480, 480)


def found(label, box, score=0.8):
    return {"label": label, "score": score, "box": box}


def test_prompts():
    every = t2i_compbench.tasks()
    assert Counter(task.category for task in every) == dict.fromkeys(t2i_compbench.CATEGORIES, 300)
    assert len({task.id for task in every}) == 2400
    kinds = Counter(task.metadata["kind"] for task in every if task.category == "complex")
    assert kinds == {"spatial": 58, "action": 212, "spatial and action": 30}  # the sizes of the authors' lists
    assert all(task.metadata["counts"] for task in every if task.category == "numeracy")
    assert all("\r" not in task.prompt for task in every)


@pytest.mark.parametrize(
    ("prompt", "relation"),
    [
        ("a girl on the top of a frog", Relation("girl", "on the top of", "frog")),
        ("a suitcase hidden by a lamp", Relation("suitcase", "hidden by", "lamp")),
        ("A mouse on side of a key", Relation("mouse", "on side of", "key")),
        ("a green bench and a blue bowl", None),
    ],
)
def test_relations_are_read(prompt, relation):
    assert asked_relation(prompt) == relation


def test_counts_are_read():
    plurals = {"deer": "deer", "men": "man", "cups": "cup", "alarm clocks": "alarm clock"}
    assert asked_counts("two deer and four men", plurals) == [("deer", 2), ("man", 4)]
    assert asked_counts("a cup, three alarm clocks on two sofas", plurals) == [("cup", 1), ("alarm clock", 3)]
    assert asked_counts("a cups", plurals) == [("cup", 1)]


def test_attributes_are_a_product_of_eight_at_most():
    assert attribute_binding([0.9, 0.5]) == pytest.approx(0.45)
    assert attribute_binding([]) == 1  # no noun phrase, nothing to miss
    assert attribute_binding([1.0] * 8 + [0.0]) == 1


LEFT, RIGHT = [0, 200, 40, 240], [400, 200, 440, 240]


def test_both_objects_and_the_relation():  # .25 x .8 + .25 x .6 + .5 x 1
    asked = Relation("dog", "on the left of", "cat")
    assert spatial(asked, [found("dog", LEFT), found("cat", RIGHT, 0.6)], SIZE) == pytest.approx(0.85)
    other = Relation("dog", "on the right of", "cat")  # .25 x .8 + .25 x .6 = .35 is cut to 0
    assert spatial(other, [found("dog", LEFT), found("cat", RIGHT, 0.6)], SIZE) == 0
    assert spatial(asked, [found("dog", LEFT)], SIZE) == 0
    assert spatial(asked, [found("dog", LEFT), found("cat", RIGHT, 0.5)], SIZE) == 0  # not above the confidence


def test_people_are_persons_and_the_first_box_counts():
    asked = Relation("girl", "on the left of", "frog")
    boxes = [found("person", RIGHT), found("person", LEFT), found("frog", [200, 200, 240, 240])]
    assert spatial(asked, boxes, SIZE) == 0  # the surer person is on the right: .4 is cut
    assert spatial(asked, boxes[1:], SIZE) == pytest.approx(0.25 * 0.8 * 2 + 0.5)


def test_near_is_150_pixels_along_one_axis():
    here = (0.0, 0.0, 10.0, 10.0)
    assert place_2d("next to", here, (140.0, 300.0, 150.0, 310.0)) == 1  # 140 across is near enough
    assert place_2d("near", here, (200.0, 300.0, 210.0, 310.0)) == pytest.approx(150 / 300)


def test_beside_something_less_where_boxes_overlap():
    # 100 x 100 boxes, 60 apart: common 40 x 100 = 4,000 of 16,000: .25, so .1 / .25
    assert place_2d("on the left of", (0, 0, 100, 100), (60, 0, 160, 100)) == pytest.approx(0.4)
    assert place_2d("on the bottom of", (0, 200, 10, 210), (50, 0, 60, 10)) == 1
    assert place_2d("on the top of", (0, 200, 10, 210), (50, 0, 60, 10)) == 0
    assert place_2d("on the left of", (0, 0, 10, 10), (50, 60, 60, 70)) == 0  # more below than left
    assert place_2d("on top of", (0, 0, 10, 10), (0, 200, 10, 210)) == 0  # the authors' list has no rule for it


def test_small_pictures_are_scaled_to_the_detector():
    assert detector_scale((384, 384)) == pytest.approx(479 / 384)
    assert detector_scale((300, 600)) == pytest.approx(480 / 600)
    asked = Relation("dog", "near", "cat")
    boxes = [found("dog", [0, 0, 10, 10]), found("cat", [140, 140, 150, 150])]
    # 140 pixels of 384 are 174.6 of the detector's
    assert spatial(asked, boxes, (384, 384)) == pytest.approx(0.4 + 0.5 * 150 / (140 * 479 / 384))


def test_in_front_needs_an_overlap_and_the_nearer_depth():
    front = Relation("dog", "in front of", "car")
    boxes = [found("dog", [0, 0, 100, 100]), found("sports car", [0, 0, 100, 80], 0.6)]  # overlap .8
    assert spatial_3d(front, boxes, (9.0, 4.0)) == pytest.approx(0.2 + 0.15 + 0.5)
    assert spatial_3d(front, boxes, (4.0, 9.0)) == pytest.approx(0.35)
    assert spatial_3d(Relation("dog", "behind", "car"), boxes, (4.0, 9.0)) == pytest.approx(0.85)
    assert spatial_3d(Relation("dog", "hidden by", "car"), boxes, (4.0, 9.0)) == pytest.approx(0.85)
    part = [found("dog", [0, 0, 100, 100]), found("car", [0, 75, 100, 100])]  # overlap .25, so .25 / .5
    assert spatial_3d(front, part, (9.0, 4.0)) == pytest.approx(0.4 + 0.25)
    aside = [found("dog", [0, 0, 100, 100]), found("car", [200, 0, 300, 100])]
    assert spatial_3d(front, aside, (9.0, 4.0)) == pytest.approx(0.4)
    assert spatial_3d(front, boxes[:1]) == pytest.approx(0.2)  # one object alone is not cut off here


def test_of_the_object_that_comes_first_the_last_box_before_the_other():
    boxes = [found("dog", LEFT), found("dog", RIGHT), found("car", LEFT), found("car", RIGHT)]
    first, second = boxes_3d(Relation("dog", "behind", "car"), boxes)
    assert (first, second) == (boxes[1], boxes[2])


def test_numbers():
    two_dogs = [found("dog", LEFT), found("dog", RIGHT)]
    assert numeracy([("dog", 2)], two_dogs) == 1
    assert numeracy([("dog", 3)], two_dogs) == 0.5
    assert numeracy([("dog", 2), ("cat", 1)], two_dogs) == 0.5
    assert numeracy([("dog", 1), ("cat", 1)], [*two_dogs, found("cat", LEFT)]) == 0.75
    assert numeracy([], two_dogs) == 0
    assert numeracy([("ship", 1)], [found("boat", LEFT)]) == 1


def test_boxes_that_cover_each_other_are_one_thing():
    inner = [2, 202, 38, 238]  # within LEFT
    assert numeracy([("dog", 1)], [found("dog", LEFT), found("dog", inner)]) == 1
    assert numeracy([("dog", 1)], [found("dog", LEFT), found("cat", LEFT)]) == 1  # other names may share a place


def test_a_name_that_is_no_label_takes_labels_that_hold_it():
    fruit = [found("pineapple", LEFT), found("pineapple", RIGHT)]
    assert numeracy([("apple", 2)], fruit) == 1
    assert numeracy([("apple", 2), ("pineapple", 2)], fruit) == 0.5  # renamed for what follows, as the authors' code


def test_three_in_one():
    assert three_in_one("spatial", 0.8, 0.4, 0.1) == pytest.approx(0.6)
    assert three_in_one("action", 0.8, 0.4, 0.1) == pytest.approx(0.45)
    assert three_in_one("spatial and action", 0.9, 0.6, 0.3) == pytest.approx(0.6)
