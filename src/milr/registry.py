"""The list of parts: models, searches, critics and benchmarks, by name, without importing any of them.

A part of this package is a file; its name and one-line summary are module-level literals that are read from the
source text. Parts of other packages join through entry points. So `milr list` costs nothing, and a name is known to
be right before a heavy dependency is imported. This file knows no model, search, critic or benchmark.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import importlib.metadata
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, Literal

from milr.drafts import UserError

Kind = Literal["model", "search", "critic", "benchmark"]
KINDS: tuple[Kind, ...] = ("model", "search", "critic", "benchmark")
FOLDERS: Mapping[Kind, str] = {
    "model": "backbones",
    "search": "searches",
    "critic": "critics",
    "benchmark": "benchmarks",
}
PLURALS: Mapping[Kind, str] = {
    "model": "models",
    "search": "searches",
    "critic": "critics",
    "benchmark": "benchmarks",
}


@dataclass(frozen=True)
class Part:
    """One thing that a name on the command line can mean.

    `module` is where it lives; `origin` is '' for milr's own parts, else the distribution that brings it. `presets`
    are the names of its settings, where the module lists them; `takes` is its literal TAKES.
    """

    kind: Kind
    name: str
    summary: str
    module: str
    origin: str = ""
    presets: tuple[str, ...] = ()
    takes: str | None = None  # the setting that a word after a colon means (critics)
    entry_point: importlib.metadata.EntryPoint | None = field(default=None, compare=False, repr=False)


def parts(kind: Kind) -> tuple[Part, ...]:
    """Every part of this kind: milr's own first, then those of other packages, each sorted by name."""
    own = _own_parts(kind)
    taken = {part.name for part in own}
    # Nobody can replace a part of milr from outside: results with the same name mean the same thing.
    return (*own, *(part for part in _foreign_parts(kind) if part.name not in taken))


def find(kind: Kind, name: str) -> Part:
    """The part of this name. Raises UserError with the nearest names; imports nothing."""
    known = parts(kind)
    for part in known:
        if part.name == name:
            return part
    names = [part.name for part in known]
    other = "Give a name, a hub id (owner/name) or the folder of a checkpoint; " if kind == "model" else ""
    raise UserError(
        f"Unknown {kind} '{shorten(name)}'.{did_you_mean(name, names)} "
        f"{other}'milr list {PLURALS[kind]}' shows all {len(names)}."
    )


def load(part: Part) -> Any:
    """Import a part: its module, or whatever the entry point of another package names."""
    if part.entry_point is None:
        return importlib.import_module(part.module)
    try:
        return part.entry_point.load()
    except Exception as error:  # somebody else's code may fail in any way; the user needs to know whose
        raise UserError(
            f"The {part.kind} '{part.name}' of package '{part.origin}' cannot be imported "
            f"({type(error).__name__}: {error}); update or uninstall that package."
        ) from error


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """' Did you mean ...?' with the nearest name, or nothing when none is near."""
    by_lower = {known.lower(): known for known in names}
    near = difflib.get_close_matches(name[:100].lower(), by_lower, n=1, cutoff=0.5)
    return f" Did you mean '{by_lower[near[0]]}'?" if near else ""


def shorten(text: str, limit: int = 60) -> str:
    """One line of at most `limit` characters that a terminal may be shown: no control signs, no lone surrogates."""
    line = " ".join(text[: 4 * limit].split())
    line = "".join(sign if sign.isprintable() or sign == "\u200d" else "\ufffd" for sign in line)
    return line if len(line) <= limit else line[: limit - 1] + "…"


@functools.cache
def _own_parts(kind: Kind) -> tuple[Part, ...]:
    if kind == "model":
        from milr.backbones import PRESETS  # a light door; one module there serves many checkpoints

        return tuple(Part(kind, preset.name, preset.summary, "milr.backbones") for preset in PRESETS.values())
    folder = FOLDERS[kind]
    found = [
        part
        for file in (Path(__file__).parent / folder).glob("*.py")
        if (part := _part_of_source(kind, file, f"milr.{folder}.{file.stem}")) is not None
    ]
    return tuple(sorted(found, key=lambda part: part.name))


def _foreign_parts(kind: Kind) -> Iterator[Part]:
    group = f"milr.{FOLDERS[kind]}"
    for point in sorted(importlib.metadata.entry_points(group=group), key=lambda point: point.name):
        origin = point.dist.name if point.dist is not None else point.module
        spec = _spec_without_import(point.module)
        literals = _literals(Path(spec.origin)) if spec is not None and spec.origin else {}
        summary = literals.get("SUMMARY", "")
        yield Part(
            kind=kind,
            name=point.name,
            summary=summary if isinstance(summary, str) and summary else f"(from {origin})",
            module=point.module,
            origin=origin,
            presets=_names(literals.get("PRESETS")),
            takes=_text(literals.get("TAKES")),
            entry_point=point,
        )


def _part_of_source(kind: Kind, file: Path, module: str) -> Part | None:
    """The part that a file defines; None for files without NAME and SUMMARY (base.py and other helpers)."""
    literals = _literals(file)
    name, summary = literals.get("NAME"), literals.get("SUMMARY")
    if not (isinstance(name, str) and isinstance(summary, str)):
        return None
    return Part(
        kind, name, summary, module, presets=_names(literals.get("PRESETS")), takes=_text(literals.get("TAKES"))
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _names(presets: Any) -> tuple[str, ...]:
    return tuple(name for name in presets or () if isinstance(name, str))


def _literals(file: Path) -> dict[str, Any]:
    """Module-level `NAME = literal` assignments of a source file; of a dict with computed values, its literal keys."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):  # a module that cannot be read has no names
        return {}
    found: dict[str, Any] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target, value = statement.targets[0], statement.value
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            target, value = statement.target, statement.value
        else:
            continue
        if not (isinstance(target, ast.Name) and target.id.isupper()):
            continue
        try:
            found[target.id] = ast.literal_eval(value)
        except ValueError:
            if isinstance(value, ast.Dict):
                keys = [key.value for key in value.keys if isinstance(key, ast.Constant)]
                found[target.id] = dict.fromkeys(keys)
    return found


def _spec_without_import(module: str) -> ModuleSpec | None:
    """Where a module lies. importlib.util.find_spec would import the packages above it; this does not."""
    path: Iterable[str] | None = None
    spec: ModuleSpec | None = None
    names = module.split(".")
    for depth in range(1, len(names) + 1):
        name = ".".join(names[:depth])
        for finder in sys.meta_path:
            find_spec = getattr(finder, "find_spec", None)
            spec = find_spec(name, path) if find_spec is not None else None
            if spec is not None:
                break
        if spec is None:
            return None
        path = spec.submodule_search_locations
    return spec
