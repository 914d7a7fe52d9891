"""A run's folder: what was asked, every scored draft, every finished search. It survives being killed at any moment.

    run.json          what decides the results (model, critics, budget, seeds, ...): a run goes on only with the same
    tasks.jsonl       the prompts
    journal.jsonl     one line a start, one a scored draft, one a finished search, in the order in which they came
    images/ab/*.png   the drafts' images, named by the SHA-256 of their content

A line is on disk (fsync) before the next round draws, and the image that it names before the line. What a kill can tear
is the last line, which is dropped and drawn again. Append-only text and not SQLite: its write-ahead log does not work
on the network file systems of clusters, and a line can be read, counted and mended with any tool. One writer at a
time: the journal is locked. This file knows no model and no statistics.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from milr.drafts import Draft, Task, UserError
from milr.runs.looks import look
from milr.runs.output import write_atomically
from milr.runs.record import draft_from_json, draft_to_json

if TYPE_CHECKING:
    from PIL.Image import Image

FORMAT = "milr-run/1"
KINDS = ("started", "draft", "outcome")  # of lines

Key = tuple[str, str, int]  # method, task id, seed index: names one search of a run


@dataclass(frozen=True)
class Outcome:
    """A finished search: of each draft its reward, decoded tokens, seconds and the search's move; which draft was
    returned, what the held-out critics say of it and of the first one (None: abstained), and which checks the returned
    draft fails, in the words of each critic."""

    method: str
    spec: str
    task: str
    seed_index: int
    category: str
    rewards: tuple[float | None, ...]
    tokens: tuple[int, ...]
    seconds: tuple[float, ...]
    moves: tuple[str, ...]
    returned: int
    stopped: str
    held_out: Mapping[str, float | None] = field(default_factory=dict)
    held_out_first: Mapping[str, float | None] = field(default_factory=dict)
    failed: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        return self.method, self.task, self.seed_index


class Journal:
    """A run's folder, open for writing. `outcomes` are the finished searches; `recorded` reads drafts of the others."""

    def __init__(self, folder: Path, head: Mapping[str, Any], tasks: Sequence[Task] = ()) -> None:
        self.folder, self.head = folder, {"format": FORMAT, **head}
        self.tasks = tasks
        self.outcomes: dict[Key, Outcome] = {}
        self._begun: dict[Key, list[dict[str, Any]]] = {}  # lines of drafts whose search has not ended
        self._folders: set[Path] = set()  # with new images, not yet on disk
        self._lines = bytearray()  # not yet written
        self._stream: FileIO

    def __enter__(self) -> Journal:
        file = self.folder / "journal.jsonl"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._stream = open(file, "a+b", buffering=0)
        except OSError as error:
            raise UserError(f"Cannot write {file} ({error.strerror}); name another folder with --out.") from error
        try:
            _lock(self._stream.fileno(), file)
            self._claim()
            self._read()
        except BaseException:
            self._stream.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def start(self, about: Mapping[str, Any]) -> None:
        """Note that the run was started (again): its methods, versions and what else the report should say."""
        self._write({"started": dict(about)})
        self.sync()

    def add_draft(self, method: str, task: str, seed_index: int, draft: Draft) -> None:
        """Keep a scored draft; durable after the next `sync`."""
        image = draft.drawn.image
        line = {"draft": draft_to_json(draft), "image": self._keep(image), "look": look(image)}
        self._write({"method": method, "task": task, "seed_index": seed_index, **line})

    def add(self, outcome: Outcome) -> None:
        """Keep a finished search: on disk when this returns."""
        self._write({"outcome": asdict(outcome)})
        self.sync()
        self.outcomes[outcome.key] = outcome
        self._begun.pop(outcome.key, None)

    def sync(self) -> None:
        """Everything added so far is on disk when this returns."""
        try:
            while self._folders:
                _sync_folder(self._folders.pop())
            while self._lines:
                del self._lines[: self._stream.write(self._lines)]
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise UserError(
                f"Cannot write to {self.folder} ({error.strerror}); make room and run the same command again, it goes "
                "on where it stopped."
            ) from error

    def recorded(self, method: str) -> dict[tuple[str, int], list[Draft]]:
        """The drafts of this method's searches that have begun and not ended, by task and seed index.

        Where an image is missing or is not what its name says, the drafts from there on are left out: they are drawn
        again.
        """
        found: dict[tuple[str, int], list[Draft]] = {}
        for (name, task, seed_index), lines in self._begun.items():
            if name != method:
                continue
            drafts = found.setdefault((task, seed_index), [])
            for line in lines:
                image = self.image(line["image"])
                if image is None or line["draft"]["number"] != len(drafts):
                    break
                drafts.append(draft_from_json(line["draft"], image))
        return found

    def image(self, name: str) -> Image | None:
        """The image of this content, or None."""
        return read_image(self.folder, name)

    def finished(self, method: str, spec: str) -> set[tuple[str, int]]:
        """The searches of this method that are done, by task and seed index. Raises UserError where its name meant
        something else before."""
        mine = [outcome for outcome in self.outcomes.values() if outcome.method == method]
        other = next((outcome.spec for outcome in mine if outcome.spec != spec), None)
        if other is not None:
            raise UserError(f"In {self.folder} '{method}' is '{other}', not '{spec}'; give it another LABEL=.")
        return {(outcome.task, outcome.seed_index) for outcome in mine}

    # The folder

    def _claim(self) -> None:
        file = self.folder / "run.json"
        if not file.exists():
            if self._stream.tell() > 0:
                raise UserError(f"{self.folder} holds a journal without run.json; name another folder with --out.")
            self._write_head()
            return
        head = read_head(self.folder)
        differs = next((key for key in self.head if head.get(key) != self.head[key]), None)
        if differs is not None and all("started" in line for line in read_lines(self.folder)):
            self._stream.truncate(0)  # nothing was drawn (a critic could not be loaded, say): the folder is free
            self._write_head()
            return
        if differs is not None:
            raise UserError(
                f"{self.folder} belongs to a run with another {differs.replace('_', ' ')} "
                f"({_short(head.get(differs))}, not {_short(self.head[differs])}); name another folder with --out, "
                "or add --force-new to put that run aside."
            )

    def _write_head(self) -> None:
        lines = "".join(json.dumps(asdict(task)) + "\n" for task in self.tasks)
        write_atomically(self.folder / "tasks.jsonl", lines.encode())
        write_atomically(self.folder / "run.json", (json.dumps(self.head, indent=2) + "\n").encode())

    def _read(self) -> None:
        end = 0
        for start, line in _lines(self.folder / "journal.jsonl"):
            if "outcome" in line:
                outcome = read_outcome(line["outcome"])
                self.outcomes[outcome.key] = outcome
                self._begun.pop(outcome.key, None)
            elif "draft" in line:
                key = (line["method"], line["task"], line["seed_index"])
                lines = self._begun.setdefault(key, [])
                del lines[line["draft"]["number"] :]  # drawn afresh after an image was lost
                lines.append(line)
            end = start
        self._stream.truncate(end)

    def _keep(self, image: Image) -> str:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        content = buffer.getvalue()
        name = hashlib.sha256(content).hexdigest()
        file = image_file(self.folder, name)
        if read_image(self.folder, name) is None:
            write_atomically(file, content)
            self._folders.add(file.parent)
        return name

    def _write(self, line: Mapping[str, Any]) -> None:
        self._lines += json.dumps({**line, "at": round(time.time(), 3)}, allow_nan=False).encode() + b"\n"


