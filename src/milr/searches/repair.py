"""Repair: change the one choice that best explains the failure, in the reasoning or in the picture.

    A draft is a chain of choices x_1 ... x_n, text tokens first, then image tokens; behind each stands a latent z_i,
    and p_i = softmax(head(z_i)) says what the model would rather have chosen, or nearly chose. If the draft fails and
    choice i is to blame, the model's own belief that it should have been a is

        q(i, a) = p_i(a) / (p_i(a) + p_i(x_i))            one space for text and image, as in MILR

    The first lambda_t of a reasoning is its plan. The first plan is believed with 1, a changed one with q times its
    parent's belief, and every draft of a plan costs it belief by what the reward lacks (a Gibbs posterior):

        prior(plan') = prior(plan) q(i, a)        posterior(plan) = prior(plan) exp(-doubt * sum of (1 - R))

    Every draft adds candidates; the one of the highest weight is drawn next (with `width` so many, see below), and no
change twice:

        another word:   prior(plan) q(i, a)              keep the words before i of the plan, the model writes on
        another token:  posterior(plan) q(i, a) decay^n  keep the text and the picture, but what is near i or wrong
        the plan again: posterior(plan) again            keep the plan, the model writes on

        all times exp(-kappa (R_best - R)); R: the reward of the draft that is changed; n: how often this place was
        changed already. Image tokens outside what the critic calls wrong, where it says so, are no candidates.

Of a round of several drafts each is chosen as if those chosen before it had come out no better than the drafts that
they change: their plans are believed less, and their places count as changed. So the likeliest repair of a picture, the
plan once more and another reading stand side by side, as they would stand one after the other, and a believed plan may
be drawn again twice. What is chosen does not depend on how many follow: the first k of a round are a round of k.

When the budget is spent and nothing solved, and the critic is one number without checks, the most credible draft is
returned, not the one that the critic likes best (choice.py).

A misread prompt and a wrong drawing need no telling apart beforehand: an obedient drawing of a wrong text leaves no
likely alternative in the picture, and a wrong drawing of a sure text leaves none in the text. See docs/method.md.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

import numpy as np

from milr.backbones.policies import Others
from milr.drafts import Ask, Draft, Forced, Greedy, Sample
from milr.searches.base import WIDEST, LooksAtBudget, Problem, Search
from milr.searches.choice import most_credible
from milr.settings import check, setting

NAME = "repair"
SUMMARY = "Change the choice that best explains the failure: another word of the reasoning, or a wrong place redrawn"


@dataclass(frozen=True)
class Repair:
    """Settings of `repair`."""

    text_ratio: float = setting(0.2, "first share of the text that is searched, lambda_t: the plan", low=0, high=1)
    image_ratio: float = setting(1.0, "share of image tokens that may be changed, lambda_v", low=0, high=1)
    text_temperature: float = setting(1.0, "softmax temperature of sampled text", low=0.01, high=10)
    image_temperature: float = setting(1.0, "softmax temperature of the image tokens (paper: 1)", low=0.01, high=10)
    guidance: float | None = setting(None, "classifier-free guidance scale; none is the model's own", low=0, high=100)
    doubt: float = setting(2.0, "belief in a plan falls by exp(-doubt (1 - R)) a draft of it", low=0, high=1e3)
    again: float = setting(0.2, "weight of a believed plan drawn once more, against a believed change", low=0, high=1e3)
    kappa: float = setting(8.0, "how much less the choices of a draft with a lower reward weigh", low=0, high=1e3)
    decay: float = setting(0.5, "factor on changes at one place of the picture for each one tried", low=0, high=1)
    reach: float = setting(0.125, "how far around a changed token to redraw, in image sides", low=0, high=1)
    use_places: bool = setting(True, "change only what the critic calls wrong, where it says so")
    caution: float = setting(
        0.5, "how much the prior of its plan counts for a draft that is returned unsolved", low=0, high=100
    )
    shrink: float = setting(1.0, "how far its reward is drawn to the mean of its text's drafts then", low=0, high=1)
    rank: Literal["odds", "random"] = setting("odds", "which candidate first; random is there to be compared with")
    remember: bool = setting(True, "make no change twice; false is there to be compared with")
    width: int = setting(1, "changes drawn and judged together, after the first draft", low=1, high=WIDEST)

    def __post_init__(self) -> None:
        check(self)


def repair(problem: Problem, settings: Repair) -> Search:
    """Draw, list what else could have been chosen, change what best explains the failure, and so on."""
    image = Sample(settings.image_temperature)
    candidates = Candidates(problem, settings)
    note = _note("first", "The model's own draft.")
    first: Draft = yield Ask(
        Greedy(), image, settings.text_ratio, settings.image_ratio, guidance=settings.guidance, note=note
    )
    candidates.add(first)
    last = first
    while last.number + 1 < problem.budget:
        changes: list[Candidate | None] = [*candidates.take(settings.width)]
        changes += [None] * (settings.width - len(changes))
        drafts: list[Draft] = yield [_asked(change, problem, settings) for change in changes]
        for draft, change in zip(drafts, changes, strict=False):  # the last round may be cut
            candidates.add(draft, change)
        last = drafts[-1]
    return candidates.most_credible()


def _asked(change: Candidate | None, problem: Problem, settings: Repair) -> Ask:
    """The draft that makes this change, or a whole new one where nothing is left to change."""
    image, rest = Sample(settings.image_temperature), Sample(settings.text_temperature)
    if change is None:
        note = _note("fresh", "Nothing is left to change: a whole new draft.")
        ask = Ask(rest, image, settings.text_ratio, note=note)
    elif change.kind == "image":
        drawn, free = change.draft.drawn, _redrawn(change, problem, settings)
        redrawn = problem.image(drawn.guidance).change(change.draft, change.position, change.token, free, image)
        ask = Ask(problem.text.kept(change.draft), redrawn, note=_changed(change))
    else:
        ask = Ask(Forced(change.words, then=rest), image, settings.text_ratio, note=_changed(change))
    return replace(ask, image_ratio=settings.image_ratio, guidance=settings.guidance)


def _note(move: str, why: str) -> dict[str, object]:
    """For the record: the move, in words too, and how many first tokens the search chose."""
    return {"move": move, "why": why, "text_searched": 0, "image_searched": 0}


def _changed(to: Candidate) -> dict[str, object]:
    number, place = to.draft.number, to.position + 1
    if to.kind == "image":
        why = f"Another token {place} in the picture of draft {number} (belief {to.belief:.2g})."
        facts: dict[str, object] = {"position": to.position, "image_changed": [to.position]}
    elif to.kind == "text":
        why = f"Another word {place} in the reasoning of draft {number} (belief {to.belief:.2g})."
        facts = {"position": to.position, "text_searched": place}
    else:
        why = f"The plan of draft {number} once more."
        facts = {"text_searched": len(to.words)}
    return _note(to.kind, why) | {"of_draft": number, "belief": to.belief} | facts


@dataclass(frozen=True)
class Candidate:
    """Another token at one position of a draft, or its plan once more. `belief` is prior(plan) q."""

    draft: Draft
    plan: Plan
    kind: Literal["text", "image", "again"]
    belief: float
    position: int = 0
    token: int = 0

    @property
    def words(self) -> tuple[int, ...]:
        """The text tokens to keep, with the changed one."""
        if self.kind == "again":
            return self.plan.words
        return (*self.draft.drawn.text_tokens[: self.position], self.token)


@dataclass(eq=False)
class Plan:
    """The first lambda_t of a reasoning: how far it was believed beforehand, its best draft, and how much reward its
    drafts lacked in all. `pending` is what those of the round that is being chosen are taken to lack."""

    words: tuple[int, ...]
    prior: float
    best: Draft
    order: tuple[int, int]  # of equal weights the first in this order is taken
    lacked: float = 0.0
    pending: float = 0.0


@dataclass(eq=False)
class Group:
    """The other words of one draft, or its other image tokens. `keys` stands for the choice at each position (what was
    chosen before it), `worn` for how often each place of a picture of this text was changed (no matter for words)."""

    kind: Literal["text", "image"]
    draft: Draft
    plan: Plan
    others: Others  # whose beliefs are prior(plan) q, and 0 for a change that was made
    keys: Sequence[int]
    worn: np.ndarray
    order: tuple[int, int]

    def candidate(self, place: int) -> Candidate:
        belief, position, token = (column[place] for column in (self.others.beliefs, *self.others[:2]))
        return Candidate(self.draft, self.plan, self.kind, float(belief), int(position), int(token))

    def key(self, place: int) -> int:
        """Stands for the change: the choices before it and the new token."""
        return hash((self.keys[self.others.positions[place]], int(self.others.tokens[place])))


class Candidates:
    """What may be changed, over all drafts so far.

    Every group of candidates, and every plan for being drawn again, has in `heap` the weight that it had when it was
    last looked at. As a rule weights only fall (rewards rise, plans lose belief, places wear out), so what still weighs
    as much as the top of the heap is the heaviest of all, and few are looked at for each draft. What may have risen is
    put on the heap anew.
    """

    def __init__(self, problem: Problem, settings: Repair) -> None:
        self.problem, self.settings = problem, settings
        self.groups: list[Group] = []
        self.heap: list[tuple[float, tuple[int, int], Group | Plan]] = []
        self.tried: set[int] = set()
        self.taken: set[int] = set()  # in the round that is being chosen
        self.worn: dict[tuple[int, ...], np.ndarray] = {}  # by text
        self.plans: dict[tuple[int, ...], Plan] = {}
        self.texts: dict[tuple[int, ...], Others] = {}  # what each text could have said instead
        self.best_reward = 0.0
        self.scored: list[tuple[Draft, Plan]] = []

    def add(self, draft: Draft, change: Candidate | None = None) -> None:
        """List what else this draft, drawn by this change, could have chosen. A draft without a score says nothing
        about its choices."""
        drawn = draft.drawn
        text, picture = self.problem.text.drew(draft), drawn.image_tokens
        text_keys, image_keys = _keys(0, text), _keys(hash(drawn.text_tokens), picture)
        self.tried.update(
            hash(pair) for pair in (*zip(text_keys, text, strict=True), *zip(image_keys, picture, strict=True))
        )
        reward = draft.reward
        if reward is None or drawn.latents is None:
            return
        draft = draft.without_latents()
        self.best_reward = max(self.best_reward, reward)
        plan = self._plan(draft, reward, change)
        self.scored.append((draft, plan))
        if drawn.text_tokens not in self.texts:  # a repaired picture keeps its text, which was not run again
            self.texts[drawn.text_tokens] = self.problem.text.others(drawn)
        words = self.texts[drawn.text_tokens]
        places = wrong_places(draft, self.problem.grid) if self.settings.use_places else None
        image = self.problem.image(drawn.guidance).others(drawn, places)
        beliefs = [plan.prior * others.beliefs for others in (words, image)]
        if self.settings.rank == "random":
            luck = self.problem.rng.random(len(beliefs[0]) + len(beliefs[1]))
            beliefs = [luck[: len(beliefs[0])], luck[len(beliefs[0]) :]]
        worn = self.worn.setdefault(drawn.text_tokens, np.zeros(len(picture), dtype=np.int64))
        self._list("text", draft, plan, words._replace(beliefs=beliefs[0]), text_keys, worn)
        self._list("image", draft, plan, image._replace(beliefs=beliefs[1]), image_keys, worn)

    def _list(
        self,
        kind: Literal["text", "image"],
        draft: Draft,
        plan: Plan,
        others: Others,
        keys: Sequence[int],
        worn: np.ndarray,
    ) -> None:
        group = Group(kind, draft, plan, others, keys, worn, (0, len(self.groups)))
        self.groups.append(group)
        if len(others.beliefs):
            self._push(group)

    def _plan(self, draft: Draft, reward: float, change: Candidate | None) -> Plan:
        """The plan of this draft, with what the draft's reward says of it."""
        if change is None or change.kind == "text":
            tokens = draft.drawn.text_tokens
            words = tokens[: math.ceil(self.settings.text_ratio * len(tokens))]
            prior = change.belief if change is not None else 1.0
            plan = self.plans.setdefault(words, Plan(words, prior, draft, (1, len(self.plans))))
        else:
            plan = change.plan
        plan.lacked += 1 - reward
        if reward > (plan.best.reward or 0.0):
            plan.best = draft
        self._push(plan)  # it may weigh more than it did, for its best draft
        return plan

    def take(self, count: int = 1) -> list[Candidate]:
        """The candidates of the highest weights, at most so many, which then count as tried; none where nothing has any
        weight. The second is chosen as if the first had been drawn and come out no better than what it changes."""
        found: list[Candidate] = []
        looked_at: list[Group | Plan] = []
        while len(found) < count:
            best = self._heaviest(looked_at)
            if best is None:
                break
            found.append(best)
            best.plan.pending += 0.0 if best.kind == "text" else 1 - (best.draft.reward or 0.0)
        self.taken.clear()
        for candidate in found:
            candidate.plan.pending = 0.0
        if count > 1:
            for source in {id(source): source for source in looked_at}.values():
                self._push(source)  # it weighs more again: what is pending will be known
        return found

    def _heaviest(self, looked_at: list[Group | Plan]) -> Candidate | None:
        """The candidate of the highest weight, of equals the earliest; it counts as tried. Appends to `looked_at`."""
        best: Group | Plan | None = None
        highest, place = 0.0, 0
        seen: dict[int, tuple[float, Group | Plan]] = {}
        while self.heap:
            least, order, source = self.heap[0]
            if -least < highest or (-least == highest and (best is None or order > best.order)):
                break
            heapq.heappop(self.heap)
            if id(source) in seen:
                continue
            weight, at = self._weigh(source)
            seen[id(source)] = weight, source
            if weight > highest or (best is not None and weight == highest and source.order < best.order):
                best, highest, place = source, weight, at
        for weight, source in seen.values():
            if weight > 0:
                heapq.heappush(self.heap, (-weight, source.order, source))
            looked_at.append(source)
        if isinstance(best, Group):
            self.tried.add(key := best.key(place))
            self.taken.add(key)
            if best.kind == "image":
                best.worn[best.others.positions[place]] += 1
            return best.candidate(place)
        return None if best is None else Candidate(best.best, best, "again", best.prior)

    def _push(self, source: Group | Plan) -> None:
        weight, _ = self._weigh(source)
        if weight > 0:
            heapq.heappush(self.heap, (-weight, source.order, source))

    def _weigh(self, source: Group | Plan) -> tuple[float, int]:
        """What the heaviest candidate of a group weighs that was not tried, and its place there; or what drawing a plan
        again weighs. 0 where there is none."""
        if isinstance(source, Plan):
            return self.weigh(source), 0
        weights = self.weights(source)
        while (weight := float(weights[place := int(weights.argmax())])) > 0:
            key = source.key(place)
            if self.settings.remember and key in self.tried:
                source.others.beliefs[place] = 0.0
            elif key not in self.taken:
                return weight, place
            weights[place] = 0.0
        return 0.0, 0

    def weights(self, group: Group) -> np.ndarray:
        """How much each change of a group is worth trying, as the head of this file says."""
        weights = group.others.beliefs * self._near(group.draft)
        if group.kind == "image":
            worn = group.worn[group.others.positions]
            decays = np.array([self.settings.decay**times for times in range(int(worn.max(initial=0)) + 1)])
            weights = weights * self._posterior(group.plan) * decays[worn]
        return weights

    def weigh(self, plan: Plan) -> float:
        """How much it is worth to draw a plan once more."""
        return plan.prior * self._near(plan.best) * self._posterior(plan) * self.settings.again

    def _near(self, draft: Draft) -> float:
        """How much the choices of a draft weigh for its distance from the best reward."""
        assert draft.reward is not None
        return math.exp(-self.settings.kappa * (self.best_reward - draft.reward))

    def _posterior(self, plan: Plan) -> float:
        return math.exp(-self.settings.doubt * (plan.lacked + plan.pending))

    def most_credible(self) -> int | None:
        """The draft to return when the budget is spent: see choice.py."""
        return most_credible(
            [draft for draft, _ in self.scored],
            threshold=self.problem.threshold,
            priors=[plan.prior for _, plan in self.scored],
            caution=self.settings.caution,
            shrink=self.settings.shrink,
        )


