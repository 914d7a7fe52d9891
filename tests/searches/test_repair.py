"""Repair: which choice is changed, and what is kept. The latents of these drafts are the logits themselves."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import old_repair
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from toy import CountingCritic, Toy, match, noise, tasks

from milr.backbones.policies import ImageTokens, TextTokens, Tokens
from milr.drafts import Ask, Check, Cost, Draft, Drawn, Forced, Greedy, Latents, Sample, Score, Task
from milr.searches.base import Problem
from milr.searches.driver import drive
from milr.searches.repair import Candidates, Repair, repair, wrong_places

END, GRID, SIZE = 0, 4, 64  # patches of 16 pixels
SURE = {}  # no alternative worth naming
SETTINGS = Repair(text_ratio=1.0, reach=0.25)


def problem(**changes) -> Problem:
    return replace(
        Problem(
            task=Task("a prompt"),
            text=TextTokens(lambda latents: latents, END),
            image=lambda guidance: ImageTokens(lambda latents: latents[:, 0]),
            rng=np.random.default_rng(0),
            budget=20,
            threshold=1.0,
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
    (ask,) = search.send(first)
    return ask


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
    left = [one for (one,) in iter(candidates.take, []) if one.kind == of and one.belief > 0.01]
    return [(one.position, one.token) for one in left]


def test_no_change_is_made_twice_and_what_was_drawn_is_no_change():
    candidates = Candidates(problem(), replace(SETTINGS, again=0))
    candidates.add(draft(0, text_doubts={1: {5: 0.3, 6: 0.2}}))
    candidates.add(draft(1, text=(3, 5), text_doubts={1: {4: 0.6, 6: 0.2}}))  # what the first could have said
    assert changes(candidates, "text") == [(1, 6)]


def weights(candidates: Candidates) -> dict[int | str, float]:
    """By new token; `again` for each plan by its words."""
    named = {
        group.candidate(place).token: weight
        for group in candidates.groups
        for place, weight in enumerate(candidates.weights(group))
        if group.others.beliefs[place] > 0.01 and group.key(place) not in candidates.tried
    }
    return named | {f"again {plan.words}": candidates.weigh(plan) for plan in candidates.plans.values()}


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
    (image,) = candidates.take()
    assert (image.kind, image.position) == ("image", 7)
    candidates.add(draft(1, reward=0.0, picture=(*(1,) * 7, 2, *(1,) * 8)), image)
    assert weights(candidates) == pytest.approx({5: 0.03, "again (3,)": 0.2 * math.exp(-2.5)}, rel=1e-3)
    (text,) = candidates.take()
    assert (text.kind, text.words) == ("text", (5,))
    candidates.add(draft(2, text=(5, 4), reward=0.5, text_doubts={0: {6: 0.5}}), text)
    # The changed plan is believed as far as the change was; what it could have said instead is one change further.
    assert weights(candidates)["again (5,)"] == pytest.approx(0.03 * 0.2 * math.exp(-1), rel=1e-3)
    assert weights(candidates)[6] == pytest.approx(0.03 * 0.5, rel=1e-3)


def test_a_place_wears_out_whatever_was_drawn_before_it():
    candidates = Candidates(problem(), replace(SETTINGS, decay=0.5, doubt=0.0))
    candidates.add(draft(0, image_doubts={7: {2: 0.6}}))
    (change,) = candidates.take()
    assert change.position == 7
    candidates.add(draft(1, picture=(*(1,) * 7, 2, *(1,) * 8), image_doubts={7: {3: 0.4}}), change)
    assert weights(candidates)[3] == pytest.approx(0.4 * 0.5, rel=1e-3)


def test_an_unlikely_plan_that_is_liked_a_little_better_is_not_returned():
    sure = replace(SETTINGS, again=0.0)
    for settings, returned in ((sure, 0), (replace(sure, caution=0.0, shrink=0.0), 1)):
        candidates = Candidates(problem(), settings)
        candidates.add(draft(0, reward=0.6, text_doubts={0: {5: 0.05}}))
        candidates.add(draft(1, text=(5, 4), reward=0.7), *candidates.take())
        assert candidates.most_credible() == returned
    candidates.add(draft(2, text=(5, 4), reward=1.0), *candidates.take())
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


# --- As it was, but quick -------------------------------------------------------------------------------------


class Wide(Toy):
    """A toy with more words than a choice has alternatives (32: torch rounds rows of other lengths in two ways), and
    never so sure that two beliefs are 1: of these the old one takes any first."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, sharpness=0.5)
        toys = [Toy(seed + 1000 * number, sharpness=0.5) for number in range(4)]
        self.heads = torch.cat([toy.heads * (1 - number / 10) for number, toy in enumerate(toys)], dim=1)
        self.embed = torch.cat([toy.embed for toy in toys], dim=1)


