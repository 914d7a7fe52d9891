"""The oracle of the lab world with a tenth of its checks turned round, as a detector errs. A door to milr.lab.

Whether a check is turned round depends on the page and the check alone: the same picture always gets the same score,
so drawing it again helps nobody, and a search that collects lucky pictures is found out by a held-out `scene`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from milr.critics.base import Critic
from milr.critics.scene import SceneCritic
from milr.drafts import Check
from milr.lab.curriculum import chance
from milr.lab.detector import Page, check
from milr.lab.world import Meaning

if TYPE_CHECKING:
    from milr.backbones.base import Backbone

NAME = "scene-noisy"
SUMMARY = "Imperfect critic of the lab world: the oracle with 10 % of its checks turned round, fixed for each picture"
NEEDS_BACKBONE = False
TURNED_ROUND = 0.1


def turned_round(meaning: Meaning, page: Page) -> tuple[Check, ...]:
    """The oracle's checks, some wrong: one wrongly failed points nowhere, one wrongly passed hides its boxes."""
    return tuple(
        replace(found, passed=not found.passed, boxes=())
        if chance("turned", found.text, repr(page)) < TURNED_ROUND
        else found
        for found in check(meaning, page)
    )


class SceneNoisyCritic(SceneCritic):
    """Score = share of the checks that pass, a tenth of them turned round."""

    name = NAME
    checks_of = staticmethod(turned_round)


def make(backbone: Backbone) -> Critic:
    """The critic; it looks at pixels alone, whatever model drew them."""
    return SceneNoisyCritic()
