"""VQAScore: P(yes) of a vision-language model to whether the picture shows the prompt (Lin 2024), or to each of a
task's own questions (as GenEval2's Soft-TIFA does).

    P = mass on yes, Yes, " yes", " Yes" / (that + the same for no), at the first token of the answer

An abstention where both together hold less than `least_share`: then the answer begins with something else.

A task whose metadata has `checks` (questions whose answer is yes for a right picture, as in milr's prompt packs) is
asked those; their geometric mean is the score, so that one clear no is not made good by many a yes. Any other task is
asked about its whole prompt; with `parts` also about each thing that the prompt lists.

The model runs here, or behind a server (`url`), or is the one that draws (`model=backbone`).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from milr.critics import self_critic
from milr.critics.base import LEAST_SHARE, Critic, Outage, Place, abstain, check_sees
from milr.critics.base import mean as mean_of
from milr.critics.local.models import ModelSettings
from milr.critics.remote.chat import Chat, ChatSettings
from milr.drafts import Check, Score, Task, UserError
from milr.settings import setting

if TYPE_CHECKING:
    from PIL.Image import Image

    from milr.backbones.base import Backbone

NAME = "vqa-score"
SUMMARY = "P(yes) of any vision-language model to the whole prompt, or to each of a task's own questions"
NEEDS_BACKBONE = False
MODELS = {"Qwen/Qwen2.5-VL-3B-Instruct": 7_509_245_952}
BACKBONE = "backbone"

Answers = list[tuple[float | None, str]]  # P(yes), or None and why there is none
Ask = Callable[[Sequence["Image"], Sequence[str]], Answers]


@dataclass(frozen=True)
class VqaSettings(ModelSettings, ChatSettings):
    """Settings of `vqa-score`: those of a model here, and those of a server."""

    model: str = setting(
        "Qwen/Qwen2.5-VL-3B-Instruct", "hub id or folder; with url the server's name of it; backbone: what draws"
    )
    url: str = setting("", "OpenAI-compatible server, or $NAME: an environment variable with it; empty: runs here")
    mean: Literal["geometric", "arithmetic", "least"] = setting("geometric", "how several answers become one score")
    parts: bool = setting(False, "ask also about each thing that a prompt without checks lists (a fox and two birds)")

    least_share: float = setting(
        LEAST_SHARE, "of the probability that yes and no must hold together; below, it abstains", low=0, high=1
    )

    def __post_init__(self) -> None:
        if self.url:
            ChatSettings.__post_init__(self)
        ChatSettings(key=self.key)  # no key may stand in a critic's name, whether it is used or not
        ModelSettings.__post_init__(self)
        if self.url and self.model == BACKBONE:
            raise UserError(f"model={BACKBONE} is the model that draws here; leave out either it or the url.")

    @property
    def asks_backbone(self) -> bool:
        return self.model == BACKBONE

    def models(self, published: Mapping[str, int]) -> Sequence[str]:
        """None where a server or the drawing model does the work."""
        return [] if self.url or self.asks_backbone else super().models(published)


class VqaCritic:
    """Asks every question about every picture, all in one go."""

    name = NAME

    def __init__(self, ask: Ask, settings: VqaSettings, chat: Chat | None = None) -> None:
        self._ask, self._settings, self._chat = ask, settings, chat
        self.waits = chat is not None  # for a server; else it takes a device

    def score(self, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
        """Abstains where the model does not answer one of a task's questions."""
        asked = [questions(task, self._settings) for task in tasks]
        shown = [image for image, some in zip(images, asked, strict=True) for _ in some]
        answers = iter(self._ask(shown, [question for some in asked for question, _ in some]))
        return [_score(some, [next(answers) for _ in some], self._settings.mean) for some in asked]

    def hurry(self) -> None:
        if self._chat is not None:
            self._chat.hurry()

    def settle(self, place: Place) -> None:
        if self._chat is not None:
            self._chat.settle(place)


