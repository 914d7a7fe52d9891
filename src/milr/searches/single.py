"""One draft and no search: what the model draws by itself.

Every other search begins with this very draft (greedy text, sampled image, same random stream), so a
comparison starts level.
"""

from __future__ import annotations

from dataclasses import dataclass

from milr.drafts import Ask, Greedy, Sample
from milr.searches.base import Problem, Search
from milr.settings import check, setting

NAME = "single"
SUMMARY = "One draft, no search: greedy reasoning, sampled image"


@dataclass(frozen=True)
class Single:
    """Settings of `single`."""

    image_temperature: float = setting(1.0, "softmax temperature of the image tokens (paper: 1)", low=0.01, high=10)

    def __post_init__(self) -> None:
        check(self)


def single(problem: Problem, settings: Single) -> Search:
    """Ask for one draft and be done."""
    yield Ask(text=Greedy(), image=Sample(settings.image_temperature))
    return None


SETTINGS = Single
PRESETS = {"default": Single()}
search = single
