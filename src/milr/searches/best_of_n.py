"""Best-of-N: draw again and again, keep the best. The baseline that every search must beat at equal cost.

Nothing is learned from a failed draft; the driver keeps the best and stops at the threshold or the budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from milr.drafts import Ask, Forced, Greedy, Sample
from milr.searches.base import LooksAtBudget, Problem, Search, whole_text
from milr.searches.choice import most_credible
from milr.settings import check, setting

NAME = "best-of-n"
SUMMARY = "Draw again and again, keep the best (greedy or sampled reasoning)"


@dataclass(frozen=True)
class BestOfN:
    """Settings of `best-of-n`."""

    text: Literal["greedy", "sampled"] = setting(
        "sampled",
        "how the reasonings after the first are written; sampled is the stronger rival",
    )
    text_temperature: float = setting(1.0, "softmax temperature of sampled text", low=0.01, high=10)
    image_temperature: float = setting(1.0, "softmax temperature of the image tokens (paper: 1)", low=0.01, high=10)
    guidance: float | None = setting(None, "classifier-free guidance scale; none is the model's own", low=0, high=100)
    shrink: float = setting(
        0.0, "how far rewards are drawn to the mean of their text's drafts at the end", low=0, high=1
    )

    def __post_init__(self) -> None:
        check(self)


def best_of_n(problem: Problem, settings: BestOfN) -> Search:
    """The first draft is that of `single`; each further one differs by its random stream only.

    A greedy text is always the same, so it is written once and then forced: only sampled tokens are charged.
    """
    image = Sample(settings.image_temperature)
    first = yield Ask(text=Greedy(), image=image, guidance=settings.guidance)
    again: Forced | Sample = Sample(settings.text_temperature)
    if settings.text == "greedy":
        again = Forced(whole_text(first.drawn, problem.text_end))
    drafts = [first.without_latents()]
    while len(drafts) < problem.budget:
        drafts.append((yield Ask(text=again, image=image, guidance=settings.guidance)))
    return most_credible(drafts, threshold=problem.threshold, shrink=settings.shrink) if settings.shrink else None


def looks_at_budget(settings: BestOfN) -> LooksAtBudget:
    """Whether k drafts of a longer search are what a budget of k brings: `shrink` chooses at the end."""
    return "without checks" if settings.shrink else ""


SETTINGS = BestOfN
PRESETS = {"sampled-text": BestOfN(text="sampled"), "greedy-text": BestOfN(text="greedy")}
search = best_of_n
