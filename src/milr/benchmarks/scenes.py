"""The lab world's own prompts: a fixed set of 600 in eight categories, or any number of fresh ones. A door to milr.lab.

The fixed set is a file, so that it stays what it is when the generator changes; it is what
`milr lab prompts --n 600 --seed 31100 --json` printed on 2026-11-25. None of it was read or drawn in training,
though some of its meanings were, in other words; `scenes_2` shares no meaning either.
"""

from __future__ import annotations

import json
from pathlib import Path

from milr.benchmarks.base import spread
from milr.drafts import Task
from milr.lab.curriculum import CATEGORIES
from milr.lab.curriculum import tasks as fresh_tasks

NAME = "scenes"
SUMMARY = "Lab world, 600 prompts or fresh: single, two, counting, colours, position, attribute, riddle, composition"
VERSION = 1
FIXED = True
REWARD = "scene"
NUMBER = "success"
SET = 600
FILE = Path(__file__).parent / "data" / "scenes" / "prompts.jsonl"


def tasks(count: int | None = None, seed: int | None = None, categories: tuple[str, ...] = CATEGORIES) -> list[Task]:
    """The fixed set, or `count` of it, evenly over the categories; with a seed `count` (None: 600) fresh prompts,
    categories in turn. Ids are 'lab-<seed>-<number>'."""
    if seed is not None:
        return fresh_tasks(SET if count is None else count, seed, categories)
    lines = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
    every = [Task(line["prompt"], line["id"], line["category"]) for line in lines]
    return spread([task for task in every if task.category in categories], count)
