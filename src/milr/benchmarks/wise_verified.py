"""WISE-Verified: WISE's revised prompts (2026), each image right or wrong by four checks of a judge."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from milr.benchmarks.wise import CATEGORIES, PROMPTS, read_tasks, weighted
from milr.drafts import Task

NAME = "wise-verified"
SUMMARY = "WISE-Verified: 1,000 revised knowledge prompts, right or wrong (from your copy: --data)"
VERSION = 1
DATA_HELP = "the folder, or one file, of the verified JSON files in the WISE repository"
REWARD = "judge:wise-verified"
NUMBER = "success"
CAVEAT = (
    "The rubric and the form of the judge's reply are milr's own, not those of WISE's authors: these numbers cannot be "
    "compared with published ones."
)
__all__ = ["PROMPTS", "overall", "tasks"]
FIRST_IDS = (1, 401, 521, 641, 761, 881)


def tasks(
    count: int | None = None,
    seed: int | None = None,
    categories: tuple[str, ...] = CATEGORIES,
    *,
    data: Path | None = None,
) -> list[Task]:
    """As `wise.tasks`, from the verified files; ids are 'wise-verified-<prompt_id>'."""
    return read_tasks(NAME, data, DATA_HELP, FIRST_IDS, count, categories)


def overall(by_category: Mapping[str, float]) -> float:
    """.40 culture and .12 of each other category: their share of the 1,000 prompts."""
    return weighted(by_category, FIRST_IDS)
