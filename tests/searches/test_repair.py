"""Repair: which choice is changed, and what is kept. The latents of these drafts are the logits themselves."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from toy import CountingCritic, Toy, match, tasks

from milr.drafts import Ask, Check, Cost, Draft, Drawn, Forced, Greedy, Latents, Sample, Score, Task
from milr.searches.base import Problem
from milr.searches.driver import drive
from milr.searches.repair import Candidate, Candidates, Repair, repair, wrong_places

END, GRID, SIZE = 0, 4, 64  # patches of 16 pixels
SURE = {}  # no alternative worth naming
SETTINGS = Repair(text_ratio=1.0, reach=0.25)


def problem(**changes) -> Problem:
    return replace(
        Problem(
            task=Task("a prompt"),
            text_logits=lambda latents: latents,
            image_logits=lambda latents, guidance: latents[:, 0],
            rng=np.random.default_rng(0),
            budget=20,
            threshold=1.0,
            text_end=END,
            grid=GRID,
        ),
        **changes,
    )


def chances(chosen, others):
    """One row of logits: `others` maps tokens to probabilities, the chosen token has the rest (almost)."""
    row = torch.full((10,), 1e-9)
    for token, chance in others.items():
        row[token] = chance
    row[chosen] = 1 - sum(others.values())
    return row.log()


def drawn(text=(3, 4), picture=(1,) * 16, text_doubts=SURE, image_doubts=SURE) -> Drawn:
    """A drawing of a model that is sure of all its tokens but those in doubt: {position: {token: probability}}."""
    image = torch.stack([chances(token, image_doubts.get(i, {})) for i, token in enumerate(picture)])
    return Drawn(
        reasoning="", text_tokens=text, text_ended=True, image_tokens=picture, image=Image.new("RGB", (SIZE, SIZE)),
        latents=Latents(
            text=torch.stack([chances(token, text_doubts.get(i, {})) for i, token in enumerate(text)]),
            image=image[:, None].expand(-1, 2, -1),
        ),
        guidance=1.0, cost=Cost(),
    )  # fmt: skip


def draft(number=0, reward=0.5, checks=(), **of) -> Draft:
    return Draft(number, Ask(), number, drawn(**of), Score(reward, checks))


def next_ask(first: Draft, settings: Repair = SETTINGS) -> Ask:
    search = repair(problem(), settings)
    assert next(search) == Ask(Greedy(), Sample(), text_ratio=settings.text_ratio, image_ratio=1.0)
    return search.send(first)


def test_a_misread_prompt_is_read_otherwise():
    """The obedient drawing of a wrong text has no likely alternative; the text has one."""
    ask = next_ask(draft(text_doubts={0: {5: 0.2}}, image_doubts={7: {2: 0.01}}))
    assert ask.text == Forced((5,), then=Sample())
    assert ask.image == Sample()
    assert ask.note["belief"] == pytest.approx(0.2 / (0.2 + 0.8))


def test_a_wrong_drawing_of_a_sure_text_is_redrawn_there():
    picture = tuple(range(1, 9)) * 2
    ask = next_ask(draft(picture=picture, text_doubts={0: {5: 0.05}}, image_doubts={6: {9: 0.4}}))
    assert ask.text == Forced((3, 4, END))
    assert ask.image.tokens == (*picture[:6], 9, *picture[7:])
    # Row 1, column 2 of 4: what follows within one token of it.
    assert ask.image.free == {7, 9, 10, 11}


def test_a_surprising_token_is_blamed_first():
    """The model would have preferred another token: a belief above one half."""
    ask = next_ask(draft(reward=0.8, text_doubts={0: {5: 0.45}}, image_doubts={2: {8: 0.9}}))
    assert (ask.note["move"], ask.note["position"]) == ("image", 2)
    assert ask.note["belief"] == pytest.approx(0.9)


def test_only_what_the_critic_calls_wrong_is_changed():
    box = (16.0, 32.0, 48.0, 63.0)  # columns 1 and 2 of rows 2 and 3
    wrong = Check("a red fox in colour", False, (box,))
    first = draft(checks=(Check("one fox", True), wrong), image_doubts={2: {8: 0.9}, 10: {7: 0.3}})
    assert wrong_places(first, GRID) == {9, 10, 13, 14}
    ask = next_ask(first)
    assert ask.image.tokens[10] == 7
    # Behind the changed token: the rest of the wrong place and what is near.
    assert ask.image.free == {11, 13, 14, 15}
    assert next_ask(first, replace(SETTINGS, use_places=False)).image.tokens[2] == 8


def test_a_failed_check_that_points_nowhere_leaves_the_whole_picture_open():
    missing = Check("two foxes (found 1)", False)
    pointing = Check("nothing else", False, ((0.0, 0.0, 16.0, 16.0),))
    assert wrong_places(draft(checks=(missing, pointing)), GRID) is None
    assert wrong_places(draft(checks=(replace(missing, passed=True), pointing)), GRID) == {0}


def test_without_a_likely_change_the_plan_is_drawn_once_more():
    ask = next_ask(draft(text=(3, 4, 5, 6), text_doubts={0: {5: 0.01}}), replace(SETTINGS, text_ratio=0.5))
    assert (ask.text, ask.image, ask.note["move"]) == (Forced((3, 4), then=Sample()), Sample(), "again")


def test_an_unjudged_draft_says_nothing_of_its_choices():
    ask = next_ask(draft(reward=None, text_doubts={0: {5: 0.4}}))
    assert (ask.text, ask.image, ask.note["move"]) == (Sample(), Sample(), "fresh")


def changes(candidates: Candidates, of: str) -> list[tuple[int, int]]:
    """What is left to change, likeliest first."""
    left = [one for one in iter(candidates.take, None) if one.kind == of and one.belief > 0.01]
    return [(one.position, one.token) for one in left]


def test_no_change_is_made_twice_and_what_was_drawn_is_no_change():
    candidates = Candidates(problem(), replace(SETTINGS, again=0))
    candidates.add(draft(0, text_doubts={1: {5: 0.3, 6: 0.2}}))
    candidates.add(draft(1, text=(3, 5), text_doubts={1: {4: 0.6, 6: 0.2}}))  # what the first could have said
    assert changes(candidates, "text") == [(1, 6)]


def weights(candidates: Candidates) -> dict[int | str, float]:
    """By new token; `again` for each plan by its words."""
    left = [one for one in candidates.open if one.belief > 0.01 and one.key not in candidates.tried]
    named = {one.token: candidates.weight(one) for one in left}
    plans = {
        f"again {plan.words}": Candidate(plan.best, plan, "again", plan.prior) for plan in candidates.plans.values()
    }
    return named | {words: candidates.weight(one) for words, one in plans.items()}


def test_drafts_far_below_the_best_weigh_less():
    candidates = Candidates(problem(), replace(SETTINGS, kappa=8.0))
    candidates.add(draft(0, reward=0.9, text_doubts={0: {5: 0.2}}))
    candidates.add(draft(1, text=(7, 7), reward=0.4, text_doubts={0: {8: 0.3}}))
    assert weights(candidates)[5] == pytest.approx(0.2, rel=1e-3)
    assert weights(candidates)[8] == pytest.approx(0.3 / (0.3 + 0.7) * math.exp(-4), rel=1e-3)


def test_a_plan_loses_belief_with_what_its_drafts_lack_and_its_alternatives_do_not():
    settings = replace(SETTINGS, text_ratio=0.5, doubt=2.0, again=0.2, kappa=0.0)
    candidates = Candidates(problem(), settings)
    first = draft(0, reward=0.75, text_doubts={0: {5: 0.03}}, image_doubts={7: {2: 0.2}})
    candidates.add(first)
    assert weights(candidates) == pytest.approx(
        {5: 0.03, 2: 0.2 * math.exp(-0.5), "again (3,)": 0.2 * math.exp(-0.5)}, rel=1e-3
    )
    image = candidates.take()
    assert (image.kind, image.position) == ("image", 7)
    candidates.add(draft(1, reward=0.0, picture=(*(1,) * 7, 2, *(1,) * 8)), image)
    assert weights(candidates) == pytest.approx({5: 0.03, "again (3,)": 0.2 * math.exp(-2.5)}, rel=1e-3)
    text = candidates.take()
    assert (text.kind, text.words) == ("text", (5,))
    candidates.add(draft(2, text=(5, 4), reward=0.5, text_doubts={0: {6: 0.5}}), text)
    # The changed plan is believed as far as the change was; what it could have said instead is one change further.
    assert weights(candidates)["again (5,)"] == pytest.approx(0.03 * 0.2 * math.exp(-1), rel=1e-3)
    assert weights(candidates)[6] == pytest.approx(0.03 * 0.5, rel=1e-3)


def test_a_place_wears_out_whatever_was_drawn_before_it():
    candidates = Candidates(problem(), replace(SETTINGS, decay=0.5, doubt=0.0))
    candidates.add(draft(0, image_doubts={7: {2: 0.6}}))
    change = candidates.take()
    assert change.position == 7
    candidates.add(draft(1, picture=(*(1,) * 7, 2, *(1,) * 8), image_doubts={7: {3: 0.4}}), change)
    assert weights(candidates)[3] == pytest.approx(0.4 * 0.5, rel=1e-3)


def test_an_unlikely_plan_that_is_liked_a_little_better_is_not_returned():
    sure = replace(SETTINGS, again=0.0)
    for settings, returned in ((sure, 0), (replace(sure, caution=0.0, shrink=0.0), 1)):
        candidates = Candidates(problem(), settings)
        candidates.add(draft(0, reward=0.6, text_doubts={0: {5: 0.05}}))
        candidates.add(draft(1, text=(5, 4), reward=0.7), candidates.take())
        assert candidates.most_credible() == returned
    candidates.add(draft(2, text=(5, 4), reward=1.0), candidates.take())
    assert candidates.most_credible() is None  # solved: the driver's best


@hypothesis_settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**31), use_places=st.booleans())
def test_it_keeps_every_draft_it_changes_as_it_was(seed, use_places):
    """On a toy model: a text move keeps the words before, an image move the text and all but what it frees."""
    (found,) = drive(
        Toy(seed % 50), CountingCritic(match), tasks()[:1], repair, Repair(use_places=use_places, text_ratio=0.5),
        seed=seed, budget=12,
    )  # fmt: skip
    for one in found.drafts[1:]:
        note = one.ask.note
        if note["move"] == "fresh":
            continue
        of = found.drafts[note["of_draft"]].drawn
        if note["move"] == "again":
            kept = note["text_searched"]
            assert one.drawn.text_tokens[:kept] == of.text_tokens[:kept]
            continue
        position = note["position"]
        if note["move"] == "text":
            assert one.drawn.text_tokens[:position] == of.text_tokens[:position]
            assert (*one.drawn.text_tokens, 0)[position] != (*of.text_tokens, 0)[position]
        else:
            assert one.drawn.text_tokens == of.text_tokens
            assert one.drawn.image_tokens[position] != of.image_tokens[position]
            kept = set(range(9)) - one.ask.image.free - {position}
            assert all(one.drawn.image_tokens[i] == of.image_tokens[i] for i in kept)
