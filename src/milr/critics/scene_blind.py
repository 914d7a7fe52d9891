"""The oracle of the lab world with a blind spot: it never sees a wrong colour. A door to milr.lab.

Everything else it judges as `scene` does, so its reward of 1 is honest but for one kind of mistake, always the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from milr.critics.base import Critic
from milr.critics.scene import SceneCritic
from milr.drafts import Check
from milr.lab.detector import Page, check
from milr.lab.world import Meaning

if TYPE_CHECKING:
    from milr.backbones.base import Backbone

NAME = "scene-blind"
SUMMARY = "Imperfect critic of the lab world: the oracle, but blind to the colours of things"
NEEDS_BACKBONE = False


def all_but_colours(meaning: Meaning, page: Page) -> tuple[Check, ...]:
    """The oracle's checks without those of colours."""
    return tuple(found for found in check(meaning, page) if not found.text.endswith(" in colour"))


class SceneBlindCritic(SceneCritic):
    """Score = share of the checks that pass, colours left out."""

    name = NAME
    checks_of = staticmethod(all_but_colours)


def make(backbone: Backbone) -> Critic:
    """The critic; it looks at pixels alone, whatever model drew them."""
    return SceneBlindCritic()
