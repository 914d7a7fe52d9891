"""UnifiedReward: a vision-language model taught to grade pictures from 1 to 5 (Wang 2025; the paper's third critic).

    unified-reward       UnifiedReward-qwen-7b: names each element as there or not, then 'Final Score: 4.5'
    unified-reward:2.0   UnifiedReward-2.0-qwen-7b: three lines, Alignment, Coherence and Style Score (1-5)

    score = (grade - 1) / 4;  of 2.0, the grade is the mean of the three, or one of them

Asked in the words that the models were taught with (from the project's MIT-licensed code: they answer in form only to
these), greedily, for at most 512 tokens. A reply without a grade from 1 to 5 is an abstention. The model runs here, or
behind a server (`url`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from milr.critics.base import Critic, Place, abstain, mean
from milr.critics.local.models import ModelSettings
from milr.critics.remote.chat import Chat, ChatSettings, Question
from milr.drafts import Check, Score, Task
from milr.registry import shorten
from milr.settings import setting

if TYPE_CHECKING:
    from PIL.Image import Image

    from milr.backbones.base import Backbone

NAME = "unified-reward"
SUMMARY = "UnifiedReward 7B grades match and quality from 1 to 5, here or on a server; unified-reward:2.0 the newer one"
NEEDS_BACKBONE = False
MODELS = {"CodeGoat24/UnifiedReward-qwen-7b": 16_584_333_312, "CodeGoat24/UnifiedReward-2.0-qwen-7b": 16_584_333_312}
TAKES = "version"
PUBLISHED = {"1": "CodeGoat24/UnifiedReward-qwen-7b", "2.0": "CodeGoat24/UnifiedReward-2.0-qwen-7b"}
ASPECTS = ("alignment", "coherence", "style")

_REQUESTS = {
    "1": (
        "You are given a text caption and a generated image based on that caption. Your task is to evaluate this image "
        "based on two key criteria:\n"
        "1. Alignment with the Caption: Assess how well this image aligns with the provided caption. Consider the "
        "accuracy of depicted objects, their relationships, and attributes as described in the caption.\n"
        "2. Overall Image Quality: Examine the visual quality of this image, including clarity, detail preservation, "
        "color accuracy, and overall aesthetic appeal.\n"
        "Extract key elements from the provided text caption, evaluate their presence in the generated image using the "
        "format: 'element (type): value' (where value=0 means not generated, and value=1 means generated), and assign "
        "a score from 1 to 5 after 'Final Score:'.\n"
        "Your task is provided as follows:\nText Caption: [{prompt}]"
    ),
    "2.0": (
        "You are presented with a generated image and its associated text caption. Your task is to analyze the image "
        "across multiple dimensions in relation to the caption. Specifically:\n"
        "Provide overall assessments for the image along the following axes (each rated from 1 to 5):\n"
        "- Alignment Score: How well the image matches the caption in terms of content.\n"
        "- Coherence Score: How logically consistent the image is (absence of visual glitches, object distortions, "
        "etc.).\n"
        "- Style Score: How aesthetically appealing the image looks, regardless of caption accuracy.\n\n"
        "Output your evaluation using the format below:\n\n"
        "Alignment Score (1-5): X\nCoherence Score (1-5): Y\nStyle Score (1-5): Z\n\n"
        "Your task is provided as follows:\nText Caption: [{prompt}]"
    ),
}

# The replies to requests about images; None and the reason where there is none.
Write = Callable[[Sequence["Image"], Sequence[str]], list[tuple[str | None, str]]]


@dataclass(frozen=True)
class UnifiedRewardSettings(ModelSettings, ChatSettings):
    """Settings of `unified-reward`: those of a model here, and those of a server."""

    version: Literal["1", "2.0"] = setting("1", "which form the model was taught: 1 (the paper's) or 2.0")
    model: str = setting("", "hub id, folder or, with url, the server's name of it; empty: the published one")
    url: str = setting("", "OpenAI-compatible server, or $NAME: an environment variable with it; empty: runs here")
    max_tokens: int = setting(512, "longest reply", low=1, high=100_000)
    aspect: Literal["mean", "alignment", "coherence", "style"] = setting("mean", "of 2.0, which grade is the score")

    def __post_init__(self) -> None:
        if self.url:
            ChatSettings.__post_init__(self)
        ChatSettings(key=self.key)  # no key may stand in a critic's name, whether it is used or not
        ModelSettings.__post_init__(self)

    @property
    def named(self) -> str:
        """The model that is meant: a user's own, else the published one of the version."""
        return self.model or PUBLISHED[self.version]

    def models(self, published: Mapping[str, int]) -> Sequence[str]:
        """None where a server does the work."""
        return [] if self.url else [self.named]


