"""What benchmarks share. A benchmark is a module with NAME, SUMMARY and `tasks(count, seed, categories)`.

Optional, and read by `milr bench`: CATEGORIES (their names), FIXED (True: there is a fixed set; a count of None means
all of it, a seed of None the set itself), REWARD (the critic that fits), `overall(by_category)` (the benchmark's own
score out of the means of its categories), DATA_HELP (what file the user must bring; `tasks` then takes `data`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from milr.drafts import Task


def mean_of_categories(by_category: Mapping[str, float]) -> float:
    """Every category counts alike, however many prompts it has."""
    return sum(by_category.values()) / len(by_category)


def spread(tasks: Sequence[Task], count: int | None) -> list[Task]:
    """`count` of the tasks, evenly over their categories and in their order; all where None or fewer are there.

    Of each category a random sample, fixed by the tasks' ids: files are often sorted, so the first ones stand for
    nothing. The same count gives the same tasks, and a larger one holds every smaller one.
    """
    if count is None or count >= len(tasks):
        return list(tasks)
    by_category: dict[str, list[int]] = {}
    for index, task in enumerate(tasks):
        by_category.setdefault(task.category, []).append(index)
    ranked = [
        (rank, number, index)
        for number, indices in enumerate(by_category.values())
        for rank, index in enumerate(sorted(indices, key=lambda index: (_lot(tasks[index]), index)))
    ]
    return [tasks[index] for index in sorted(index for *_, index in sorted(ranked)[:count])]


def _lot(task: Task) -> bytes:
    return hashlib.sha256(f"milr-spread/1\0{task.category}\0{task.id}".encode("utf-8", "surrogatepass")).digest()
