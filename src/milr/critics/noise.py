"""A critic that knows nothing: a number drawn from the picture's bytes. The negative control of every comparison."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from milr.critics.base import Critic
from milr.drafts import Score, Task

if TYPE_CHECKING:
    from PIL.Image import Image

    from milr.backbones.base import Backbone

NAME = "noise"
SUMMARY = "Negative control: a random number for each picture; no search should gain by it"
NEEDS_BACKBONE = False


class NoiseCritic:
    """Score = uniform in [0, 1), the same for the same picture and prompt."""

    name = NAME

    def score(self, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
        """Never abstains."""
        return [
            Score(_uniform(image.tobytes() + task.prompt.encode())) for image, task in zip(images, tasks, strict=True)
        ]


def _uniform(content: bytes) -> float:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") / 2**64


def make(backbone: Backbone) -> Critic:
    """The critic; it looks at nothing but the bytes."""
    return NoiseCritic()
