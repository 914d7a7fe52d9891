"""A head on the frozen model's own states: the model looks as `self` does, but a verdict is learned, not spoken.

    score = sigmoid(w . h + b)

h is the final hidden state from which the model would answer 'Does this picture show <prompt>?'; w and b were fitted to
an oracle's verdicts on the model's own drafts (`milr lab train-critic`). One forward pass, as for `self`. The head that
comes with milr is for the embedded model; `learned:FILE` takes another one, for any model of its width.
"""

from __future__ import annotations

import hashlib
import importlib.resources
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from milr.critics.base import Critic, check_sees
from milr.critics.self_critic import question
from milr.drafts import Score, Task, UserError
from milr.settings import check, setting

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from milr.backbones.base import Backbone

NAME = "learned"
SUMMARY = "A head on the model's own hidden states, fitted to an oracle's verdicts; comes fitted for the lab model"
TAKES = "head"


@dataclass(frozen=True)
class Learned:
    """Settings of `learned`."""

    head: str = setting("", "file that 'milr lab train-critic' wrote (.safetensors); empty: the lab model's")

    def __post_init__(self) -> None:
        check(self)


class LearnedCritic:
    """Score = P(right) of the head for the backbone's states."""

    name = NAME

    def __init__(self, backbone: Backbone, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self._backbone, self._weight, self._bias = backbone, weight, bias

    def score(self, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
        """One graded verdict for each image; never abstains."""
        states = self._backbone.understand(images, [question(task.prompt) for task in tasks])
        chances = (states.cpu() @ self._weight + self._bias).sigmoid()
        return [Score(float(chance)) for chance in chances]


def content(settings: Learned) -> Mapping[str, str]:
    """The head's numbers, also of the one that comes with milr: it may be fitted anew."""
    try:
        return {"head": hashlib.sha256(_file(settings).read_bytes()).hexdigest()}
    except OSError as error:
        raise UserError(f"Cannot read the head {_file(settings)} ({error.strerror}).") from error


def make(backbone: Backbone, settings: Learned) -> Critic:
    """The critic. Raises UserError where the head is not there or not for this model."""
    weight, bias = read_head(_file(settings))
    check_sees(backbone, NAME)
    if len(weight) != backbone.info.hidden_size:
        raise UserError(
            f"The head of '{NAME}' reads states of {len(weight)} numbers, those of {backbone.info.name} have "
            f"{backbone.info.hidden_size}; train one for this model with 'milr lab train-critic' and name it: "
            f"{NAME}:FILE."
        )
    return LearnedCritic(backbone, weight, bias)


def _file(settings: Learned) -> Path:
    return Path(settings.head) if settings.head else shipped_head()


def shipped_head() -> Path:
    """The head for the embedded model."""
    return Path(str(importlib.resources.files("milr.lab") / "critic.safetensors"))


def read_head(file: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """w [D] and b [] of a head. Raises UserError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
        return tensors["weight"].float(), tensors["bias"].float()
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{file} is no head of '{NAME}'; give a file that 'milr lab train-critic' wrote.") from error


SETTINGS = Learned
