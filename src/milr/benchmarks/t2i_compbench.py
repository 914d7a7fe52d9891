"""T2I-CompBench++: 8 categories of 300 prompts (arXiv 2307.06350, MIT); formulas: critics.rules.t2i_compbench."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from milr.benchmarks.base import mean_of_categories, spread
from milr.critics.rules.t2i_compbench import asked_counts, asked_relation
from milr.drafts import Task

NAME = "t2i-compbench"
SUMMARY = "T2I-CompBench: 8 x 300 prompts (color, shape, texture, spatial, 3d_spatial, numeracy, non_spatial, complex)"
VERSION = 1
CATEGORIES = ("color", "shape", "texture", "spatial", "3d_spatial", "numeracy", "non_spatial", "complex")
FIXED = True
REWARD = "t2i-compbench"
NUMBER = "mean"  # of B-VQA, detector and CLIP values
STOPS_AT = 0.9  # as in MILR's code
CAVEAT = (
    "A detector of nouns stands in for UniDet, and phrases are not spaCy's: spatial, 3d_spatial, numeracy and complex "
    "cannot be compared with published values."
)
DATA = Path(__file__).parent / "data" / "t2i-compbench"


def tasks(count: int | None = None, seed: int | None = None, categories: tuple[str, ...] = CATEGORIES) -> list[Task]:
    """All prompts, or `count` of them, spread evenly over the categories; ids are 'compbench-<category>-<line>'.

    `seed` changes nothing: the prompts are fixed. `metadata` says what is asked: `relation` [first, name, second],
    `counts` [[name, count], ...], or the `kind` of a complex prompt.
    """
    plurals = _plurals()
    every = [
        Task(
            prompt,
            id=f"compbench-{category}-{number:03d}",
            category=category,
            metadata=_asked(category, prompt, plurals),
        )
        for category in CATEGORIES
        if category in categories
        for number, prompt in enumerate(_lines(f"{category}_val.txt"))
    ]
    return spread(every, count)


def overall(by_category: Mapping[str, float]) -> float:
    """The mean of the category means (the benchmark itself reports them one by one)."""
    return mean_of_categories(by_category)


def kind_of(prompt: str) -> str:
    """What a complex prompt combines with attributes: 'spatial', 'action' or 'spatial and action'.

    The authors list the prompts of each kind (58, 212, 30); their lists follow these words.
    """
    if re.match(r"The [A-Za-z ]+ (is|was|were) (next to|on top of|on the (left|right) of) the ", prompt):
        return "spatial"
    if re.search(r" (next to|near|on top of|sank below) ", prompt):
        return "spatial and action"
    return "action"


def _asked(category: str, prompt: str, plurals: Mapping[str, str]) -> dict[str, Any]:
    if category in ("spatial", "3d_spatial"):
        relation = asked_relation(prompt)
        assert relation is not None, prompt
        return {"relation": [relation.first, relation.name, relation.second]}
    if category == "numeracy":
        return {"counts": [list(pair) for pair in asked_counts(prompt, plurals)]}
    return {"kind": kind_of(prompt)} if category == "complex" else {}


def _plurals() -> dict[str, str]:
    """Singular by plural, of the benchmark's list of objects."""
    pairs = [line.lower().split(" - ") for line in _lines("new_objects.txt")]
    return {plural.strip(): singular.strip() for singular, plural in pairs}


def _lines(name: str) -> list[str]:
    text = (DATA / name).read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip()]
