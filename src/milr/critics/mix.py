"""A formula of critics: weighted mean, least, product, or a gate that must be passed first.

    mix:0.5*geneval+0.5*clip            weighted mean; the weights are divided by their sum
    mix:min(geneval,clip)               the lowest
    mix:product(geneval,clip)           the product
    mix:gate(geneval>=0.8,clip)         below the bar the first; from there on, bar + (1 - bar) x the second

A critic with settings stands in brackets: mix:0.5*[judge:general,model=gpt-4o]+0.5*ocr. Where one part abstains, so
does the mix: a mean over fewer parts would be another reward.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from milr.critics import naming
from milr.critics.base import Critic, Place, hurry, judge, mean, waits
from milr.drafts import Score, Task, UserError
from milr.registry import shorten
from milr.settings import check, setting

if TYPE_CHECKING:
    from PIL.Image import Image

    from milr.backbones.base import Backbone

NAME = "mix"
SUMMARY = "A formula of critics: mix:0.5*A+0.5*B, mix:min(A,B), mix:product(A,B), mix:gate(A>=0.8,B)"
TAKES = "formula"
FORMS = ("min", "product", "gate")


@dataclass(frozen=True)
class Mix:
    """Settings of `mix`."""

    formula: str = setting("", "weighted sum W*A+W*B, min(A,B), product(A,B) or gate(A>=BAR,B)")

    def __post_init__(self) -> None:
        check(self)
        if self.formula:
            read(self.formula)


@dataclass(frozen=True)
class Formula:
    """`form` is 'mean', 'min', 'product' or 'gate'; one weight a part, as written (of a gate, the bar and 1)."""

    form: str
    parts: tuple[str, ...]
    weights: tuple[float, ...]

    def value(self, values: Sequence[float]) -> float:
        """The mix of one value in [0, 1] a part; in [0, 1] itself."""
        if self.form == "min":
            return min(values)
        if self.form == "product":
            return math.prod(values)
        if self.form == "gate":
            bar = self.weights[0]
            return mean((1.0, values[1]), (bar, 1 - bar)) if values[0] >= bar else values[0]
        return mean(values, self.weights)


def read(formula: str) -> Formula:
    """The formula in a text. Raises UserError with what is wrong; finds every critic that it names."""
    call = re.fullmatch(r"\s*(\w+)\((.*)\)\s*", formula, re.DOTALL)
    if call and call[1] in FORMS:
        inside = [part.strip() for part in naming.split_outside_brackets(call[2], ",")]
        if call[1] == "gate":
            return _gate(formula, inside)
        parts = tuple(_critic(part, formula) for part in inside)
        if len(parts) < 2:
            raise UserError(f"'{shorten(formula)}' has one critic; {call[1]} takes two or more, with commas between.")
        return Formula(call[1], parts, (1.0,) * len(parts))
    weights, names = [], []
    terms = naming.split_outside_brackets(formula, "+")
    if len(terms) < 2:
        raise UserError(
            f"'{shorten(formula)}' is no formula of critics; write e.g. mix:0.5*geneval+0.5*clip, mix:min(A,B), "
            "mix:product(A,B) or mix:gate(A>=0.8,B)."
        )
    for term in terms:
        number, star, name = term.partition("*")
        weights.append(_number(number, formula) if star else 1.0)
        names.append(_critic(name if star else term, formula))
    if not max(weights) > 0 or min(weights) < 0:
        raise UserError(f"The weights in '{shorten(formula)}' must be positive numbers.")
    return Formula("mean", tuple(names), tuple(weights))


def components(settings: Mix) -> tuple[str, ...]:
    """The critics that a mix is made of."""
    return read(settings.formula).parts


class MixCritic:
    """Asks every part once a batch. Its checks are those of all parts, so what is wrong can still be repaired."""

    def __init__(self, formula: Formula, parts: Sequence[Critic], name: str = NAME) -> None:
        self.name, self.formula, self.parts = name, formula, tuple(parts)

    def score(self, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
        """Abstains where a part does."""
        judged = [judge(part, images, tasks) for part in self.parts]
        return [self._mix(scores) for scores in zip(*judged, strict=True)]

    def why_not(self, prompt: str) -> str | None:
        """The first reason of a part."""
        asked = (why(prompt) for part in self.parts if (why := getattr(part, "why_not", None)) is not None)
        return next((reason for reason in asked if reason is not None), None)

    @property
    def waits(self) -> bool:
        """Whether every part only waits for a server."""
        return all(map(waits, self.parts))

    def hurry(self) -> None:
        for part in self.parts:
            hurry(part)

    def settle(self, place: Place) -> None:
        for part in self.parts:
            if (settle := getattr(part, "settle", None)) is not None:
                settle(place)

    def _mix(self, scores: Sequence[Score]) -> Score:
        checks = tuple(check for score in scores for check in score.checks)
        values = [score.value for score in scores]
        missing = [
            f"{part.name}: {score.reason or 'no reason given'}"
            for part, score in zip(self.parts, scores, strict=True)
            if score.value is None
        ]
        if missing:
            # A part that abstains for good would do so again when the other one is back.
            outage = all(score.outage for score in scores if score.value is None)
            return Score(None, checks, f"a part of the mix abstained ({'; '.join(missing)})", outage)
        known = [value for value in values if value is not None]
        said = ", ".join(f"{part.name} {value:.2f}" for part, value in zip(self.parts, known, strict=True))
        return Score(self.formula.value(known), checks, said)


def make(backbone: Backbone | None, settings: Mix) -> Critic:
    """The mix, with its parts loaded. `settle` reaches them through it."""
    formula = read(settings.formula)
    return MixCritic(formula, [naming.make(part, backbone) for part in formula.parts], f"{NAME}:{settings.formula}")


def _gate(formula: str, inside: Sequence[str]) -> Formula:
    match = re.fullmatch(r"(.+)>=\s*([^>=]+)", inside[0]) if len(inside) == 2 else None
    if match is None:
        raise UserError(f"'{shorten(formula)}' is no gate; write gate(A>=BAR,B), e.g. gate(geneval>=0.8,clip).")
    bar = _number(match[2], formula)
    if not 0 < bar <= 1:
        raise UserError(f"The bar of a gate lies above 0 and up to 1, not at {bar:g}.")
    return Formula("gate", (_critic(match[1], formula), _critic(inside[1], formula)), (bar, 1.0))


def _critic(text: str, formula: str) -> str:
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1].strip()
    if not text:
        raise UserError(f"The name of a critic is missing in '{shorten(formula)}'.")
    named = naming.find(text)
    naming.settings_of(named)
    return named.text


def _number(text: str, formula: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"'{shorten(text)}' in '{shorten(formula)}' is no number.")
    return value


SETTINGS = Mix
