"""The model judges its own picture: P(yes) of its understanding path (the paper's SelfReward, as a probability).

The paper's code asks for a JSON verdict and reads 0 or -1; the probability of 'yes' asks the same and is graded,
costs one forward pass and cannot fail to parse. The paper found self-reward weak on counting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from milr.critics.base import Critic
from milr.drafts import Score, Task

if TYPE_CHECKING:
    from PIL.Image import Image

    from milr.backbones.base import Backbone

NAME = "self"
SUMMARY = "The model's own answer, P(yes), to whether its picture shows the prompt; for any prompt and model"


class SelfCritic:
    """Score = P(yes) of the backbone's understanding path for 'Does this picture show <prompt>?'."""

    name = NAME

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone

    def score(self, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
        """One graded answer for each image; never abstains."""
        questions = [f"Does this picture show {task.prompt.strip().rstrip('.?!')}?" for task in tasks]
        return [Score(value) for value in self._backbone.answer(images, questions)]


def make(backbone: Backbone) -> Critic:
    """The critic that asks this backbone."""
    return SelfCritic(backbone)
