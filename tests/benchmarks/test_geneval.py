import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milr.benchmarks import geneval
from milr.critics.rules.geneval import directions

CASE_FILE = Path(__file__).parents[1] / "golden" / "geneval_rule_cases.jsonl"
CASES = [json.loads(line) for line in CASE_FILE.read_text().splitlines()]


def test_every_verdict_of_the_authors_own_code():  # 1,200 cases: metadata, detections, the verdict of GenEval's rules
    verdicts = [geneval.check(case["metadata"], case["detections"]) for case in CASES]
    assert [verdict.correct for verdict in verdicts] == [case["correct"] for case in CASES]
    assert 0 < sum(verdict.correct for verdict in verdicts) < len(CASES) == 1200


@given(st.sampled_from(CASES), st.randoms(use_true_random=False))
def test_the_order_of_detections_does_not_matter(case, random):
    shuffled = list(case["detections"])
    random.shuffle(shuffled)
    assert geneval.check(case["metadata"], shuffled) == geneval.check(case["metadata"], case["detections"])


def test_reasons_and_share_agree_with_the_verdict():
    for case in CASES:
        verdict = geneval.check(case["metadata"], case["detections"])
        assert verdict.correct == (not verdict.reasons) == (verdict.share == 1)


def found(label, box, score=0.95, color=None):
    return {"label": label, "score": score, "box": box, "color": color}


def asked(tag="position", **clause):
    return {"tag": tag, "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, **clause}]}


def test_reasons_are_words_and_boxes_show_what_is_wrong():
    verdict = geneval.check(
        asked(position=["left of", 0], color="black"),
        [found("dog", [0, 0, 10, 10]), found("cat", [100, 0, 110, 10], color="white")],
    )
    assert not verdict.correct
    assert verdict.reasons[0] == "1 black cat (found white)"
    assert verdict.checks[2].boxes == ((100.0, 0.0, 110.0, 10.0),)
    assert "no such cat" in verdict.reasons[1]  # a place is only compared where the rest matches
    assert verdict.share == pytest.approx(2 / 4)


def test_counting_needs_a_surer_detector():
    line = {"tag": "counting", "include": [{"class": "dog", "count": 1}], "exclude": [{"class": "dog", "count": 2}]}
    pair = [found("dog", [0, 0, 9, 9]), found("dog", [20, 0, 29, 9], score=0.9)]  # 0.9 is not above 0.9
    assert geneval.check(line, pair).correct
    assert not geneval.check({**line, "tag": "single_object"}, pair).correct
    surplus = geneval.check({**line, "tag": "single_object"}, pair).checks[-1]
    assert surplus.boxes == ((20.0, 0.0, 29.0, 9.0),)


def test_nothing_found_is_a_verdict_too():
    assert geneval.check(asked(), []).reasons == ("1 dog (found 0)", "1 cat (found 0)")


@pytest.mark.parametrize(
    ("box", "held"),
    [
        ([100, 0, 110, 10], {"right of"}),  # offset (100, 0), less 0.1 x 20 of sizes: (98, 0) / 100
        ([100, 100, 110, 110], {"right of", "below"}),  # (98, 98) / 141.4: .69 each
        ([1, 0, 11, 10], set()),  # 1 pixel is less than the margin of 2
        ([-40, 20, -30, 30], {"left of"}),  # (-38, 18) / 44.7 = (-.85, .40)
    ],
)
def test_directions_worked_by_hand(box, held):
    assert directions(tuple(box), (0, 0, 10, 10)) == held


def test_prompts():
    every = geneval.tasks()
    counts = Counter(task.category for task in every)
    assert [counts[name] for name in geneval.CATEGORIES] == [80, 99, 80, 94, 100, 100]
    assert every[0].prompt == "a photo of a bench"
    assert every[0].metadata["tag"] == "single_object"
    some = geneval.tasks(12)
    assert Counter(task.category for task in some) == dict.fromkeys(geneval.CATEGORIES, 2)
    assert {task.id for task in some} <= {task.id for task in geneval.tasks(60)}
    assert len(geneval.tasks(None, 0, ("counting",))) == 80


def test_the_score_is_the_mean_of_tasks():
    assert geneval.overall({"single_object": 1.0, "counting": 0.5}) == 0.75
