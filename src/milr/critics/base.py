"""What a critic is. Knows no model and no search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from milr.drafts import Score, Task

if TYPE_CHECKING:
    from PIL.Image import Image


class Critic(Protocol):
    """How well does each image show its prompt? Scores lie in [0, 1], higher is better.

    A critic that cannot judge (no network, unreadable verdict) abstains with the reason: a low score would be a
    lie that the search then learns from.
    """

    name: str

    def score(self, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
        """One score for each image, in order."""
        ...
