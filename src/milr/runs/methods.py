"""Methods that are compared: a search with a preset and settings, under a name that results call it by.

Knows the list of searches; imports one only to find out what settings a method comes to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from milr import registry
from milr.drafts import UserError

if TYPE_CHECKING:
    from milr.searches.base import LooksAtBudget

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


def settings_of(method: Method) -> tuple[Any, Any]:
    """The module of the method's search, and the settings that its preset and words come to. UserError where a name or
    a number is wrong."""
    from milr.settings import find_preset, settings_from

    module = registry.load(registry.find("search", method.search))
    preset = None if method.preset is None else find_preset(module.PRESETS, method.preset)
    return module, settings_from(module.SETTINGS, preset, dict(method.settings))


def looks_at_budget(method: Method) -> LooksAtBudget:
    """Whether its drafts, or the one it returns, depend on the budget (see `milr.searches.base.LooksAtBudget`). ''
    where the search does not say, or is not installed here (a run of another machine)."""
    try:
        module, settings = settings_of(method)
    except UserError:
        return ""
    says = getattr(module, "looks_at_budget", None)
    found: LooksAtBudget = says(settings) if says is not None else ""
    return found


def width_of(method: Method) -> int:
    """How many drafts it asks for at a time; 1 where its search does not say, or is not installed here."""
    try:
        _, settings = settings_of(method)
    except UserError:
        return 1
    return int(getattr(settings, "width", 1))


def without_twins(methods: Sequence[Method], baseline: str | None = None) -> tuple[tuple[Method, ...], list[str]]:
    """The methods without those that come to the same search with the same settings as another, and a sentence about
    each that was left out: a method compared with itself says nothing and costs as much again.

    The first of them stays, unless another one is called by name as the baseline.
    """
    groups: list[tuple[Any, Any, list[Method]]] = []
    for method in methods:
        module, settings = settings_of(method)
        same = next((twins for of, its, twins in groups if of is module and its == settings), None)
        if same is None:
            groups.append((module, settings, [method]))
        else:
            same.append(method)
    kept, said = [], []
    for _, _, twins in groups:
        one = next((method for method in twins if method.name == baseline), twins[0])
        kept.append(one)
        said += [
            f"'{other.name}' is the same search with the same settings as '{one.name}': it is run once, as '{one.name}'"
            for other in twins
            if other is not one
        ]
    return tuple(kept), said
