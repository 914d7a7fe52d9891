"""PickScore: which picture people would pick for a prompt, learnt from half a million choices (Kirstain 2023).

    score = 1 / (1 + exp(-(PickScore - centre) / width)),  PickScore = exp(logit_scale) x cosine, about 17 to 24

The model was trained so that people pick picture A over B with probability 1 / (1 + exp(B - A)) of their PickScores.
With `width` 1 the score is therefore a chance: that this picture is picked over one for the same prompt at `centre`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from milr import hub
from milr.critics.base import Critic
from milr.critics.clip import Clip
from milr.critics.local.models import ModelSettings
from milr.drafts import Score, Task
from milr.settings import setting

if TYPE_CHECKING:
    from PIL.Image import Image

    from milr.backbones.base import Backbone

NAME = "pickscore"
SUMMARY = "PickScore: the chance that people pick this picture over a usual one for its prompt"
NEEDS_BACKBONE = False
MODELS = {"yuvalkirstain/PickScore_v1": 3_944_517_836}


@dataclass(frozen=True)
class PickScoreSettings(ModelSettings):
    """Settings of `pickscore`."""

    model: str = setting("yuvalkirstain/PickScore_v1", "hub id or folder of the weights")
    processor: str = setting("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "hub id or folder of tokenizer and picture sizes")
    centre: float = setting(21.0, "PickScore that counts as 0.5: about what a good model of 2022 draws")
    width: float = setting(1.0, "PickScores for one step of the logistic; 1: the model's own odds", low=0.01, high=100)


class PickScoreCritic:
    """Score = chance of being picked over a picture of PickScore `centre`."""

    name = NAME

    def __init__(self, settings: PickScoreSettings) -> None:
        self._settings = settings
        self._clip = Clip(settings.model, settings, settings.processor)

    def score(self, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
        """Never abstains; says where a prompt was too long to be read whole."""
        return [
            Score(chance(near.logit, self._settings.centre, self._settings.width), reason=near.note)
            for near in self._clip.compare(images, [task.prompt for task in tasks])
        ]


def chance(pickscore: float, centre: float, width: float) -> float:
    """The logistic, without overflow at either end."""
    return 0.5 * (1 + math.tanh((pickscore - centre) / (2 * width)))


def content(settings: PickScoreSettings) -> Mapping[str, str]:
    """Tokenizer and picture sizes, which do not lie beside the weights."""
    return {settings.processor: hub.content_of(settings.processor)}


def make(backbone: Backbone | None, settings: PickScoreSettings) -> Critic:
    """The critic, with its weights loaded."""
    return PickScoreCritic(settings)


SETTINGS = PickScoreSettings
