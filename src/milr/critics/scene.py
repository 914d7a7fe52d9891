"""The oracle of the lab world: exact, graded, says which check failed and where. A door to milr.lab."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from milr.critics.base import Critic
from milr.drafts import Check, Score, Task
from milr.lab.detector import Page, check, look_at
from milr.lab.language import parse
from milr.lab.world import Meaning

if TYPE_CHECKING:
    from PIL.Image import Image

    from milr.backbones.base import Backbone

NAME = "scene"
SUMMARY = "Oracle of the lab world: the share of checks a page satisfies, with what is wrong, in words and boxes"
NEEDS_BACKBONE = False


def why_not(prompt: str) -> str | None:
    """Why a critic of this world cannot judge a prompt, or None if it can."""
    parsed = parse(prompt)
    return parsed.reason if parsed.meaning is None else None


class SceneCritic:
    """Score = share of the prompt's checks that the page satisfies; 1 means that every one does.

    A critic of the same world that looks at other things has `checks_of` of its own.
    """

    name = NAME
    checks_of: Callable[[Meaning, Page], tuple[Check, ...]] = staticmethod(check)
    why_not = staticmethod(why_not)

    def score(self, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
        """Abstains on a prompt that it cannot turn into checks."""
        scores = []
        for page, task in zip(look_at(images), tasks, strict=True):
            parsed = parse(task.prompt)
            if parsed.meaning is None:
                scores.append(Score(None, reason=parsed.reason))
                continue
            checks = self.checks_of(parsed.meaning, page)
            scores.append(Score(sum(c.passed for c in checks) / len(checks), checks))
        return scores


def make(backbone: Backbone) -> Critic:
    """The critic; it looks at pixels alone, whatever model drew them."""
    return SceneCritic()
