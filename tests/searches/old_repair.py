"""The search `repair` as it was until its candidates became arrays: an object each, all weighed for every draft.
It is the specification of the present one at a width of 1, and slow. Changed only in what it imports."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from milr.backbones.policies import ALTERNATIVES, whole_text
from milr.drafts import Ask, Draft, Forced, Greedy, Sample
from milr.searches.base import Problem, Search
from milr.searches.choice import most_credible
from milr.searches.repair import Repair, _redrawn, wrong_places


def repair(problem: Problem, settings: Repair) -> Search:
    """Draw, list what else could have been chosen, change what best explains the failure, and so on."""
    image = Sample(settings.image_temperature)
    rest = Sample(settings.text_temperature)
    candidates = Candidates(problem, settings)
    change: Candidate | None = None
    ask = Ask(Greedy(), image, settings.text_ratio, note=_note("first", "The model's own draft."))
    while True:
        draft = yield replace(ask, image_ratio=settings.image_ratio, guidance=settings.guidance)
        candidates.add(draft, change)
        if draft.number + 1 == problem.budget:
            return candidates.most_credible()
        change = candidates.take()
        if change is None:
            note = _note("fresh", "Nothing is left to change: a whole new draft.")
            ask = Ask(rest, image, settings.text_ratio, note=note)
        elif change.kind == "image":
            text, picture = whole_text(change.draft.drawn, problem.text.end), list(change.draft.drawn.image_tokens)
            picture[change.position] = change.token
            redrawn = Forced(tuple(picture), then=image, free=_redrawn(change, problem, settings))
            ask = Ask(Forced(text), redrawn, note=_changed(change))
        else:
            ask = Ask(Forced(change.words, then=rest), image, settings.text_ratio, note=_changed(change))


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


@dataclass
class Plan:
    """The first lambda_t of a reasoning: how far it was believed beforehand, its best draft, and how much reward its
    drafts lacked in all."""

    words: tuple[int, ...]
    prior: float
    best: Draft
    lacked: float = 0.0


@dataclass(frozen=True)
class Candidate:
    """Another token at one position of a draft, or its plan once more. `site` stands for the choice (what was chosen
    before it), `key` for the change: the site and the new token. `belief` is prior(plan) q."""

    draft: Draft
    plan: Plan
    kind: Literal["text", "image", "again"]
    belief: float
    position: int = 0
    token: int = 0
    site: int = 0
    key: int = 0

    @property
    def words(self) -> tuple[int, ...]:
        """The text tokens to keep, with the changed one."""
        if self.kind == "again":
            return self.plan.words
        return (*self.draft.drawn.text_tokens[: self.position], self.token)


class Candidates:
    """What may be changed, over all drafts so far."""

    def __init__(self, problem: Problem, settings: Repair) -> None:
        self.problem, self.settings = problem, settings
        self.open: list[Candidate] = []
        self.tried: set[int] = set()
        self.changed: Counter[int] = Counter()
        self.plans: dict[tuple[int, ...], Plan] = {}
        self.texts: dict[tuple[int, ...], list[tuple[int, int, float]]] = {}  # what each text could have said instead
        self.best_reward = 0.0
        self.scored: list[tuple[Draft, Plan]] = []

    def add(self, draft: Draft, change: Candidate | None = None) -> None:
        """List what else this draft, drawn by this change, could have chosen. A draft without a score says nothing
        about its choices."""
        drawn = draft.drawn
        text, picture = whole_text(drawn, self.problem.text.end), drawn.image_tokens
        text_keys, image_keys = _keys(0, text), _keys(hash(drawn.text_tokens), picture)
        self.tried.update(
            hash(pair) for pair in (*zip(text_keys, text, strict=True), *zip(image_keys, picture, strict=True))
        )
        reward, latents = draft.reward, drawn.latents
        if reward is None or latents is None:
            return
        draft = draft.without_latents()
        self.best_reward = max(self.best_reward, reward)
        plan = self._plan(draft, reward, change)
        self.scored.append((draft, plan))
        if drawn.text_tokens not in self.texts:  # a repaired picture keeps its text, which was not run again
            self.texts[drawn.text_tokens] = list(_alternatives(self.problem.text.logits(latents.text), text))
        found = [
            Candidate(draft, plan, "text", plan.prior * q, i, token, text_keys[i], hash((text_keys[i], token)))
            for i, token, q in self.texts[drawn.text_tokens]
        ]
        places = wrong_places(draft, self.problem.grid) if self.settings.use_places else None
        for i, token, q in _alternatives(self.problem.image(drawn.guidance).logits(latents.image), picture):
            if places is None or i in places:
                site = hash((drawn.text_tokens, i))  # whatever was drawn before: one place, one text
                key = hash((image_keys[i], token))
                found.append(Candidate(draft, plan, "image", plan.prior * q, i, token, site, key))
        if self.settings.rank == "random":
            luck = self.problem.rng.random(len(found)).tolist()
            found = [replace(one, belief=chance) for one, chance in zip(found, luck, strict=True)]
        self.open += found

    def _plan(self, draft: Draft, reward: float, change: Candidate | None) -> Plan:
        """The plan of this draft, with what the draft's reward says of it."""
        if change is None or change.kind == "text":
            tokens = draft.drawn.text_tokens
            words = tokens[: math.ceil(self.settings.text_ratio * len(tokens))]
            prior = change.belief if change is not None else 1.0
            plan = self.plans.setdefault(words, Plan(words, prior, draft))
        else:
            plan = change.plan
        plan.lacked += 1 - reward
        if reward > (plan.best.reward or 0.0):
            plan.best = draft
        return plan

    def take(self) -> Candidate | None:
        """The candidate of the highest weight, which then counts as tried; None where nothing has any weight."""
        if self.settings.remember:
            self.open = [candidate for candidate in self.open if candidate.key not in self.tried]
        again = [Candidate(plan.best, plan, "again", plan.prior) for plan in self.plans.values()]
        best = max(self.open + again, key=self.weight, default=None)
        if best is None or self.weight(best) == 0:
            return None
        if best.kind != "again":
            self.tried.add(best.key)
            self.changed[best.site] += 1
        return best

    def most_credible(self) -> int | None:
        """The draft to return when the budget is spent: see choice.py."""
        return most_credible(
            [draft for draft, _ in self.scored],
            threshold=self.problem.threshold,
            priors=[plan.prior for _, plan in self.scored],
            caution=self.settings.caution,
            shrink=self.settings.shrink,
        )

    def weight(self, candidate: Candidate) -> float:
        """How much this change is worth trying, as the head of this file says."""
        reward, settings = candidate.draft.reward, self.settings
        assert reward is not None
        weight = candidate.belief * math.exp(-settings.kappa * (self.best_reward - reward))
        if candidate.kind == "text":
            return weight
        weight *= math.exp(-settings.doubt * candidate.plan.lacked)
        if candidate.kind == "again":
            return weight * settings.again
        return weight * settings.decay ** self.changed[candidate.site]


def _keys(start: int, tokens: Sequence[int]) -> list[int]:
    """For each position a number that stands for all the choices before it."""
    return list(accumulate(tokens[:-1], lambda key, token: hash((key, token)), initial=start))


def _alternatives(logits: Tensor, chosen: Sequence[int]) -> Iterator[tuple[int, int, float]]:
    """(position, token, q) of the most probable tokens that were not chosen. logits: [T, V]."""
    if len(logits) == 0:
        return
    kept = torch.tensor(chosen[: len(logits)], device=logits.device)[:, None]
    beliefs = (logits - logits.gather(1, kept)).sigmoid().scatter(1, kept, 0.0)  # p_a / (p_a + p_x)
    values, tokens = beliefs.topk(min(ALTERNATIVES, beliefs.shape[1]), dim=1)
    for i, (row, names) in enumerate(zip(values.tolist(), tokens.tolist(), strict=True)):
        yield from ((i, token, value) for value, token in zip(row, names, strict=True))
