"""What benchmarks share. A benchmark is a module with NAME, SUMMARY and `tasks(count, seed, categories)`.

Optional, and read by `milr bench`: CATEGORIES (their names), FIXED (True: there is a fixed set; a count of None means
all of it, a seed of None the set itself), REWARD (the critic that fits), `overall(by_category)` (the benchmark's own
score out of the numbers of its categories), DATA_HELP (what file the user must bring; `tasks` then takes `data`).

Also optional, and read by reports:
    NUMBER     what its score is made of: "success" (the share of pictures that are right; so where nothing is said) or
               "mean" (the mean of the critic's scores). All that a report compares is this number.
    STOPS_AT   the reward at which a search may stop, where no `--threshold` is given (1 where nothing is said). For a
               "mean" that no picture brings to 1, so that a search does not spend its whole budget on the last digits.
    CAVEAT     a sentence that stands beside the numbers, where they must not be compared with published ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

from milr.drafts import RIGHT, Task, UserError

Number = Literal["success", "mean"]


def number_of(benchmark: object) -> Number:
    """What the score of this benchmark (its module) is made of."""
    number: Number = getattr(benchmark, "NUMBER", "success")
    if number not in ("success", "mean"):
        name = getattr(benchmark, "NAME", benchmark)
        raise UserError(f"The benchmark '{name}' says NUMBER = {number!r}; it is 'success' or 'mean'.")
    return number


def stops_at(benchmark: object) -> float:
    """The reward at which a search on this benchmark (its module) stops, where the user names none."""
    return float(getattr(benchmark, "STOPS_AT", RIGHT))


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
