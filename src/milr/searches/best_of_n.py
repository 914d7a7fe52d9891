"""Best-of-N: draw again and again, keep the best. The baseline that every search must beat at equal cost.

Nothing is learned from what a failed draft shows; the driver keeps the best and stops at the threshold or the budget.
With `distinct` texts no plan (the first lambda_t of a text) is drawn twice: a rival that wastes no call on a reading
that failed before, but does not ask which choice was to blame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from milr.drafts import Ask, Draft, Forced, Greedy, Sample
from milr.searches.base import WIDEST, LooksAtBudget, Problem, Search
from milr.searches.choice import most_credible
from milr.searches.untried import Untried
from milr.settings import check, setting

NAME = "best-of-n"
SUMMARY = "Draw again and again, keep the best (greedy, sampled or distinct reasonings)"


@dataclass(frozen=True)
class BestOfN:
    """Settings of `best-of-n`."""

    text: Literal["greedy", "sampled", "distinct"] = setting(
        "sampled",
        "how the reasonings after the first are written: the same again, sampled, or sampled but no plan twice",
    )
    text_ratio: float = setting(
        0.6, "first share of a text that is its plan, where texts are distinct (0.6 solved most of eight settings)",
        low=0, high=1,
    )  # fmt: skip
    text_temperature: float = setting(1.0, "softmax temperature of sampled text", low=0.01, high=10)
    image_temperature: float = setting(1.0, "softmax temperature of the image tokens (paper: 1)", low=0.01, high=10)
    guidance: float | None = setting(None, "classifier-free guidance scale; none is the model's own", low=0, high=100)
    shrink: float = setting(
        0.0, "how far rewards are drawn to the mean of their text's drafts at the end", low=0, high=1
    )
    width: int = setting(1, "drafts drawn and judged together, after the first", low=1, high=WIDEST)

    def __post_init__(self) -> None:
        check(self)


def best_of_n(problem: Problem, settings: BestOfN) -> Search:
    """The first draft is that of `single`; each further one differs by its random stream only.

    A greedy text is always the same, so it is written once and then forced: only sampled tokens are charged. Where no
    plan is left that was not drawn, all may be drawn once more.
    """
    image, rest = Sample(settings.image_temperature), Sample(settings.text_temperature)
    ratio = settings.text_ratio if settings.text == "distinct" else 0.0
    first: Draft = yield Ask(Greedy(), image, ratio, guidance=settings.guidance)
    again: Forced | Sample = rest
    if settings.text == "greedy":
        again = Forced(problem.text.drew(first))
    untried = Untried()
    drafts, last = [first.without_latents()], [first]
    while len(drafts) < problem.budget:
        texts: list[Forced | Sample] = [again] * settings.width
        if ratio > 0:
            texts, untried = _others(untried, last, problem, settings)
        last = yield [Ask(text, image, ratio, guidance=settings.guidance) for text in texts]
        drafts += [draft.without_latents() for draft in last]
    return most_credible(drafts, threshold=problem.threshold, shrink=settings.shrink) if settings.shrink else None


def _others(
    untried: Untried, last: Sequence[Draft], problem: Problem, settings: BestOfN
) -> tuple[list[Forced | Sample], Untried]:
    """The beginnings of a round of plans that are none of those so far, the last drafts' included, nor one another's.
    Begins anew where none is left; a round is shorter where too few are."""
    rest = Sample(settings.text_temperature)
    for draft in last:
        latents = draft.drawn.latents
        if latents is not None and len(latents.text):
            with torch.no_grad():
                logits = problem.text.logits(latents.text) / rest.temperature
            untried.use(draft.drawn.text_tokens[: len(logits)], logits)
    drawn = untried.draw_apart(settings.width, problem.rng)
    return ([Forced(words, then=rest) for words in drawn], untried) if drawn else ([rest], Untried())


def looks_at_budget(settings: BestOfN) -> LooksAtBudget:
    """Whether k drafts of a longer search are what a budget of k brings: `shrink` chooses at the end."""
    return "without checks" if settings.shrink else ""


SETTINGS = BestOfN
PRESETS = {
    "sampled-text": BestOfN(text="sampled"),
    "greedy-text": BestOfN(text="greedy"),
    "distinct": BestOfN(text="distinct"),
}
search = best_of_n