class UnifiedRewardCritic:
    """Score = (grade - 1) / 4. Of version 1, each element that the reply names is a check."""

    name = NAME

    def __init__(self, write: Write, settings: UnifiedRewardSettings, chat: Chat | None = None) -> None:
        self._write, self._settings, self._chat = write, settings, chat
        self.waits = chat is not None  # for a server; else it takes a device

    def score(self, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
        """Abstains where there is no reply, or no grade in it."""
        request = _REQUESTS[self._settings.version]
        replies = self._write(images, [request.replace("{prompt}", task.prompt.strip()) for task in tasks])
        return [abstain(reason) if text is None else self._read(text) for text, reason in replies]

    def hurry(self) -> None:
        if self._chat is not None:
            self._chat.hurry()

    def settle(self, place: Place) -> None:
        if self._chat is not None:
            self._chat.settle(place)

    def _read(self, text: str) -> Score:
        return read_final(text) if self._settings.version == "1" else read_aspects(text, self._settings.aspect)


# A number from 1 to 5 right behind its label, perhaps as '[4.5]' or '4/5'. Not the beginning of anything else that
# means another grade: '45', '4.5.1', '4-5', '4 to 5', '4/10'.
_GRADE = re.compile(
    r"\[?(?P<grade>[1-5](?:\.\d+)?)(?![\d]|\.\d)\]?"
    r"(?!\s*(?:-|–|to\b)\s*\d)(?!\s*(?:/|out of\b)\s*(?!5(?:\.0+)?(?![\d.]*\d))\S)",
    re.IGNORECASE,
)
_ELEMENT = re.compile(
    r"^[ \t\-*•\d.)]{0,20}(?P<element>[^\n:]{1,100}?\([^()\n]{1,100}\))[ \t*]*:[ \t*]*(?P<value>[01])(?!\w|\.\d)",
    re.MULTILINE,
)


def read_final(text: str) -> Score:
    """The grade behind the last 'Final Score:' of a reply of version 1, with its elements as checks."""
    grade = _grade(text, r"final\s+score")
    checks = tuple(Check(found["element"].strip(" *"), found["value"] == "1") for found in _ELEMENT.finditer(text))
    if grade is None:
        return Score(None, checks, f"no 'Final Score' from 1 to 5 in the reply: {_end(text)}")
    return Score((grade - 1) / 4, checks, f"final score {grade:g}")


def read_aspects(text: str, aspect: str = "mean") -> Score:
    """The three grades of a reply of version 2.0: their mean, or the one that is asked for."""
    grades = {name: _grade(text, rf"{name}\s+score(?:[\s*]*\(\s*1\s*-\s*5\s*\))?") for name in ASPECTS}
    known = [grade for grade in grades.values() if grade is not None]
    if len(known) < len(ASPECTS):
        missing = ", ".join(name for name, grade in grades.items() if grade is None)
        return Score(None, reason=f"no grade from 1 to 5 for {missing} in the reply: {_end(text)}")
    said = ", ".join(f"{name} {grade:g}" for name, grade in zip(ASPECTS, known, strict=True))
    grade = mean(known) if aspect == "mean" else known[ASPECTS.index(aspect)]
    return Score((grade - 1) / 4, reason=said)


def make(backbone: Backbone | None, settings: UnifiedRewardSettings) -> Critic:
    """The critic, with its model loaded or its server known."""
    settings = replace(settings, model=settings.named)
    if settings.url:
        chat = Chat(settings)

        def ask(images: Sequence[Image], requests: Sequence[str]) -> list[tuple[str | None, str]]:
            replies = chat.ask([Question(text, image) for image, text in zip(images, requests, strict=True)])
            cut = sum(reply.fault == "cut" for reply in replies)
            why = chat.too_short(but_some=cut < len(replies)) if cut else ""
            return [(None, why) if reply.fault == "cut" else (reply.text, reply.why) for reply in replies]

        return UnifiedRewardCritic(ask, settings, chat)
    from milr.critics.local.vlm import VisionLanguageModel

    model = VisionLanguageModel(settings.model, settings)
    return UnifiedRewardCritic(lambda images, requests: model.write(images, requests, settings.max_tokens), settings)


def _grade(text: str, label: str) -> float | None:
    """The grade behind the last label, bold or not; None where what stands there is none."""
    labels = list(re.finditer(rf"{label}[\s*_`]*[:=][\s*_`]*", text, re.IGNORECASE))
    found = _GRADE.match(text, labels[-1].end()) if labels else None
    grade = float(found["grade"]) if found else None
    return grade if grade is not None and grade <= 5 else None


def _end(text: str) -> str:
    """Where a grade should have been, for a reason."""
    return f"'{shorten(text[-200:])}'" if text.strip() else "it is empty"


SETTINGS = UnifiedRewardSettings