# --- Reading, also while a run goes on ------------------------------------------------------------------------------


def read_head(folder: Path) -> dict[str, Any]:
    """What run.json says. Raises UserError where the folder is no run."""
    file = folder / "run.json"
    try:
        head = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{folder} is no run of milr (no readable run.json); give the folder of --out.") from error
    except ValueError as error:
        raise UserError(f"{file} is no JSON; the run cannot be read.") from error
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise UserError(f"{file} is not of the format {FORMAT}; the run cannot be read by this milr.")
    return head


def read_tasks(folder: Path) -> list[Task]:
    """The prompts of a run. Raises UserError where a line is none."""
    tasks = []
    with _open(folder / "tasks.jsonl") as stream:
        for number, line in enumerate(stream, 1):
            try:
                task = Task(**json.loads(line))
                for text in (task.prompt, task.id, task.category, *task.metadata.keys()):
                    text.encode()
            except (ValueError, TypeError, AttributeError, RecursionError) as error:
                raise UserError(
                    f"Line {number} of {folder / 'tasks.jsonl'} is no prompt as milr writes them; it belongs to the "
                    "run, restore it."
                ) from error
            tasks.append(task)
    return tasks


def read_lines(folder: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a journal, in order; also of a run that is going on."""
    return (line for _, line in _lines(folder / "journal.jsonl"))


def read_outcome(fields: Mapping[str, Any]) -> Outcome:
    """An outcome as `Journal.add` wrote it."""
    values: Any = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return Outcome(**values)


def read_image(folder: Path, name: str) -> Image | None:
    """The image whose content has this SHA-256; None where the file is missing or holds something else."""
    from PIL import Image

    try:
        content = image_file(folder, name).read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content).hexdigest() != name:
        return None
    image = Image.open(io.BytesIO(content), formats=["PNG"])
    image.load()
    return image


def image_file(folder: Path, name: str) -> Path:
    """Where the image of this SHA-256 lies."""
    return folder / "images" / name[:2] / f"{name}.png"


def put_aside(folder: Path) -> Path | None:
    """Rename a run's folder, so that a new one can take its name. Returns its new path, None if there is none."""
    if not folder.exists():
        return None
    aside = next(
        path for number in range(1, 100_000) if not (path := folder.with_name(f"{folder.name}.old-{number}")).exists()
    )
    try:
        shutil.move(folder, aside)
    except OSError as error:
        raise UserError(f"Cannot rename {folder} ({error.strerror}); name another folder with --out.") from error
    return aside


def _open(file: Path) -> BinaryIO:
    try:
        return open(file, "rb")
    except OSError as error:
        raise UserError(f"Cannot read {file} ({error.strerror}); it belongs to the run, restore it.") from error


def _lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(where it ends, line) of every whole line. A torn last one is left out; a damaged one before it is an error."""
    end = 0
    with _open(file) as stream:
        torn = 0
        for number, raw in enumerate(stream, 1):
            if torn:
                raise UserError(
                    f"Line {torn} of {file} is damaged, and others follow it; restore the file, or delete that line: "
                    "its draft is then drawn again."
                )
            try:
                line = json.loads(raw) if raw.endswith(b"\n") else None
            except ValueError:
                line = None
            if not isinstance(line, dict) or line.keys().isdisjoint(KINDS):
                torn = number
                continue
            end += len(raw)
            yield end, line


def _sync_folder(folder: Path) -> None:
    """Renames in a folder are durable once the folder is."""
    for path in (folder, folder.parent):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _lock(descriptor: int, file: Path) -> None:
    """One writer at a time; the system lets go of the lock when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows: no lock, and nobody should start two
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UserError(f"Another run is writing {file}; wait for it, or name another folder.") from error


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
