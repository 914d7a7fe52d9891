"""Which draft is returned: worked by hand."""

from __future__ import annotations

from PIL import Image

from milr.drafts import Ask, Check, Cost, Draft, Drawn, Score
from milr.searches.choice import most_credible

IMAGE = Image.new("RGB", (3, 3))


def drafts(*rewards_and_texts, checks=()):
    return [
        Draft(
            number, Ask(), number, Drawn("", text, True, (), IMAGE, None, 1.0, Cost()),
            Score(reward, checks, "" if reward is not None else "no idea"),
        )
        for number, (reward, text) in enumerate(rewards_and_texts)
    ]  # fmt: skip


A, B, C = (1,), (2,), (3,)


def choose(found, **options):
    return most_credible(found, threshold=options.pop("threshold", 1.0), **{"shrink": 0.0, **options})


def test_without_caution_and_shrinking_the_best_is_returned_and_the_earliest_of_equals():
    assert choose(drafts((0.3, A), (0.8, B), (0.8, C))) == 1


def test_caution_weighs_the_prior_against_the_odds():
    found = drafts((0.6, A), (0.8, B))  # odds 1.5 and 4
    assert choose(found, caution=1.0, priors=[1.0, 0.4]) == 1  # 4 x .4 = 1.6
    assert choose(found, caution=1.0, priors=[1.0, 0.3]) == 0  # 4 x .3 = 1.2
    assert choose(found, caution=0.5, priors=[1.0, 0.16]) == 1  # 4 x .4
    assert choose(found, caution=0.0, priors=[1.0, 1e-9]) == 1


def test_shrinking_asks_what_other_pictures_of_the_text_got():
    found = drafts((0.7, A), (0.8, B), (0.2, B), (0.6, A))  # means .65 and .5
    assert choose(found) == 1
    assert choose(found, shrink=0.5) == 0  # .675 against .65
    assert choose(found, shrink=0.2) == 1  # .69 against .74
    assert choose(found, shrink=1.0) == 0  # of the text A the better picture


def test_when_there_is_nothing_to_choose():
    assert choose(drafts((None, A), (None, B))) is None
    assert choose(drafts((0.9, A), (1.0, B), (0.95, A)), shrink=1.0) is None  # solved
    assert choose(drafts((0.9, A), (0.8, B)), threshold=0.9, shrink=1.0) is None
    assert choose(drafts((0.5, A), (0.9, B), checks=(Check("a fox", False),)), shrink=1.0) is None


def test_drafts_without_a_score_are_left_out():
    assert choose(drafts((None, A), (0.0, A), (0.1, A)), shrink=0.5) == 2
