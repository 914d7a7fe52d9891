"""A deliberately imperfect critic of the lab world, so that reward hacking can be seen. A door to milr.lab.

It judges like a bag of words, as CLIP-like critics are known to: is each noun somewhere on the page, and each
colour? It is blind to numbers beyond one, to which thing has which colour, to relations, frames and surplus things.
A search that climbs it can reach 1 with a wrong picture; a held-out `scene` shows by how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from milr.critics.base import Critic
from milr.drafts import Check, Score, Task
from milr.lab.detector import look_at
from milr.lab.language import parse

if TYPE_CHECKING:
    from PIL.Image import Image

    from milr.backbones.base import Backbone

NAME = "scene-lite"
SUMMARY = "Imperfect critic of the lab world: a bag of nouns and colours, blind to numbers, binding and relations"


class SceneLiteCritic:
    """Score = share of the prompt's nouns and colours that are anywhere on the page."""

    name = NAME

    def score(self, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
        """Abstains on a prompt that it cannot turn into checks. Says what is missing, never where."""
        scores = []
        for page, task in zip(look_at(images), tasks, strict=True):
            parsed = parse(task.prompt)
            if parsed.meaning is None:
                scores.append(Score(None, reason=parsed.reason))
                continue
            nouns = {found.noun for found in page.found}
            colours = {colour for found in page.found for colour in found.looks if colour}
            words = dict.fromkeys(
                word for group in parsed.meaning.groups for word in (group.noun, group.colour) if word
            )
            checks = tuple(Check(f"'{word}' somewhere", word in nouns | colours) for word in words)
            scores.append(Score(sum(c.passed for c in checks) / len(checks), checks))
        return scores

    def why_not(self, prompt: str) -> str | None:
        """Why this critic cannot judge a prompt, or None if it can."""
        parsed = parse(prompt)
        return parsed.reason if parsed.meaning is None else None


def make(backbone: Backbone) -> Critic:
    """The critic; it looks at pixels alone, whatever model drew them."""
    return SceneLiteCritic()
