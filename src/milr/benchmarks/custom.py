"""Your own prompts: text (one a line), JSONL, JSON, CSV or TSV, with checks that a critic may ask. Four packs ship.

    {"prompt": "a clock that shows half past three", "id": "clock", "category": "teaching",
     "checks": ["Is there a clock?", "Does the long hand point to six?"]}

Only `prompt` is needed; `milr.reading` says which files are read how. `checks` are questions whose answer is yes for a
right picture, for critics that ask questions (`vqa-score`, `judge:geneval-style`; `self` asks about the whole prompt);
in a table they are such a list, too. Any other key goes to `metadata`, e.g. GenEval's `tag`, `include` and `exclude`
for the critic `geneval`, or `text`, the words that `ocr` should find.

The pack `medical` asks for labels, arrows, boxes and views, never for a finding: its checks say whether a picture is
annotated as asked, not whether it is anatomically right. Nothing in it is fit for clinical use or for training on it.
"""

from __future__ import annotations

import json
from pathlib import Path

from milr.benchmarks.base import spread
from milr.drafts import Task, UserError
from milr.reading import STDIN, Entry, name_of, objection, read_entries
from milr.registry import did_you_mean, shorten

NAME = "custom"
SUMMARY = "Your own prompts: text, JSONL or CSV (--data FILE), or a pack: products, architecture, medical, teaching"
VERSION = 1
PACKS = ("products", "architecture", "medical", "teaching")
DATA_HELP = (
    "a text file (one prompt a line), JSONL or JSON with 'prompt' in each object, CSV or TSV with a column 'prompt', "
    "or a pack: " + ", ".join(PACKS) + " (medical: not for clinical use)"
)
REWARD = "self"
NUMBER = "success"
FOLDER = Path(__file__).parent / "data" / "packs"


def tasks(
    count: int | None = None, seed: int | None = None, categories: tuple[str, ...] = (), *, data: Path | None = None
) -> list[Task]:
    """The prompts of a file or pack, or `count` of them, evenly over their categories (none given: all).

    Raises UserError with the line's number where a line is no prompt, or an id comes twice.
    """
    if data is None:
        raise UserError(f"'custom' needs your prompts: --data is {DATA_HELP}.")
    file = FOLDER / f"{data}.jsonl" if str(data) in PACKS else data
    if file != STDIN and not file.exists():
        raise UserError(
            f"Cannot read {shorten(str(data), 300)} (there is no such file or pack).{did_you_mean(str(data), PACKS)} "
            f"--data is {DATA_HELP}."
        )
    every = [_task(entry, name_of(file) if file == STDIN else file.stem) for entry in read_entries(file)]
    there: dict[str, Entry] = {}
    for task, entry in every:
        if task.id in there:
            raise UserError(
                f"Two prompts in {name_of(file)} have the id '{shorten(task.id)}' ({_place(there[task.id])} and "
                f"{_place(entry)}); give each its own."
            )
        there[task.id] = entry
    chosen = [task for task, _ in every if not categories or task.category in categories]
    if not chosen:
        raise UserError(f"There is no prompt in {name_of(file)} of these categories.")
    return spread(chosen, count)


def _task(entry: Entry, stem: str) -> tuple[Task, Entry]:
    checks = entry.fields.get("checks")
    if isinstance(checks, str):  # a cell of a table
        try:
            checks = json.loads(checks)
        except (ValueError, RecursionError):
            checks = False
    if checks is None:
        checks = []
    if not isinstance(checks, list) or not all(_is_question(check) for check in checks):
        raise UserError(f"The 'checks' in {entry.where} are no list of questions; write [\"Is ...?\", ...].")
    metadata = {key: value for key, value in entry.fields.items() if key not in ("id", "category", "checks")}
    if checks:
        metadata["checks"] = checks
    return Task(
        entry.prompt,
        id=entry.text("id") or f"{stem}-{entry.number}",
        category=entry.text("category"),
        metadata=metadata,
    ), entry


def _place(entry: Entry) -> str:
    return entry.where.partition(" of ")[0]


def _is_question(check: object) -> bool:
    return isinstance(check, str) and bool(check.strip()) and objection(check) is None
