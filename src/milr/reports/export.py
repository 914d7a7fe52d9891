"""Writes a run's returned pictures in the layouts that official scorers read (`runs.score` says what they are)."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from milr.disk import write_atomically
from milr.drafts import Task, UserError
from milr.paths import Names, below
from milr.reports.reading import Reading
from milr.runs.journal import image_file
from milr.runs.score import file_prompt


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
    places = _Places(layout, reading.tasks, seeds)
    count = 0
    for number, task in enumerate(reading.tasks):
        for seed in range(seeds):
            content = _content(reading.folder, ends[task.id, seed].returned_image)
            for parts, what in places.of(task, number, seed, content):
                write_atomically(below(out, *parts), what)
            count += 1
    return count


def _content(folder: Path, name: str) -> bytes:
    """The file of a picture, if its content is what its name says."""
    if not re.fullmatch(r"[0-9a-f]{64}", name):
        raise UserError(f"The journal of {folder} names a picture {name!r:.100}, which is no name of one; restore it.")
    file = image_file(folder, name)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"The image {file} is lost ({error.strerror}); restore it.") from error
    if hashlib.sha256(content).hexdigest() != name:
        raise UserError(f"The image {file} is not the one that was drawn (its content has changed); restore it.")
    return content


class _Places:
    """Where pictures go, and what goes beside them. Whatever the tasks hold, nothing leaves the folder, and no file
    is written twice."""

    def __init__(self, layout: str, tasks: Sequence[Task], seeds: int) -> None:
        self._layout, self._seeds = layout, seeds
        self._folders = Names()
        self._files: dict[tuple[str, ...], Names] = {}  # by folder
        self._numbers = _numbers(tasks)

    def of(self, task: Task, number: int, seed: int, content: bytes) -> Iterator[tuple[tuple[str, ...], bytes]]:
        """The names of each file below the folder, and what is in it."""
        if self._layout == "geneval":
            place = self._numbers[number]
            if seed == 0:
                line = json.dumps({**task.metadata, "prompt": task.prompt}) + "\n"
                yield (place, "metadata.jsonl"), line.encode()
            yield (place, "samples", f"{seed:04d}.png"), content
        elif self._layout == "wise":
            folders = () if self._seeds == 1 else (str(seed),)
            wanted = str(task.metadata.get("prompt_id", number + 1))
            yield (*folders, self._files.setdefault(folders, Names()).fresh(wanted, ".png")), content
        else:
            folders = (self._folders.of(task.category),) if task.category else ()
            yield (*folders, f"{file_prompt(task.prompt)}_{number * self._seeds + seed:06d}.png"), content


def _numbers(tasks: Sequence[Task]) -> list[str]:
    """Folders of GenEval's scorer are numbers: the task's own where its id has one, else its place; none twice."""
    found: dict[int, str] = {}
    taken: set[str] = set()
    for place, task in enumerate(tasks):
        own = re.fullmatch(r"geneval-([0-9]{5})", task.id)
        if own and own[1] not in taken:
            found[place] = own[1]
            taken.add(own[1])
    for place in range(len(tasks)):
        if place not in found:
            found[place] = next(name for number in itertools.count(place) if (name := f"{number:05d}") not in taken)
            taken.add(found[place])
    return [found[place] for place in range(len(tasks))]
