"""How a critic is asked for: NAME, NAME:WORD, NAME,SETTING=VALUE,..., mix:0.5*A+0.5*B, or the address of a service.

    geneval                                  as it is
    judge:wise,model=gpt-4o                  the word after a colon is the value of the setting that the critic TAKES
    mix:0.5*geneval+0.5*[clip,dtype=float32] a formula of critics; those with settings stand in brackets
    http://127.0.0.1:9000                    a critic that runs elsewhere ('milr critic serve')

The text is the critic's name in every result, so two results under one name mean the same thing. Addresses and keys
that a user must not see in a result belong into environment variables, which settings name.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from milr import hub, registry
from milr.critics.base import NOWHERE, Critic, Place, Secret
from milr.drafts import UserError

if TYPE_CHECKING:
    from milr.backbones.base import Backbone

SERVICE = "service"  # the critic that an address means


@dataclass(frozen=True)
class Named:
    """A critic as a user asked for it: its part is there; its settings are text that nobody has checked yet."""

    text: str
    part: registry.Part
    settings: Mapping[str, str]

    @property
    def name(self) -> str:
        return self.text


def find(text: str) -> Named:
    """The part and the settings that a text names. Raises UserError; imports nothing."""
    text = text.strip()
    if re.match(r"https?://", text):
        return Named(text, registry.find("critic", SERVICE), {"url": text})
    head, *pairs = split_outside_brackets(text, ",")
    name, colon, word = head.partition(":")
    part = registry.find("critic", name)
    settings: dict[str, str] = {}
    if part.takes == "formula":  # the rest is one formula, commas and all
        word, pairs = text.partition(":")[2], []
    if colon and part.takes is None:
        raise UserError(f"The critic '{name}' takes no word after a colon; write {name},SETTING=VALUE for a setting.")
    if colon and part.takes is not None:
        settings[part.takes] = word
    for pair in pairs:
        setting, equals, value = pair.partition("=")
        if not equals or not setting.strip():
            raise UserError(f"'{registry.shorten(pair)}' in '{registry.shorten(text)}' is not SETTING=VALUE.")
        settings[setting.strip()] = value.strip()
    return Named(text, part, settings)


def settings_of(named: Named) -> Any:
    """The checked settings of a critic, None for one that has none. Imports the critic's file, but no model."""
    from milr.settings import settings_from

    module = registry.load(named.part)
    kind = getattr(module, "SETTINGS", None)
    if kind is not None:
        return settings_from(kind, None, named.settings)
    if named.settings:
        raise UserError(f"The critic '{named.part.name}' has no settings; write just its name.")
    return None


def make(critic: str | Named, backbone: Backbone | None, place: Place = NOWHERE) -> Critic:
    """The critic, loaded and told where it works. Raises UserError for whatever the user can put right."""
    named = find(critic) if isinstance(critic, str) else critic
    settings = settings_of(named)
    module = registry.load(named.part)
    made: Critic = module.make(backbone) if settings is None else module.make(backbone, settings)
    if named.settings:  # then the part's own name does not say which critic this is
        made.name = named.text
    setattr(made, "content", content_of(named.text))  # noqa: B010 - not every critic has one, see `milr.critics.base.content_of`
    settle = getattr(made, "settle", None)
    if settle is not None:
        settle(place)
    return made


def stands_alone(critic: str | Named) -> bool:
    """Whether a critic needs no model at all: neither the one that draws (`self`) nor one of its own."""
    named = find(critic) if isinstance(critic, str) else critic
    module = registry.load(named.part)
    components = getattr(module, "components", None)
    if components is not None:  # a mix is as needy as its parts
        return all(stands_alone(one) for one in components(settings_of(named)))
    return not getattr(module, "NEEDS_BACKBONE", True) and not getattr(module, "MODELS", None)


def waits(critic: str | Named) -> bool:
    """Whether a critic only waits for a server, so that one of it can serve many at once (a mix: every part of it)."""
    named = find(critic) if isinstance(critic, str) else critic
    module = registry.load(named.part)
    if hasattr(module, "components"):
        return all(waits(one) for one in module.components(settings_of(named)))
    return bool(getattr(module, "WAITS", False))


def models_of(critic: str | Named) -> Mapping[str, int]:
    """Hub repositories whose weights a critic loads with its settings, with their bytes (0: nobody here knows); of a
    mix, those of its parts."""
    named = find(critic) if isinstance(critic, str) else critic
    module, settings = registry.load(named.part), settings_of(named)
    published, loads = getattr(module, "MODELS", {}), getattr(settings, "loads", None)
    found: dict[str, int] = dict(published if loads is None else loads(published))
    for one in module.components(settings) if hasattr(module, "components") else ():
        found.update(models_of(one))
    return found


def secrets_of(critic: str | Named) -> list[Secret]:
    """The variables of the environment that a critic would send away; of a mix, those of its parts. Nothing is sent."""
    named = find(critic) if isinstance(critic, str) else critic
    module, settings = registry.load(named.part), settings_of(named)
    found = list(settings.secrets()) if hasattr(settings, "secrets") else []
    for one in module.components(settings) if hasattr(module, "components") else ():
        found += secrets_of(one)
    return found


def prices_of(critic: str | Named) -> list[tuple[float | None, float | None]]:
    """Of every judge over HTTP that a verdict asks (a mix: of its parts) the US dollars per million tokens read and
    written, None where nobody said. Nothing is sent."""
    named = find(critic) if isinstance(critic, str) else critic
    module, settings = registry.load(named.part), settings_of(named)
    prices = settings.prices() if hasattr(settings, "prices") else None
    found = [] if prices is None else [prices]
    for one in module.components(settings) if hasattr(module, "components") else ():
        found += prices_of(one)
    return found


def content_of(critic: str | Named) -> str:
    """A short hash of what lies outside a critic's name and decides its verdicts: a rubric's text, a head's numbers, a
    folder's weights, the commit of a hub repository, the version of another package; of a mix, that of its parts.

    '' where the name says all, or nobody here can know (what answers at an address, what the drawing model is).
    Loads no model. Raises UserError for a wrong name, and for a file that cannot be read.
    """
    found = _outside(find(critic) if isinstance(critic, str) else critic)
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16] if found else ""


def _outside(named: Named) -> dict[str, str]:
    """What `content_of` hashes, by what it is."""
    module, settings = registry.load(named.part), settings_of(named)
    found = dict(module.content(settings)) if hasattr(module, "content") else {}
    if hasattr(settings, "models"):
        found |= {name: hub.content_of(name) for name in settings.models(getattr(module, "MODELS", {}))}
    if named.part.entry_point is not None and (dist := named.part.entry_point.dist) is not None:
        found[named.part.origin] = dist.version
    for one in module.components(settings) if hasattr(module, "components") else ():
        found[one] = content_of(one)
    return {what: content for what, content in found.items() if content}


def split_outside_brackets(text: str, sign: str) -> list[str]:
    """`text.split(sign)`, but not inside () or []. Raises UserError where brackets do not match."""
    found, depth, start = [], 0, 0
    for position, letter in enumerate(text):
        depth += (letter in "([") - (letter in ")]")
        if depth < 0:
            break
        if letter == sign and depth == 0:
            found.append(text[start:position])
            start = position + 1
    if depth != 0:
        raise UserError(f"The brackets in '{registry.shorten(text)}' do not match.")
    return [*found, text[start:]]
