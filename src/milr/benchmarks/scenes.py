"""The lab world's own prompts: eight categories, any number, seeded, never trained on. A door to milr.lab."""

from __future__ import annotations

from milr.drafts import Task
from milr.lab.curriculum import CATEGORIES
from milr.lab.curriculum import tasks as lab_tasks

NAME = "scenes"
SUMMARY = "Lab world: single, two, counting, colours, position, attribute, riddle, composition"
VERSION = 1


def tasks(count: int = 600, seed: int = 0, categories: tuple[str, ...] = CATEGORIES) -> list[Task]:
    """`count` test prompts of the lab world, categories in turn; ids are 'lab-<seed>-<number>'."""
    return lab_tasks(count, seed, categories)
