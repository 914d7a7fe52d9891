"""Neighbour: keep the best picture and draw one near it: a (1+1) evolution of what pictures are made of.

    x' = near(x_best)      x_best <- x' where R(x') >= R(x_best)

The published rival of every gradient on noise (zero-order search, Ma et al., arXiv 2501.09732). What is near is the
model's affair: of a flow model's noise cos(a) x + sin(a) e on its coarsest coefficients, which is as long as noise is;
of a token model's picture every token drawn afresh with a chance, given the others. The text is that of the first
draft, so that what it finds, it finds in the picture; of a round of several each is near the best picture so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from milr.drafts import Ask, Draft, Greedy, Sample
from milr.searches.base import WIDEST, Problem, Search
from milr.settings import check, setting

NAME = "neighbour"
SUMMARY = "Keep the best picture and draw one near it (zero-order search), with the text of the first draft"


@dataclass(frozen=True)
class Neighbour:
    """Settings of `neighbour`."""

    step: float = setting(
        0.4, "how far: the angle in noise, in radians; the chance of every token to be drawn afresh", low=0.01, high=1.5
    )
    image_temperature: float = setting(1.0, "softmax temperature of the image tokens (paper: 1)", low=0.01, high=10)
    guidance: float | None = setting(None, "classifier-free guidance scale; none is the model's own", low=0, high=100)
    width: int = setting(1, "pictures drawn and judged together, after the first draft", low=1, high=WIDEST)

    def __post_init__(self) -> None:
        check(self)


def neighbour(problem: Problem, settings: Neighbour) -> Search:
    """Draw near the best draft until the budget is spent. A draft without a score is nothing to stand on."""
    image = Sample(settings.image_temperature)
    best: Draft = yield Ask(Greedy(), image, guidance=settings.guidance)
    last: Sequence[Draft] = [best]
    while last[-1].number + 1 < problem.budget:
        near = problem.image(best.drawn.guidance).near
        last = yield [
            Ask(
                problem.text.kept(best),
                image if best.reward is None else near(best, settings.step, problem.rng, image),
                guidance=settings.guidance,
                note={"of_draft": best.number},
            )
            for _ in range(settings.width)
        ]
        best = max([best, *last], key=lambda draft: (draft.reward is not None, draft.reward or 0.0, draft.number))
    return None


SETTINGS = Neighbour
PRESETS = {"default": Neighbour()}
search = neighbour