def questions(task: Task, settings: VqaSettings) -> list[tuple[str, str]]:
    """What a task is asked, each as it goes to the model and as a report shows it."""
    own = task.metadata.get("checks")
    prompt = task.prompt.strip()
    closing = "" if settings.asks_backbone else " Answer the question with Yes or No."  # a backbone adds its own
    if isinstance(own, (list, tuple)) and own and all(isinstance(one, str) for one in own):
        return [(one + closing, one) for one in own]
    whole = self_critic.question(prompt) if settings.asks_backbone else f'Does this image show "{prompt}"?'
    some = [whole, *(things(prompt) if settings.parts else ())]
    return [(one + closing, one) for one in some]


_OPENING = re.compile(
    r"^(?:(?:can|could) you |please |i would like |show me |draw |paint |make |create )*"
    r"(?:an? (?:\w+ )?(?:photo|picture|image|drawing|painting|scene) (?:of|with) )?",
    re.IGNORECASE,
)
_BETWEEN = re.compile(r", and |, | and | together with | with ", re.IGNORECASE)
_ONE = re.compile(r"(?:an?|the|(?:exactly )?(?:one|1)) ", re.IGNORECASE)
_SEVERAL = re.compile(r"(?:exactly )?(?:\d+|two|three|four|five|six|seven|eight|nine|ten) ", re.IGNORECASE)


def things(prompt: str) -> list[str]:
    """A question about each thing of a prompt that lists some: 'a red fox and two birds'. Of any other, none."""
    plain = re.sub(r",? please$", "", prompt.strip().rstrip(".?!"), flags=re.IGNORECASE)
    listed = [part.strip() for part in _BETWEEN.split(_OPENING.sub("", plain))]
    verbs = ["Is" if _ONE.match(part) else "Are" if _SEVERAL.match(part) else "" for part in listed]
    if len(listed) < 2 or not all(verbs):  # what begins otherwise ('white cat' of 'a black and white cat') is no thing
        return []
    return [f"{verb} there {part}?" for verb, part in zip(verbs, listed, strict=True)]


def combine(chances: Sequence[float], mean: str) -> float:
    """One score of several answers."""
    if mean == "least":
        return min(chances)
    if mean == "arithmetic":
        return mean_of(chances)
    if min(chances) <= 0:
        return 0.0
    return math.exp(math.fsum(map(math.log, chances)) / len(chances))  # a product of many would underflow


def _score(asked: Sequence[tuple[str, str]], answers: Answers, mean: str) -> Score:
    chances = [chance for chance, _ in answers if chance is not None]
    checks = tuple(
        Check(f"{shown} (P(yes) {chance:.2f})", chance >= 0.5)
        for (_, shown), (chance, _) in zip(asked, answers, strict=True)
        if chance is not None
    )
    if len(chances) < len(answers):
        reasons = [reason for chance, reason in answers if chance is None]
        lasting = [reason for reason in reasons if not isinstance(reason, Outage)]
        return abstain((lasting or reasons)[0], checks)
    # One question about the whole says no more than its number.
    return Score(combine(chances, mean), checks if len(checks) > 1 else ())


def make(backbone: Backbone | None, settings: VqaSettings) -> Critic:
    """The critic, with its model loaded or its server known."""
    if settings.url:
        chat = Chat(settings)
        return VqaCritic(functools.partial(chat.yes_probabilities, least_share=settings.least_share), settings, chat)
    if not settings.asks_backbone:
        from milr.critics.local.vlm import VisionLanguageModel

        model = VisionLanguageModel(settings.model, settings)
        return VqaCritic(functools.partial(model.yes_probabilities, least_share=settings.least_share), settings)
    if backbone is None:
        raise UserError(f"vqa-score,model={BACKBONE} asks the model that draws, and there is none here.")
    check_sees(backbone, NAME)
    asks = functools.partial(self_critic.answers, backbone, least_share=settings.least_share)
    return VqaCritic(asks, settings)


SETTINGS = VqaSettings
