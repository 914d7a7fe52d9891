"""Repair: change the one choice that best explains the failure, in the reasoning or in the picture.

    A draft is a chain of choices x_1 ... x_n, text tokens first, then image tokens; behind each stands a latent z_i,
    and p_i = softmax(head(z_i)) says what the model would rather have chosen, or nearly chose. If the draft fails and
    choice i is to blame, the model's own belief that it should have been a is

        q(i, a) = p_i(a) / (p_i(a) + p_i(x_i))            one space for text and image, as in MILR

    Every draft adds such candidates; the one of the highest weight is drawn next, and none twice:

        weight = q(i, a) * exp(-kappa (R_best - R)) * decay^n
                 R: the draft's reward; n: how often this choice, with the same before it, was changed already
                 * tail, for a word behind the first lambda_t of the text
                 * 0, for an image token outside what the critic calls wrong

    A text candidate keeps the words before i and the model writes on; an image candidate keeps the text and every
    image token but those near i, or in the places that the critic calls wrong. Where no weight exceeds `fresh`, a
    whole new draft is sampled: best-of-N is what remains when the model has no better idea.

A misread prompt and a wrong drawing need no telling apart beforehand: an obedient drawing of a wrong text leaves no
likely alternative in the picture, and a wrong drawing of a sure text leaves none in the text. See docs/method.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from milr.drafts import Ask, Draft, Forced, Greedy, Sample
from milr.searches.base import Problem, Search, whole_text
from milr.searches.settings import check, setting

NAME = "repair"
SUMMARY = "Change the choice that best explains the failure: another word of the reasoning, or a wrong place redrawn"

ALTERNATIVES = 8  # candidates kept for each choice: the most probable ones


@dataclass(frozen=True)
class Repair:
    """Settings of `repair`."""

    text_ratio: float = setting(0.3, "first share of the text, lambda_t, whose words weigh fully", low=0, high=1)
    tail: float = setting(0.1, "factor on candidates behind it", low=0, high=1)
    image_ratio: float = setting(1.0, "share of image tokens that may be changed, lambda_v", low=0, high=1)
    text_temperature: float = setting(1.0, "softmax temperature of sampled text", low=0.01, high=10)
    image_temperature: float = setting(1.0, "softmax temperature of the image tokens (paper: 1)", low=0.01, high=10)
    guidance: float | None = setting(None, "classifier-free guidance scale; none is the model's own", low=0, high=100)
    fresh: float = setting(0.03, "draw a whole new draft where no candidate weighs more than this", low=0, high=1e9)
    kappa: float = setting(8.0, "how much less the choices of a draft with a lower reward weigh", low=0, high=1e3)
    decay: float = setting(0.5, "factor on the candidates of a choice for each one already tried", low=0, high=1)
    reach: float = setting(0.125, "how far around a changed token to redraw, in image sides", low=0, high=1)
    use_places: bool = setting(True, "change only what the critic calls wrong, where it says so")
    rank: Literal["odds", "random"] = setting("odds", "which candidate first; random is there to be compared with")
    remember: bool = setting(True, "make no change twice; false is there to be compared with")

    def __post_init__(self) -> None:
        check(self)


def repair(problem: Problem, settings: Repair) -> Search:
    """Draw, list what else could have been chosen, change what best explains the failure, and so on."""
    image = Sample(settings.image_temperature)
    rest = Sample(settings.text_temperature)
    searched = 1.0 if settings.tail else settings.text_ratio
    candidates = Candidates(problem, settings)
    ask = Ask(Greedy(), image, searched, note=_note("first", "The model's own draft."))
    while True:
        draft = yield replace(ask, image_ratio=settings.image_ratio, guidance=settings.guidance)
        candidates.add(draft)
        best = candidates.take()
        if best is None:
            ask = Ask(rest, image, searched, note=_note("fresh", "No change is likely enough: a whole new draft."))
            continue
        drawn, at = best.draft.drawn, best.position
        if best.kind == "text":
            ask = Ask(Forced((*drawn.text_tokens[:at], best.token), then=rest), image, searched, note=_change(best))
        else:
            picture = (*drawn.image_tokens[:at], best.token, *drawn.image_tokens[at + 1 :])
            changed = Forced(picture, then=image, free=_redrawn(best, problem, settings))
            ask = Ask(Forced(whole_text(drawn, problem.text_end)), changed, note=_change(best))


def _note(move: str, why: str) -> dict[str, object]:
    """For the record: the move, in words too, and how many first tokens the search chose."""
    return {"move": move, "why": why, "text_searched": 0, "image_searched": 0}


def _change(to: Candidate) -> dict[str, object]:
    what, where = ("word", "reasoning") if to.kind == "text" else ("token", "picture")
    why = f"Another {what} {to.position + 1} in the {where} of draft {to.draft.number} (belief {to.belief:.2g})."
    chosen = {"text_searched": to.position + 1} if to.kind == "text" else {"image_changed": [to.position]}
    facts = {"of_draft": to.draft.number, "position": to.position, "belief": to.belief}
    return _note(to.kind, why) | facts | chosen


@dataclass(frozen=True)
class Candidate:
    """Another token at one position of a draft. `site` stands for the choice (what was chosen before it), `key` for
    the change: the site and the new token."""

    draft: Draft
    kind: str  # 'text' or 'image'
    position: int
    token: int
    belief: float
    site: int
    key: int


class Candidates:
    """What may be changed, over all drafts so far."""

    def __init__(self, problem: Problem, settings: Repair) -> None:
        self.problem, self.settings = problem, settings
        self.open: list[Candidate] = []
        self.tried: set[int] = set()
        self.changed: Counter[int] = Counter()
        self.texts: dict[tuple[int, ...], list[tuple[int, int, float]]] = {}  # what each text could have said instead
        self.best_reward = 0.0

    def add(self, draft: Draft) -> None:
        """List what else this draft could have chosen. A draft without a score says nothing about its choices."""
        drawn = draft.drawn
        text, picture = whole_text(drawn, self.problem.text_end), drawn.image_tokens
        text_keys, image_keys = _keys(0, text), _keys(hash(drawn.text_tokens), picture)
        self.tried.update(
            hash(pair) for pair in (*zip(text_keys, text, strict=True), *zip(image_keys, picture, strict=True))
        )
        if draft.reward is None or drawn.latents is None:
            return
        self.best_reward = max(self.best_reward, draft.reward)
        places = wrong_places(draft, self.problem.grid) if self.settings.use_places else None
        found = []
        draft = draft.without_latents()
        sure = math.ceil(self.settings.text_ratio * len(drawn.text_tokens))
        if drawn.text_tokens not in self.texts:  # a repaired picture keeps its text, which was not run again
            self.texts[drawn.text_tokens] = list(_alternatives(self.problem.text_logits(drawn.latents.text), text))
        for i, token, belief in self.texts[drawn.text_tokens]:
            belief *= 1.0 if i < sure else self.settings.tail
            found.append(Candidate(draft, "text", i, token, belief, text_keys[i], hash((text_keys[i], token))))
        image_logits = self.problem.image_logits(drawn.latents.image, drawn.guidance)
        for i, token, belief in _alternatives(image_logits, picture):
            if places is None or i in places:
                site = hash((drawn.text_tokens, i))  # whatever was drawn before: one place, one text
                found.append(Candidate(draft, "image", i, token, belief, site, hash((image_keys[i], token))))
        if self.settings.rank == "random":
            found = [
                replace(one, belief=float(luck))
                for one, luck in zip(found, self.problem.rng.random(len(found)), strict=True)
            ]
        self.open += found

    def take(self) -> Candidate | None:
        """The candidate of the highest weight, which then counts as tried; None where a new draft is worth more."""
        if self.settings.remember:
            self.open = [candidate for candidate in self.open if candidate.key not in self.tried]
        best = max(self.open, key=self.weight, default=None)
        if best is None or self.weight(best) <= self.settings.fresh:
            return None
        self.tried.add(best.key)
        self.changed[best.site] += 1
        return best

    def weight(self, candidate: Candidate) -> float:
        """q(i, a) * exp(-kappa (R_best - R)) * decay^n."""
        assert candidate.draft.reward is not None
        behind = self.best_reward - candidate.draft.reward
        tried = self.changed[candidate.site]
        return candidate.belief * math.exp(-self.settings.kappa * behind) * self.settings.decay**tried


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


SETTINGS = Repair
PRESETS = {"default": Repair()}
search = repair
