"""Your own prompts: a text file (one a line) or a JSONL file, with checks that a critic may ask. Four packs ship.

    {"prompt": "a clock that shows half past three", "id": "clock", "category": "teaching",
     "checks": ["Is there a clock?", "Does the long hand point to six?"]}

Only `prompt` is needed. `checks` are questions whose answer is yes for a right picture, for critics that ask questions
(`vqa-score`, `judge:geneval-style`; `self` asks about the whole prompt). Any other key goes to `metadata`, e.g.
GenEval's `tag`, `include` and `exclude` for the critic `geneval`, or `text`, the words that `ocr` should find.

The pack `medical` asks for labels, arrows, boxes and views, never for a finding: its checks say whether a picture is
annotated as asked, not whether it is anatomically right. Nothing in it is fit for clinical use or for training on it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from milr.benchmarks.base import spread
from milr.drafts import Task, UserError

NAME = "custom"
SUMMARY = "Your own prompts: a text or JSONL file (--data FILE) or a pack: products, architecture, medical, teaching"
VERSION = 1
PACKS = ("products", "architecture", "medical", "teaching")
DATA_HELP = "a text file (one prompt a line), a JSONL file with 'prompt' in each line, or a pack: " + ", ".join(PACKS)
DATA_HELP += " (medical: not for clinical use)"
REWARD = "self"
NUMBER = "success"
FOLDER = Path(__file__).parent / "data" / "packs"
LONGEST = 4000  # characters of a prompt; what `milr generate` takes, too


def tasks(
    count: int | None = None, seed: int | None = None, categories: tuple[str, ...] = (), *, data: Path | None = None
) -> list[Task]:
    """The prompts of a file or pack, or `count` of them, evenly over their categories (none given: all).

    Raises UserError with the line's number where a line is no prompt, or an id comes twice.
    """
    if data is None:
        raise UserError(f"'custom' needs your prompts: --data is {DATA_HELP}.")
    file = FOLDER / f"{data}.jsonl" if str(data) in PACKS else data
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"Cannot read {file} ({why}); --data is {DATA_HELP}.") from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    read = _read_line if file.suffix in (".jsonl", ".json") else _plain
    every = [read(file, number, line) for number, line in numbered]
    ids = [task.id for task in every]
    twice = next((one for one in ids if ids.count(one) > 1), None) if len(set(ids)) < len(ids) else None
    if twice is not None:
        raise UserError(f"Two prompts in {file} have the id '{twice}'; give each its own.")
    chosen = [task for task in every if not categories or task.category in categories]
    if not chosen:
        raise UserError(f"There is no prompt in {file}{' of these categories' if every else ''}.")
    return spread(chosen, count)


def _plain(file: Path, number: int, line: str) -> Task:
    return _task(file, number, {"prompt": line})


def _read_line(file: Path, number: int, line: str) -> Task:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise UserError(f"Line {number} of {file} is no JSON object ({error}); write one object a line.") from error
    if not isinstance(found, dict) or not isinstance(found.get("prompt"), str) or not found["prompt"].strip():
        raise UserError(f'Line {number} of {file} has no prompt; write {{"prompt": "..."}}.')
    checks = found.get("checks", [])
    if not isinstance(checks, list) or not all(isinstance(check, str) and check.strip() for check in checks):
        raise UserError(f"The 'checks' in line {number} of {file} are no list of questions; write [\"Is ...?\", ...].")
    return _task(file, number, found)


def _task(file: Path, number: int, found: dict[str, Any]) -> Task:
    if len(found["prompt"]) > LONGEST:
        raise UserError(f"The prompt in line {number} of {file} is longer than {LONGEST:,} characters; shorten it.")
    return Task(
        found["prompt"].strip(),
        id=str(found.get("id", f"{file.stem}-{number}")),
        category=str(found.get("category", "")),
        metadata={key: value for key, value in found.items() if key not in ("prompt", "id", "category")},
    )
