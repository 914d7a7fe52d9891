"""Methods that are compared: a search with a preset and settings, under a name that results call it by.

Knows the list of searches, imports none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from milr import registry
from milr.drafts import UserError

BASELINE = "best-of-n sampled text"


@dataclass(frozen=True)
class Method:
    """A search with a preset; `settings` win over it. `returns_last`: the user gets the last draft, not the best."""

    name: str
    search: str
    preset: str | None = None
    settings: tuple[tuple[str, str], ...] = ()
    returns_last: bool = False

    @property
    def spec(self) -> str:
        """SEARCH:PRESET,SETTING=VALUE,..."""
        preset = f":{self.preset}" if self.preset else ""
        return f"{self.search}{preset}" + "".join(f",{name}={value}" for name, value in self.settings)


METHODS = (
    Method("single", "single"),
    Method("best-of-n greedy text", "best-of-n", "greedy-text"),
    Method(BASELINE, "best-of-n", "sampled-text"),
    Method("milr paper", "milr", "paper"),
    Method("milr official", "milr", "official", returns_last=True),
    Method("milr text only", "milr", "text-only"),
    Method("milr image only", "milr", "image-only"),
    Method("repair", "repair"),
)


def choose_methods(texts: Sequence[str]) -> tuple[Method, ...]:
    """Methods as a user writes them: the name of a usual one, or [LABEL=]SEARCH[:PRESET][,SETTING=VALUE]..."""
    methods = tuple(_method_of(text) for text in texts)
    names = [method.name for method in methods]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"Two methods are called '{twice}'; put LABEL= before one of them.")
    return methods


def _method_of(text: str) -> Method:
    usual = {method.name: method for method in METHODS}
    if text in usual:
        return usual[text]
    head, *pairs = text.split(",")
    label, equals, called = head.rpartition("=")
    search, _, preset = called.partition(":")
    names = [part.name for part in registry.parts("search")]
    if search not in names:
        raise UserError(
            f"Unknown method '{registry.shorten(text)}'.{registry.did_you_mean(search, [*usual, *names])} "
            "Write SEARCH, SEARCH:PRESET or LABEL=SEARCH:PRESET,SETTING=VALUE."
        )
    settings = tuple((name.strip(), value.strip()) for name, _, value in (pair.partition("=") for pair in pairs))
    returned = dict(settings).get("returned", "last" if preset == "official" else "best")
    returns_last = search == "milr" and returned == "last"
    return Method(label if equals else text, search, preset or None, settings, returns_last)