def _keys(start: int, tokens: Sequence[int]) -> list[int]:
    """For each position a number that stands for all the choices before it."""
    return list(accumulate(tokens[:-1], lambda key, token: hash((key, token)), initial=start))


def wrong_places(draft: Draft, grid: int) -> frozenset[int] | None:
    """Image positions that the critic's failed checks point at; None where one of them points nowhere."""
    failed = [found for found in draft.score.checks if not found.passed]
    if not failed or not all(found.boxes for found in failed):
        return None
    return _covered((box for found in failed for box in found.boxes), draft.drawn.image.width, grid)


def _covered(boxes: Iterable[tuple[float, float, float, float]], size: int, grid: int) -> frozenset[int]:
    """Positions whose patch a box covers, wholly or in part. `size` of the image and boxes in pixels."""
    patch = size / grid
    return frozenset(
        row * grid + column
        for left, top, right, bottom in boxes
        for row in range(max(0, int(top / patch)), min(grid, math.ceil(bottom / patch)))
        for column in range(max(0, int(left / patch)), min(grid, math.ceil(right / patch)))
    )


def _redrawn(candidate: Candidate, problem: Problem, settings: Repair) -> frozenset[int]:
    """What is drawn anew after a changed image token: what follows it nearby, and in all wrong places."""
    grid = problem.grid
    row, column = divmod(candidate.position, grid)
    reach = math.ceil(settings.reach * grid)
    near = {
        r * grid + c
        for r in range(row, min(grid, row + reach + 1))
        for c in range(max(0, column - reach), min(grid, column + reach + 1))
    }
    places = wrong_places(candidate.draft, grid) if settings.use_places else None
    return frozenset(i for i in near | (places or frozenset()) if i > candidate.position)


def looks_at_budget(settings: Repair) -> LooksAtBudget:
    """Whether k drafts of a longer search are what a budget of k brings: `caution` and `shrink` choose at the end."""
    return "without checks" if settings.caution or settings.shrink else ""


SETTINGS = Repair
PRESETS = {"default": Repair()}
search = repair
