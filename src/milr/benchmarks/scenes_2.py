"""600 prompts of the lab world for reports, in five categories: none shares its meaning with anything met before.

`scenes` was split by wording, and its seeds were used while methods were tuned; prompts of both sides often mean the
same. This set shares no meaning with what the model was trained on (its questions included), with what any method was
tuned on, or with any list that was looked at or reported before. `python -m milr.lab.report_set --check FILE` lists
all that and makes the set again. Of three categories of `scenes` (single, counting, colours) no new meaning is left.
"""

from __future__ import annotations

import json
from pathlib import Path

from milr.benchmarks.base import spread
from milr.drafts import Task
from milr.lab.report_set import REPORTED

NAME = "scenes-2"
SUMMARY = "Lab world, 600 prompts whose meanings were never met before: two, position, attribute, riddle, composition"
VERSION = 1
CATEGORIES = REPORTED
FIXED = True
REWARD = "scene"
NUMBER = "success"
FILE = Path(__file__).parent / "data" / "scenes" / "prompts-2.jsonl"


def tasks(count: int | None = None, seed: int | None = None, categories: tuple[str, ...] = CATEGORIES) -> list[Task]:
    """All prompts, or `count` of them, evenly over the categories; ids are 'lab-report-2-<number>'.

    `seed` changes nothing: the prompts are fixed.
    """
    lines = [json.loads(line) for line in FILE.read_text(encoding="utf-8").split("\n") if line]
    every = [Task(line["prompt"], line["id"], line["category"]) for line in lines]
    return spread([task for task in every if task.category in categories], count)
