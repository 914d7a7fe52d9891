"""What benchmarks share. A benchmark is a module with NAME, SUMMARY and `tasks(count, seed, categories)`.

Optional, and read by `milr bench`: CATEGORIES (their names), FIXED (True: there is a fixed set; a count of None means
all of it, a seed of None the set itself), REWARD (the critic that fits), `overall(by_category)` (the benchmark's own
score out of the means of its categories), DATA_HELP (what file the user must bring; `tasks` then takes `data`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from milr.drafts import Task


def mean_of_categories(by_category: Mapping[str, float]) -> float:
    """Every category counts alike, however many prompts it has."""
    return sum(by_category.values()) / len(by_category)


def spread(tasks: Sequence[Task], count: int | None) -> list[Task]:
    """`count` of the tasks, evenly over their categories and in their order; all where None or fewer are there.

    The first tasks of each category are taken, so a longer selection holds every shorter one.
    """
    if count is None or count >= len(tasks):
        return list(tasks)
    ranks: dict[str, int] = {}
    ranked = []
    for index, task in enumerate(tasks):
        ranks[task.category] = rank = ranks.get(task.category, -1) + 1
        ranked.append((rank, index))
    return [tasks[index] for index in sorted(index for _, index in sorted(ranked)[:count])]
