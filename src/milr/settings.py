"""How the settings of a search are declared, checked and read from text.

A settings class is a frozen dataclass whose fields are made with `setting`: default, meaning, allowed range.
From this one declaration come the checks, `--set name=value`, the help of the command and the form in the
studio. This file knows no search and loads no heavy package.
"""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from milr.drafts import UserError

Settings = TypeVar("Settings")


def setting(default: Any, meaning: str, *, low: float | None = None, high: float | None = None) -> Any:
    """A field of a settings class: `meaning` in words, with the source of the default; `low` to `high`
    allowed."""
    return field(default=default, metadata={"meaning": meaning, "low": low, "high": high})


@dataclass(frozen=True)
class Option:
    """One setting as a form or a help text shows it."""

    name: str
    default: Any
    meaning: str
    choices: tuple[str, ...]  # empty where any value of the range may stand
    low: float | None
    high: float | None


def options(kind: type) -> tuple[Option, ...]:
    """All settings of a class, in order."""
    hints = get_type_hints(kind)
    return tuple(
        Option(
            name=item.name,
            default=None if item.default is MISSING else item.default,
            meaning=str(item.metadata.get("meaning", "")),
            choices=_choices(hints[item.name]),
            low=item.metadata.get("low"),
            high=item.metadata.get("high"),
        )
        for item in fields(kind)
    )


def check(settings: Any) -> None:
    """Raise UserError unless every value fits its declaration. Meant for `__post_init__`."""
    hints = get_type_hints(type(settings))
    for option in options(type(settings)):
        value, (base, may_be_none) = getattr(settings, option.name), _plain(hints[option.name])
        if value is None and may_be_none:
            continue
        if option.choices:
            if value not in option.choices:
                raise UserError(_unknown(f"value for '{option.name}'", value, option.choices))
        elif base in (int, float):
            fits = isinstance(value, int if base is int else (int, float)) and not isinstance(value, bool)
            if not fits or not math.isfinite(value):
                raise UserError(f"Setting '{option.name}' must be a finite number, not {value!r}.")
            low = -math.inf if option.low is None else option.low
            high = math.inf if option.high is None else option.high
            if not low <= value <= high:
                raise UserError(f"Setting '{option.name}' must be {_range(option)}, not {value}.")
        elif not isinstance(value, base):
            raise UserError(f"Setting '{option.name}' must be a {base.__name__}, not {value!r}.")


def settings_from(kind: type[Settings], preset: Settings | None, overrides: Mapping[str, str]) -> Settings:
    """The preset (or the defaults of `kind`) with the overrides of `--set name=value` parsed into it."""
    hints = get_type_hints(kind)
    known = {option.name: option for option in options(kind)}
    changes: dict[str, Any] = {}
    for given, text in overrides.items():
        name = given.strip().replace("-", "_")
        if name not in known:
            raise UserError(_unknown("setting", given, known))
        changes[name] = _parse(known[name], hints[name], text)
    return replace(kind() if preset is None else preset, **changes)  # type: ignore[type-var]


def find_preset(presets: Mapping[str, Settings], name: str) -> Settings:
    """The preset of this name; UserError with the closest name if there is none."""
    if name not in presets:
        raise UserError(_unknown("preset", name, presets))
    return presets[name]


def preset_name(presets: Mapping[str, Settings], settings: Settings) -> str | None:
    """The name of the preset that has exactly these settings, if any."""
    return next((name for name, preset in presets.items() if preset == settings), None)


def _parse(option: Option, hint: Any, text: str) -> Any:
    base, may_be_none = _plain(hint)
    text = text.strip()
    if may_be_none and text.lower() in ("none", ""):
        return None
    if option.choices or base is str:
        return text  # `check` compares it with the choices
    if base is bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() not in words:
            raise UserError(f"Setting '{option.name}' is a yes/no setting; '{text}' is neither.")
        return words[text.lower()]
    try:
        return base(text)
    except ValueError as error:
        raise UserError(f"Setting '{option.name}' must be {_range(option)}, not '{text}'.") from error


def _plain(hint: Any) -> tuple[Any, bool]:
    """A type hint without its `| None`, and whether it had one."""
    if get_origin(hint) in (Union, types.UnionType):
        inner = [part for part in get_args(hint) if part is not type(None)]
        assert len(inner) == 1, f"a setting has one type, or one type | None: {hint}"
        return inner[0], True
    return hint, False


def _choices(hint: Any) -> tuple[str, ...]:
    base, _ = _plain(hint)
    return tuple(str(choice) for choice in get_args(base)) if get_origin(base) is Literal else ()


def _range(option: Option) -> str:
    if option.low is not None and option.high is not None:
        return f"a number from {option.low:g} to {option.high:g}"
    if option.low is not None:
        return f"a number of at least {option.low:g}"
    return "a number" if option.high is None else f"a number of at most {option.high:g}"


def _unknown(what: str, given: object, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(str(given), names, n=1, cutoff=0.4)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"Unknown {what} '{given}'.{hint} Possible: {', '.join(names)}."
