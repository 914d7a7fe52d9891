"""The oracle as the paper has it: 1 where every check passes, else 0, and no word about what is wrong.

The paper's OracleReward is GenEval's own verdict, 0 or 1. `scene` says how much of a prompt is there and where
something is missing, which only some searches use; under this critic all know the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from milr.critics.base import Critic
from milr.critics.scene import SceneCritic
from milr.drafts import Score, Task

if TYPE_CHECKING:
    from PIL.Image import Image

    from milr.backbones.base import Backbone

NAME = "scene-right"
SUMMARY = "Oracle of the lab world as the paper has it: 1 where all checks pass, else 0, without details"
NEEDS_BACKBONE = False


class SceneRight(SceneCritic):
    """Right or wrong. Abstains where `scene` does."""

    name = NAME

    def score(self, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
        return [
            Score(None if score.value is None else float(score.value == 1), reason=score.reason)
            for score in super().score(images, tasks)
        ]


def make(backbone: Backbone) -> Critic:
    """The critic; it looks at pixels alone, whatever model drew them."""
    return SceneRight()
