"""WISE: 1,000 prompts that need world knowledge, judged by a vision-language model (arXiv 2503.07265). Legacy protocol.

The prompts have no licence that lets milr ship them: bring your own copy of the JSON files (`--data FOLDER` or FILE).
A judge says consistency, realism and aesthetic quality, 0 to 2 each. `wise_verified.py` has the later, binary
protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from milr.benchmarks.base import spread
from milr.drafts import Task, UserError
from milr.reading import Entry, read_entries

NAME = "wise"
SUMMARY = "WISE: 1,000 knowledge prompts, legacy score (from your copy: --data)"
VERSION = 1
CATEGORIES = ("culture", "time", "space", "biology", "physics", "chemistry")
DATA_HELP = "the folder, or one file, of the JSON files in the WISE repository"
REWARD = "judge:wise"
NUMBER = "mean"  # of WiScore
STOPS_AT = 0.9  # as in MILR's code; what is missing above is a mark of realism or of beauty
CAVEAT = (
    "The rubric and the form of the judge's reply are milr's own, not those of WISE's authors: these numbers cannot be "
    "compared with published WiScores."
)
FIRST_IDS = (1, 401, 568, 701, 801, 901)  # of each category
LAST_ID = 1000
PROMPTS = LAST_ID  # of the whole benchmark; the user's copy may be a part
DATA_ENDINGS = (".json", ".jsonl", ".csv", ".tsv")
WEIGHTS = (0.7, 0.2, 0.1)  # consistency, realism, aesthetic quality
BEST = 2


def tasks(
    count: int | None = None,
    seed: int | None = None,
    categories: tuple[str, ...] = CATEGORIES,
    *,
    data: Path | None = None,
) -> list[Task]:
    """The prompts in the user's copy, or `count` of them, evenly over the categories; ids are 'wise-<prompt_id>'.

    `seed` changes nothing. `metadata` holds `prompt_id`, `subcategory` and `explanation`; the explanation gives the
    answer away, so it is for the judge alone (the driver shows no search a task's metadata).
    """
    return read_tasks("wise", data, DATA_HELP, FIRST_IDS, count, categories)


def score(consistency: float, realism: float, aesthetic: float) -> float:
    """WiScore of one image, in [0, 1]: (0.7 consistency + 0.2 realism + 0.1 aesthetic quality) / 2; each is 0 to 2."""
    grades = (consistency, realism, aesthetic)
    if not all(0 <= grade <= BEST for grade in grades):
        raise ValueError(f"WISE's grades lie between 0 and 2, not {grades}")
    return sum(weight * grade for weight, grade in zip(WEIGHTS, grades, strict=True)) / BEST


def overall(by_category: Mapping[str, float]) -> float:
    """The benchmark's score: categories weighted by their share of the 1,000 prompts (.4 .167 .133 .1 .1 .1)."""
    return weighted(by_category, FIRST_IDS)


# --- Shared with wise_verified ----------------------------------------------------------------------------------


def read_tasks(
    name: str,
    data: Path | None,
    data_help: str,
    first_ids: Sequence[int],
    count: int | None,
    categories: Sequence[str],
) -> list[Task]:
    """Tasks out of the user's copy. Raises UserError where there is none, or where a file is not WISE's."""
    if data is None:
        raise UserError(f"milr may not ship the prompts of '{name}'; give your copy with --data: {data_help}.")
    files = _files(data) if data.is_dir() else [data]
    if not files:
        raise UserError(f"There is no JSON file in {data}; --data is {data_help}.")
    found: dict[int, Entry] = {}
    for file in files:
        for entry in read_entries(file):
            number = _prompt_id(entry, data_help)
            if number in found:
                raise UserError(
                    f"{data} has a prompt_id twice ({number}, in {found[number].where} and {entry.where}; legacy and "
                    "verified files together?); keep one version there."
                )
            found[number] = entry
    every = [
        Task(
            entry.prompt,
            id=f"{name}-{number}",
            category=category_of(number, first_ids),
            metadata={
                "prompt_id": number,
                "subcategory": str(entry.fields.get("Subcategory") or ""),
                "explanation": str(entry.fields.get("Explanation") or ""),
            },
        )
        for number, entry in sorted(found.items())
    ]
    return spread([task for task in every if task.category in categories], count)


def category_of(prompt_id: int, first_ids: Sequence[int]) -> str:
    """The category of a prompt; WISE's own scorers go by these ranges of ids."""
    return [name for name, first in zip(CATEGORIES, first_ids, strict=True) if prompt_id >= first][-1]


def weighted(by_category: Mapping[str, float], first_ids: Sequence[int]) -> float:
    """The mean over the categories, weighted by how many of the 1,000 prompts each has."""
    ends = (*first_ids[1:], LAST_ID + 1)
    sizes = {name: end - first for name, first, end in zip(CATEGORIES, first_ids, ends, strict=True)}
    total = sum(sizes[name] for name in by_category)
    return sum(sizes[name] * value for name, value in by_category.items()) / total


def _files(folder: Path) -> list[Path]:
    """The data files of a folder, whatever their endings' case; not those that systems hide there."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in DATA_ENDINGS and not file.name.startswith(".") and file.is_file()
    )


def _prompt_id(entry: Entry, data_help: str) -> int:
    said = entry.fields.get("prompt_id")
    text = str(said).strip() if isinstance(said, int | str) else ""
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:6]) <= LAST_ID:
        raise UserError(
            f"{entry.where[0].upper()}{entry.where[1:]} is no prompt of WISE (Prompt, prompt_id 1 to "
            f"{LAST_ID}); --data is {data_help}."
        )
    return int(text)
