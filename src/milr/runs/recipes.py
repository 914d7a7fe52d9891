"""Recipes: a table or figure of the paper as a file that `milr bench --recipe FILE` runs, on the lab or for real.

    paper: "Table 4: joint, alternate, text then image"     which part of the paper
    expected: "the three are similar"                       what it says there
    searches: ["milr:paper", "milr:alternate"]              as --search takes them
    baseline, budget, seed, seeds, threshold                as the options, for all runs or for one
    runs:
      - {for: lab, name: scenes, benchmark: scenes, limit: 300, prompt_seed: 31022, reward: scene, held_out: [self]}
      - {for: real, name: geneval, benchmark: geneval, reward: geneval}

A recipe comes from somebody else, so it may not choose which of your secrets go where: of the variables that its
critics name only those are read that end in _API_KEY or begin with MILR_, and OPENAI_API_KEY goes to OpenAI alone; any
other wants `--allow-key NAME`.

`for: lab` is run with the embedded model, `for: real` with any other. Plain YAML, read without any of its tags.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from milr.critics import naming
from milr.drafts import UserError
from milr.paths import is_safe
from milr.registry import did_you_mean
from milr.runs.planned import threshold_of

KINDS = ("lab", "real")


@dataclass(frozen=True)
class RecipeRun:
    """One run of a recipe: the options of `milr bench`."""

    name: str
    kind: str
    benchmark: str
    searches: tuple[str, ...]
    reward: str
    held_out: tuple[str, ...] = ()
    baseline: str | None = None
    limit: int | None = None
    category: tuple[str, ...] = ()
    prompt_seed: int | None = None
    budget: int = 20
    threshold: float = 1.0
    seed: int = 0
    seeds: int = 1


@dataclass(frozen=True)
class Recipe:
    """What the paper shows, what it says there, and the runs that show it here."""

    paper: str
    expected: str
    runs: tuple[RecipeRun, ...]

    def runs_for(self, model: str) -> tuple[RecipeRun, ...]:
        """Those for the embedded model, or for a real one."""
        kind = "lab" if model == "lab" else "real"
        return tuple(run for run in self.runs if run.kind == kind)


_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "name": str, "for": str, "benchmark": str, "searches": list, "reward": str, "held_out": list, "baseline": str,
    "limit": int, "category": list, "prompt_seed": int, "budget": int, "threshold": (int, float), "seed": int,
    "seeds": int,
}  # fmt: skip


def read_recipe(file: Path, allowed: Collection[str] = ()) -> Recipe:
    """Read and check a recipe; `allowed` are the variables that its critics may read besides those that any recipe may.
    Raises UserError with what is wrong in it."""
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read the recipe {file} ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("runs"), list) or not raw["runs"]:
        raise UserError(f"{file} has no 'runs'; see the recipes that come with milr.")
    common = {key: value for key, value in raw.items() if key not in ("paper", "expected", "runs")}
    runs = tuple(_read_run(file, {**common, **one} if isinstance(one, dict) else one) for one in raw["runs"])
    names = [(run.kind, run.name.casefold()) for run in runs]  # many file systems do not tell A from a
    if len(set(names)) < len(names):
        raise UserError(f"Two runs of {file} have the same name; give each its own.")
    for critic in dict.fromkeys(critic for run in runs for critic in (run.reward, *run.held_out)):
        _check_secrets(file, critic, allowed)
    return Recipe(str(raw.get("paper", "")), str(raw.get("expected", "")), runs)


def _check_secrets(file: Path, critic: str, allowed: Collection[str]) -> None:
    """Raise UserError where a critic of a recipe would send away what no recipe may."""
    for secret in naming.secrets_of(critic):
        name = secret.variable
        is_key = name.endswith("_API_KEY") and not secret.is_address and secret.at_home
        if name in allowed or name.startswith("MILR_") or is_key:
            continue
        what = f"take its address from {name}" if secret.is_address else f"send what is in {name} to {secret.where}"
        raise UserError(
            f"{file} would {what}, which is yours to decide; if you trust the recipe, add --allow-key {name}, "
            "else have it say key=none or leave the critic out."
        )


def _read_run(file: Path, raw: Any) -> RecipeRun:
    if not isinstance(raw, dict):
        raise UserError(f"A run of {file} is no table of options: {raw!r:.60}.")
    for key, value in raw.items():
        if key not in _TYPES:
            raise UserError(f"{file} says '{key}', which no run has.{did_you_mean(str(key), _TYPES)}")
        wanted = _TYPES[key]
        if not isinstance(value, wanted) or (isinstance(value, bool)):
            raise UserError(f"In {file} '{key}' is {value!r:.60}, which is not what it should be ({_named(wanted)}).")
    missing = [key for key in ("name", "for", "benchmark", "searches", "reward") if not raw.get(key)]
    if missing:
        raise UserError(f"A run of {file} lacks '{missing[0]}'.")
    if raw["for"] not in KINDS:
        raise UserError(f"In {file} 'for' is '{raw['for']}'; it is lab or real.")
    if not is_safe(raw["name"]):
        raise UserError(f"The name {raw['name']!r:.100} in {file} cannot be a folder's; use letters and dashes.")
    values = {("kind" if key == "for" else key): value for key, value in raw.items()}
    for key in ("searches", "held_out", "category"):
        if not all(isinstance(one, str) for one in values.get(key, ())):
            raise UserError(f"In {file} '{key}' is a list of names.")
        values[key] = tuple(values.get(key, ()))
    if "threshold" not in values:
        values["threshold"] = threshold_of(values["benchmark"])
    known = {field.name for field in fields(RecipeRun)}
    return RecipeRun(**{key: value for key, value in values.items() if key in known})


def _named(wanted: type | Sequence[type]) -> str:
    kinds = wanted if isinstance(wanted, tuple) else (wanted,)
    words = {str: "text", int: "a whole number", float: "a number", list: "a list"}
    return " or ".join(words[kind] for kind in kinds)
