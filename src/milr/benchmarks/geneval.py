"""GenEval: 553 prompts about objects, numbers, colours and places, judged by a detector (arXiv 2310.11513, MIT).

The rules are in `milr.critics.rules.geneval`, where the critic finds them too; `check` is offered here as well.
GenEval's score is the mean over the six tasks, not over images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from milr.benchmarks.base import mean_of_categories, spread
from milr.critics.rules.geneval import Verdict, check
from milr.drafts import Task

NAME = "geneval"
SUMMARY = "GenEval: 553 prompts in six tasks (single, two, counting, colors, position, color_attr)"
VERSION = 1
CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
FIXED = True
REWARD = "geneval"
NUMBER = "success"
DATA = Path(__file__).parent / "data" / "geneval"

__all__ = ["Verdict", "check", "overall", "tasks"]


def tasks(count: int | None = None, seed: int | None = None, categories: tuple[str, ...] = CATEGORIES) -> list[Task]:
    """All prompts, or `count` of them, spread evenly over the categories; ids are 'geneval-<number in the file>'.

    `seed` changes nothing: the prompts are fixed. `metadata` is the benchmark's own line.
    """
    lines = (DATA / "evaluation_metadata.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines if line.strip()]
    every = [
        Task(line["prompt"], id=f"geneval-{number:05d}", category=line["tag"], metadata=line)
        for number, line in enumerate(found)
    ]
    return spread([task for task in every if task.category in categories], count)


def overall(by_category: Mapping[str, float]) -> float:
    """GenEval's score: the mean of the task means."""
    return mean_of_categories(by_category)
