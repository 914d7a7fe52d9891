"""The model judges its own picture (the paper's SelfReward), in one of two forms.

    self         P(yes) of its understanding path: graded, one forward pass, cannot fail to parse
    self:json    as the paper's code asks: a verdict in strict JSON, written out; Score 0 is right, -1 is wrong

A verdict that is no such JSON is an abstention here; the paper's code counts it as wrong, which a search then learns
from. The paper found self-reward weak on counting.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from milr.critics.base import LEAST_SHARE, Critic, abstain, believed, check_sees
from milr.drafts import Score, Task, UserError
from milr.registry import shorten
from milr.settings import check, setting

if TYPE_CHECKING:
    from PIL.Image import Image

    from milr.backbones.base import Backbone

NAME = "self"
SUMMARY = "The model's own answer, P(yes), to whether its picture shows the prompt; self:json: a verdict in JSON"
TAKES = "form"

_REQUEST = (
    "This picture was drawn for the caption {caption}.\n"
    "Look for everything that the caption names: is each object there and as often as it says, in the right colour, "
    "and in the right place towards the others? Say first what you see, then compare it with the caption.\n"
    'Answer with one JSON object and nothing else. It has three keys: "Thought" (what you see and how it compares), '
    '"Score" (0 if all of the caption is right, otherwise -1) and "Reason" (what is wrong; empty if Score is 0). '
    "For example:\n"
    '{{"Thought": "One dog lies on a sofa, as the caption says.", "Score": 0, "Reason": ""}}\n'
    '{{"Thought": "There are three dogs, and the caption asks for one.", "Score": -1, "Reason": "two dogs too many"}}'
)


@dataclass(frozen=True)
class SelfSettings:
    """Settings of `self`."""

    form: Literal["yes", "json"] = setting("yes", "yes: P(yes) of a question; json: the paper's verdict in strict JSON")
    least_share: float = setting(
        LEAST_SHARE,
        "of the probability that yes and no must hold together, else it abstains",
        low=0,
        high=1,
    )
    max_tokens: int = setting(128, "longest verdict of the form json (the paper's code: 128)", low=1, high=4096)

    def __post_init__(self) -> None:
        check(self)


class SelfCritic:
    """Score = P(yes) of the backbone's understanding path for 'Does this picture show <prompt>?'."""

    name = NAME

    def __init__(self, backbone: Backbone, least_share: float = LEAST_SHARE) -> None:
        self._backbone, self._least_share = backbone, least_share

    def score(self, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
        """One graded answer for each image; abstains where the model answers neither yes nor no."""
        asked = [question(task.prompt) for task in tasks]
        return [
            abstain(why) if value is None else Score(value)
            for value, why in answers(self._backbone, images, asked, self._least_share)
        ]


class JsonSelfCritic:
    """Score = 1 + the verdict that the backbone writes: 0 (right) or -1 (wrong), or a number between."""

    name = NAME

    def __init__(self, backbone: Backbone, max_tokens: int = 128) -> None:
        self._backbone, self._max_tokens = backbone, max_tokens

    def score(self, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
        """Abstains where the model writes anything but the JSON that it was asked for."""
        requests = [_REQUEST.format(caption=json.dumps(task.prompt.strip(), ensure_ascii=False)) for task in tasks]
        return [read_verdict(text) for text in self._backbone.describe(images, requests, self._max_tokens)]


def answers(
    backbone: Backbone, images: Sequence[Image], questions: Sequence[str], least_share: float = LEAST_SHARE
) -> list[tuple[float | None, str]]:
    """P(yes) of a backbone for a question about each image, or None and why there is none. A backbone that does not
    tell how much yes and no hold (`answer_and_share`) is believed."""
    tells = getattr(backbone, "answer_and_share", None)
    if tells is None:
        return [(chance, "") for chance in backbone.answer(images, questions)]
    return [believed(chance, held, least_share) for chance, held in tells(images, questions)]


def question(prompt: str) -> str:
    """The question about a whole prompt, in the words that the lab model has learnt."""
    return f"Does this picture show {prompt.strip().rstrip('.?!')}?"


def read_verdict(text: str) -> Score:
    """The verdict in a reply that is one JSON object with a Score from -1 to 0; else an abstention."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        return Score(None, reason=f"the model's verdict is no JSON object: {shorten(text) or 'it is empty'}")
    said: Any = found.get("Score")
    reason = found.get("Reason")
    if type(said) not in (int, float) or not -1 <= said <= 0:  # NaN is in no range
        return Score(None, reason=f"the model's verdict has the Score {shorten(repr(said))}, which is not from -1 to 0")
    return Score(1.0 + said, reason=shorten(reason, 200) if isinstance(reason, str) else "")


def make(backbone: Backbone | None, settings: SelfSettings) -> Critic:
    """The critic that asks this backbone. Raises UserError where there is none, or it cannot write."""
    if backbone is None:
        raise UserError("The critic 'self' asks the model that draws, and there is none here.")
    check_sees(backbone, NAME)
    if settings.form == "yes":
        return SelfCritic(backbone, settings.least_share)
    if not hasattr(backbone, "describe"):
        raise UserError(f"{backbone.info.name} cannot write about a picture, so 'self:json' cannot ask it; use 'self'.")
    return JsonSelfCritic(backbone, settings.max_tokens)


SETTINGS = SelfSettings
