"""A deliberately imperfect critic of the lab world, so that reward hacking can be seen. A door to milr.lab.

It judges like a bag of words, as CLIP-like critics are known to: is each noun somewhere on the page, and each
colour? It is blind to numbers beyond one, to which thing has which colour, to relations, frames and surplus things.
A search that climbs it can reach 1 with a wrong picture; a held-out `scene` shows by how much.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from milr.critics.base import Critic
from milr.critics.scene import SceneCritic
from milr.drafts import Check
from milr.lab.detector import Page
from milr.lab.world import Meaning

if TYPE_CHECKING:
    from milr.backbones.base import Backbone

NAME = "scene-lite"
SUMMARY = "Imperfect critic of the lab world: a bag of nouns and colours, blind to numbers, binding and relations"
NEEDS_BACKBONE = False


def words_somewhere(meaning: Meaning, page: Page) -> tuple[Check, ...]:
    """Is each noun, and each colour, of the meaning anywhere on the page? Says what is missing, never where."""
    there = {found.noun for found in page.found} | {colour for found in page.found for colour in found.looks if colour}
    words = dict.fromkeys(word for group in meaning.groups for word in (group.noun, group.colour) if word)
    return tuple(Check(f"'{word}' somewhere", word in there) for word in words)


class SceneLiteCritic(SceneCritic):
    """Score = share of the prompt's nouns and colours that are anywhere on the page."""

    name = NAME
    checks_of = staticmethod(words_somewhere)


def make(backbone: Backbone) -> Critic:
    """The critic; it looks at pixels alone, whatever model drew them."""
    return SceneLiteCritic()