def coarse(tokens, task):
    """Few different rewards: many candidates of equal weight."""
    return round(4 * noise(tokens, task)) / 5


some_settings = st.fixed_dictionaries(
    {},
    optional={
        "text_ratio": st.sampled_from([0.0, 0.3, 1.0]),
        "image_ratio": st.sampled_from([0.0, 0.5]),
        "doubt": st.sampled_from([0.0, 20.0, 1000.0]),
        "again": st.sampled_from([0.0, 5.0]),
        "kappa": st.sampled_from([0.0, 300.0]),
        "decay": st.sampled_from([0.0, 1.0]),
        "rank": st.just("random"),
        "remember": st.just(False),
    },
)


@hypothesis_settings(deadline=None, max_examples=12)
@given(
    seed=st.integers(0, 2**31),
    judge=st.sampled_from([match, coarse, noise]),
    changes=some_settings,
)
def test_it_chooses_what_it_chose_before_its_candidates_were_arrays(seed, judge, changes):
    """Draft for draft, whatever the settings: the same asks, notes and end."""
    found = [
        drive(Wide(seed % 97), CountingCritic(judge), tasks(), search, Repair(**changes), seed=seed, budget=20)
        for search in (old_repair.repair, repair)
    ]
    for old, new in zip(*found, strict=True):
        assert [(one.ask, one.ask.note) for one in new.drafts] == [(one.ask, one.ask.note) for one in old.drafts]
        assert (new.best, new.stopped) == (old.best, old.stopped)


class OneByOne(old_repair.Candidates):
    """What a round is to be: one candidate after the other, all weighed each time, as if those before had come out no
    better than what they change."""

    def take(self, count):
        found, lacked = [], {words: plan.lacked for words, plan in self.plans.items()}
        for _ in range(count):
            every, self.open = self.open, [one for one in self.open if one.key not in {each.key for each in found}]
            best = super().take()
            if self.settings.remember is False:
                self.open = every
            if best is None:
                break
            found.append(best)
            best.plan.lacked += 0 if best.kind == "text" else 1 - best.draft.reward
        for words, plan in self.plans.items():
            plan.lacked = lacked[words]
        return found


@hypothesis_settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 2**31),
    judge=st.sampled_from([match, coarse, noise]),
    changes=some_settings,
    width=st.integers(2, 8),
)
def test_a_round_is_chosen_one_by_one(seed, judge, changes, width):
    settings = Repair(**changes, width=width)
    found = []
    for candidates in (OneByOne, Candidates):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("milr.searches.repair.Candidates", candidates)
            (one,) = drive(
                Wide(seed % 97), CountingCritic(judge), tasks(), repair, settings, seed=seed, budget=25, threshold=9
            )
            found.append([(draft.ask, draft.ask.note) for draft in one.drafts])
    assert found[0] == found[1]


def test_a_believed_plan_may_be_drawn_twice_in_a_round_but_not_for_ever():
    """By hand: drawing the plan again weighs .2 exp(-1), and exp(-1) as much for each time it is pending."""
    candidates = Candidates(problem(), replace(SETTINGS, text_ratio=0.5, doubt=2.0, again=0.2, kappa=0.0))
    candidates.add(draft(0, reward=0.5, text_doubts={0: {5: 0.02}}))
    # again: .2 e^-1 = .074, then .027, .010; the other word .02
    assert [one.kind for one in candidates.take(4)] == ["again", "again", "text", "again"]
    assert candidates.plans[(3,)].pending == 0
    assert [one.kind for one in candidates.take(1)] == ["again"]  # what was pending is forgotten until it is known


@hypothesis_settings(deadline=None, max_examples=60)
@given(rows=st.integers(0, 20), words=st.integers(1, 12), seed=st.integers(0, 2**31))
def test_alternatives_are_those_of_all_beliefs_compared(rows, words, seed):
    """Reference: every belief worked out, then the highest (what the search did before)."""
    generator = torch.Generator().manual_seed(seed)
    words *= 64  # torch rounds rows of other lengths in two ways
    logits = 4 * torch.randn(rows, words, generator=generator)
    chosen = logits.softmax(1).multinomial(1, generator=generator)[:, 0].tolist() if rows else []
    found = Tokens(lambda latents: latents).likeliest(logits, [*chosen, 3])
    expected = list(old_repair._alternatives(logits, [*chosen, 3]))
    assert list(zip(found.positions, found.tokens, found.beliefs, strict=True)) == expected
