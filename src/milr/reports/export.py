"""Writes a run's returned pictures in the layouts that official scorers read (`runs.score` says what they are)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from milr.disk import write_atomically
from milr.drafts import Task, UserError
from milr.reports.reading import Reading
from milr.runs.journal import image_file


def export(reading: Reading, method: str, layout: str, out: Path) -> int:
    """Write the returned pictures of one method of a run in a layout that official scorers read. Returns how many.

    Raises UserError where the method is not there, the run not finished, an image lost, or `out` not empty.
    """
    names = [one.name for one in reading.methods]
    if method not in names:
        raise UserError(f"There is no method '{method}' in {reading.folder}; there are {', '.join(names)}.")
    ends = {key[1:]: one for key, one in reading.ends.items() if key[0] == method}
    seeds = int(reading.head["seeds"])
    missing = len(reading.tasks) * seeds - len(ends)
    if missing:
        raise UserError(
            f"{missing} searches of '{method}' are missing in {reading.folder}; run its command again first."
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not an empty folder; name another with --out.")
    count = 0
    for number, task in enumerate(reading.tasks):
        for seed in range(seeds):
            file = image_file(reading.folder, ends[task.id, seed].returned_image)
            try:
                content = file.read_bytes()
            except OSError as error:
                raise UserError(f"The image {file} is lost ({error.strerror}); restore it.") from error
            for path, what in _places(layout, task, number, seed, seeds, content):
                write_atomically(out / path, what)
            count += 1
    return count


def _places(
    layout: str, task: Task, number: int, seed: int, seeds: int, content: bytes
) -> Iterator[tuple[Path, bytes]]:
    """Where a picture goes, and what goes beside it."""
    if layout == "geneval":
        match = re.fullmatch(r"geneval-(\d{5})", task.id)
        place = Path(match[1] if match else f"{number:05d}")
        if seed == 0:
            yield place / "metadata.jsonl", (json.dumps({"prompt": task.prompt, **task.metadata}) + "\n").encode()
        yield place / "samples" / f"{seed:04d}.png", content
    elif layout == "wise":
        name = Path(f"{task.metadata.get('prompt_id', number + 1)}.png")
        yield (name if seeds == 1 else Path(str(seed)) / name), content
    else:
        prompt = task.prompt.strip().rstrip(".").replace("/", " ")
        yield Path(task.category or ".") / f"{prompt}_{number * seeds + seed:06d}.png", content
