"""A run's folder: what was asked, every scored draft, every finished search. It survives being killed at any moment.

    run.json          what decides the results (model, critics, budget, seeds, ...): a run goes on only with the same
    tasks.jsonl       the prompts
    journal.jsonl     one line a start, one a scored draft, one a finished search, in the order in which they came
    images/ab/*.png   the drafts' images, named by the SHA-256 of their content

A line is on disk (fsync) before the next round draws, and the image that it names before the line. Pictures are encoded
and written by threads beside the one that draws, from the moment they are there; `sync` waits for them. What a kill can
tear is the last line, which is dropped and drawn again. Append-only text and not SQLite: its write-ahead log does not
work on the network file systems of clusters, and a line can be read, counted and mended with any tool. One writer at a
time: the journal is locked. This file knows no model and no statistics.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Generic, TypeVar

from milr.disk import Lock, make_folder, sync, sync_folder, write_atomically, write_whole
from milr.drafts import Draft, Task, UserError
from milr.runs.looks import look
from milr.runs.record import draft_from_json, draft_to_json

if TYPE_CHECKING:
    from PIL.Image import Image

FORMAT = "milr-run/1"
KINDS = ("started", "draft", "outcome")  # of lines
WRITERS = 4  # threads that encode and write pictures

Key = tuple[str, str, int]  # method, task id, seed index: names one search of a run


@dataclass(frozen=True)
class Outcome:
    """A finished search: of each draft its reward, decoded tokens, seconds and the search's move; which draft was
    returned, what the held-out critics say of it and of the first one (None: abstained), and which checks the returned
    draft fails, in the words of each critic. `unjudged` are the critics that could not be asked for something (None: an
    older line, which does not say), `prefilled` the tokens that each draft read and did not choose, `judging` and
    `searching` the seconds that its critic and its search took beside the `seconds` of drawing, `passes` how often the
    model was run for it, `work` its floating point operations and `evaluations` how often a flow model's drawing
    network was run (none of these six in older lines)."""

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
    prefilled: tuple[int, ...] = ()
    unjudged: tuple[str, ...] | None = None
    judging: tuple[float, ...] = ()
    searching: tuple[float, ...] = ()
    passes: tuple[int, ...] = ()
    work: tuple[float, ...] = ()
    evaluations: tuple[int, ...] = ()

    @property
    def key(self) -> Key:
        return self.method, self.task, self.seed_index

    @property
    def all_seconds(self) -> tuple[float, ...]:
        """What each draft took in all, as far as that is on record."""
        if not self.judging:
            return self.seconds
        return tuple(map(sum, zip(self.seconds, self.judging, self.searching, strict=True)))

    def lacks(self, critic: str) -> tuple[str, ...]:
        """The critics whose verdicts are missing since they could not be asked; `critic` is the one that was climbed.
        A search that ended so can be taken up again."""
        if self.unjudged is not None:
            return self.unjudged
        verdicts = [(name, value) for of in (self.held_out, self.held_out_first) for name, value in of.items()]
        has_failed = self.stopped == "abstained" or all(reward is None for reward in self.rewards)
        return (*([critic] if has_failed else ()), *dict.fromkeys(name for name, value in verdicts if value is None))


@dataclass(frozen=True)
class _Kept:
    """Where a draft's line stands in the journal, and its picture: image and reasoning."""

    start: int
    size: int
    picture: tuple[str, str]


@dataclass(frozen=True)
class _Stored:
    """A picture that is written; its name is durable when these folders are synced."""

    name: str
    look: Mapping[str, float]
    folders: set[Path]


@dataclass(frozen=True)
class _Pending:
    """A draft that was added, its line but for the picture, and when that was."""

    key: Key
    number: int
    line: Mapping[str, Any]
    at: float
    stored: Future[_Stored]


@dataclass(frozen=True)
class Picture:
    """A draft's image as it is kept: the PNG, the SHA-256 of its content that names it, and how it looks."""

    name: str
    content: bytes
    look: Mapping[str, float]

    def open(self) -> Image:
        """The image; its pixels are decoded when somebody wants them."""
        from PIL import Image

        return Image.open(io.BytesIO(self.content), formats=["PNG"])


def encode(image: Image) -> Picture:
    """The image as PNG. Of zlib's strategies the one for runs makes it as small as the default does and takes a third
    of its time."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    content = buffer.getvalue()
    return Picture(hashlib.sha256(content).hexdigest(), content, look(image))


Made = TypeVar("Made")


class Beside(Generic[Made]):
    """Works on images in threads beside the one that draws: from when they are foreseen, or else from when they are
    wanted."""

    def __init__(self, work: Callable[[Image], Made]) -> None:
        self._work, self._threads = work, ThreadPoolExecutor(WRITERS, "milr-pictures")  # they begin when needed
        self._foreseen: dict[
            int, tuple[Image, Future[Made]]
        ] = {}  # by identity: nobody else gets that while it is held

    def foresee(self, image: Image) -> None:
        """This image will be wanted."""
        self._foreseen[id(image)] = image, self._threads.submit(self._work, image)

    def wanted(self, image: Image) -> Future[Made]:
        """What becomes of this image."""
        _, future = self._foreseen.pop(id(image), (image, None))
        return future or self.submit(self._work, image)

    def submit(self, work: Callable[..., Made], *arguments: Any) -> Future[Made]:
        """What becomes of other work."""
        return self._threads.submit(work, *arguments)

    def close(self) -> None:
        """Wait for what is begun; the rest is dropped."""
        self._threads.shutdown(cancel_futures=True)


Drawn = TypeVar("Drawn")


def put_in_order(drafts: list[Drawn], number: int, draft: Drawn, same: bool) -> None:
    """Put a draft's line where it belongs among those of its search. A picture that is there already (`same`) was
    judged again: those after it stay. Another one was drawn afresh: those after it are no longer of this search."""
    drafts[number : number + 1 if same else None] = [draft]


class Journal:
    """A run's folder, open for writing. `outcomes` are the finished searches; `recorded` reads drafts of the others."""

    def __init__(
        self,
        folder: Path,
        head: Mapping[str, Any],
        tasks: Sequence[Task] = (),
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`head` and `tasks` say what the run is; `note` hears what a user should know of the folder."""
        self.folder, self.head = folder, {"format": FORMAT, **head}
        self.tasks, self.note = tasks, note
        self.outcomes: dict[Key, Outcome] = {}
        self._begun: dict[Key, list[_Kept]] = {}  # drafts whose search has not ended, or lacks a verdict
        self.machines: list[Mapping[str, Any]] = []  # that have drawn here, each once, the last one last
        self._folders: set[Path] = set()  # with new names, not yet on disk
        self._lines = bytearray()  # not yet written
        self._pending: deque[_Pending] = deque()  # drafts whose picture may not be on disk yet, and so not in `_lines`
        self._named: dict[Key, list[str]] = {}  # the pictures of searches that have not ended
        self._beside: Beside[_Stored] = Beside(self._keep)
        self._writing = [threading.Lock() for _ in range(16)]  # nobody writes a picture that another is writing
        self._failed: OSError | None = None
        self._stream: FileIO
        self._lock = Lock(folder / "journal.lock")

    def __enter__(self) -> Journal:
        file = self.folder / "journal.jsonl"
        try:
            # Those of a process that was killed too: it may not have come to sync them.
            self._folders |= {*make_folder(self.folder), self.folder.parent, self.folder}
            self._folders |= {images for images in (self.folder / "images",) if images.is_dir()}
            self._stream = open(file, "a+b", buffering=0)
        except OSError as error:
            raise UserError(f"Cannot write {file} ({error.strerror}); name another folder with --out.") from error
        try:
            try:
                warning = self._lock.take(self._stream.fileno())
            except BlockingIOError as error:
                raise UserError(f"Another run is writing {file}; wait for it, or name another folder.") from error
            if warning:
                self.note(warning)
            self._claim()
            self._read()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._beside.close()
        self._lock.release()
        self._stream.close()

    def start(self, about: Mapping[str, Any]) -> None:
        """Note that the run was started (again): its methods, versions and what else the report should say."""
        self._write({"started": dict(about)})
        self.sync()

    def foresee(self, image: Image) -> None:
        """The image of a draft that will be added: it can be encoded and written while it is judged."""
        self._beside.foresee(image)

    def add_draft(self, method: str, task: str, seed_index: int, draft: Draft, picture: Picture | None = None) -> None:
        """Keep a scored draft; durable after the next `sync`. `picture`: its image, where that is encoded already.
        Raises UserError where an earlier picture could not be written."""
        if self._failed is not None:
            raise self._no_room(self._failed) from self._failed
        key = (method, task, seed_index)
        names = self._named.get(key) or [kept.picture[0] for kept in self._begun.get(key, ())]
        before = names[draft.number] if draft.number < len(names) else None
        image = draft.drawn.image
        if before is not None or picture is not None:
            stored = self._beside.submit(self._keep, image, picture, before)
        else:
            stored = self._beside.wanted(image)
        line = {"method": method, "task": task, "seed_index": seed_index, "draft": draft_to_json(draft)}
        self._pending.append(_Pending(key, draft.number, line, _now(), stored))

    def add(self, outcome: Outcome) -> None:
        """Keep a finished search: on disk when this returns."""
        self._settle()
        self._write({"outcome": asdict(outcome)})
        self.sync()
        self.outcomes[outcome.key] = outcome
        self._begun.pop(outcome.key, None)
        self._named.pop(outcome.key, None)

    def sync(self) -> None:
        """Everything added so far is on disk when this returns."""
        self._settle()
        try:
            for folder in sorted(self._folders):  # before the lines that speak of what is in them
                sync_folder(folder)
            self._folders.clear()
            while self._lines:
                del self._lines[: self._stream.write(self._lines)]
            sync(self._stream.fileno())
        except OSError as error:
            raise self._no_room(error) from error

    def recorded(self, method: str, task: str, seed_index: int) -> list[Draft]:
        """The drafts on record of a search that has not ended, or that lacks a verdict.

        Where an image is missing or is not what its name says, the drafts from there on are left out: they are drawn
        again.
        """
        drafts: list[Draft] = []
        for kept in self._begun.get((method, task, seed_index), ()):
            self._stream.seek(kept.start)  # writing goes to the end whatever this says: it is opened to append
            line = json.loads(self._stream.read(kept.size))
            image = self.image(line["image"])
            if image is None or line["draft"]["number"] != len(drafts):
                break
            drafts.append(draft_from_json(line["draft"], image))
        return drafts

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
        head = _head_of(self.folder)
        if "checks" in self.head and "checks" not in head:  # of a milr that did not note it
            head["checks"] = question_of(read_tasks(self.folder))["checks"]
        differs = difference(head, self.head)
        if differs and all("started" in line for line in read_lines(self.folder)):
            self._stream.truncate(0)  # nothing was drawn (a critic could not be loaded, say): the folder is free
            self._write_head()
            return
        if differs:
            tasks = task_difference(read_tasks(self.folder), self.tasks) if differs in QUESTION else ""
            raise UserError(
                f"{self.folder} belongs to a run with {tasks or _in_words(differs, head, self.head)}; name another "
                "folder with --out, or add --force-new to put that run aside."
            )
        self.head = {**self.head, **head, **_completed(head, self.head)}
        self._write_head()  # with what an older milr did not note; and the prompts, should their file have been changed

    def _write_head(self) -> None:
        lines = "".join(json.dumps(asdict(task)) + "\n" for task in self.tasks)
        head = json.dumps(self.head, indent=2) + "\n"
        for name, text in (("tasks.jsonl", lines), ("run.json", head)):
            file = self.folder / name
            if not file.exists() or file.read_bytes() != text.encode():
                write_atomically(file, text.encode())

    def _read(self) -> None:
        end = 0
        machine: Mapping[str, Any] = {}
        for after, line in _lines(self.folder / "journal.jsonl"):
            if "outcome" in line:
                outcome = read_outcome(line["outcome"])
                end = after
                if len(self._begun.get(outcome.key, ())) < len(outcome.rewards):
                    continue  # a draft's line is lost: it is drawn again, the others are there
                self.outcomes[outcome.key] = outcome  # the last one counts: it was taken up again
                if not outcome.lacks(str(self.head.get("critic", ""))):
                    self._begun.pop(outcome.key, None)
            elif "draft" in line:
                key, number = (line["method"], line["task"], line["seed_index"]), line["draft"]["number"]
                kept = _Kept(end, after - end, (line["image"], line["draft"]["reasoning"]))
                drafts = self._begun.setdefault(key, [])
                put_in_order(drafts, number, kept, number < len(drafts) and drafts[number].picture == kept.picture)
                if machine and machine not in self.machines[-1:]:
                    self.machines.append(machine)
            else:
                machine = line["started"].get("machine") or {}
            end = after
        self._stream.truncate(end)

    def _keep(self, image: Image, picture: Picture | None = None, before: str | None = None) -> _Stored:
        """Write an image, in a thread of its own. `before` is the picture that this draft has on record: the same one
        judged again keeps its name, also where another zlib or an older milr encoded it."""
        known = None if before is None else read_image(self.folder, before)
        if before and known is not None and (known.mode, known.tobytes()) == (image.mode, image.tobytes()):
            return _Stored(before, look(image), {image_file(self.folder, before).parent})
        picture = picture or encode(image)
        file = image_file(self.folder, picture.name)
        # Also where it is there: who wrote it may have been killed before this. Above it, another thread may have made
        # the folders and not said so yet.
        folders = {file.parent, file.parent.parent, self.folder}
        try:
            with self._writing[int(picture.name[0], 16)]:
                if not _holds(file, picture.content):
                    folders |= write_whole(file, picture.content)
        except OSError as error:
            self._failed = error
            raise
        return _Stored(picture.name, picture.look, folders)

    def _settle(self) -> None:
        """Wait for the pictures of the drafts that were added, and make lines of them, in their order. Where one cannot
        be written it and those after it are dropped: a search's drafts are on record without a gap."""
        while self._pending:
            one = self._pending[0]
            try:
                stored = one.stored.result()
            except OSError as error:
                self._pending.clear()
                raise self._no_room(error) from error
            self._folders |= stored.folders
            names = self._named.setdefault(one.key, [kept.picture[0] for kept in self._begun.get(one.key, ())])
            put_in_order(names, one.number, stored.name, names[one.number : one.number + 1] == [stored.name])
            self._write({**one.line, "image": stored.name, "look": stored.look}, one.at)
            self._pending.popleft()  # only now: Ctrl-C in between gives a line twice, which says nothing new

    def _no_room(self, error: OSError) -> UserError:
        return UserError(
            f"Cannot write to {self.folder} ({error.strerror}); make room and run the same command again, it goes on "
            "where it stopped."
        )

    def _write(self, line: Mapping[str, Any], at: float | None = None) -> None:
        self._lines += json.dumps({**line, "at": _now() if at is None else at}, allow_nan=False).encode() + b"\n"


def _now() -> float:
    return round(time.time(), 3)


def _holds(file: Path, content: bytes) -> bool:
    try:
        return file.read_bytes() == content
    except OSError:
        return False


# --- What a run is asked ---------------------------------------------------------------------------------------------

QUESTION = ("tasks", "checks")  # keys of run.json: digests of the prompts, and of what else is known of them


def question_of(tasks: Sequence[Task]) -> dict[str, str]:
    """What run.json says of the tasks: a digest of ids and prompts, and one of categories and metadata (checks)."""

    def digest(listed: list[Any]) -> str:
        return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()[:16]

    prompts = digest([(task.id, task.prompt) for task in tasks])
    checks = digest([(task.id, task.category, task.metadata) for task in tasks])
    return {"tasks": f"{len(tasks)} tasks, {prompts}", "checks": checks}


def difference(head: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The first key of `other` in which two heads differ, '' for none. What one of them does not know (an older milr
    wrote it) is no difference."""
    for key, value in other.items():
        known = head.get(key, value)
        if isinstance(known, Mapping) and isinstance(value, Mapping):  # contents of critics, by critic
            if any(known[name] != value[name] for name in known.keys() & value.keys()):
                return key
        elif known != value:
            return key
    return ""


def _completed(head: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What a head takes over from another one that is no different: the contents of critics that it does not know."""
    both = {key: (head[key], value) for key, value in other.items() if isinstance(head.get(key), Mapping)}
    return {key: {**theirs, **mine} for key, (mine, theirs) in both.items()}


def task_difference(tasks: Sequence[Task], others: Sequence[Task]) -> str:
    """How two lists of tasks differ, in words; '' if they do not."""
    if len(tasks) != len(others):
        return f"another number of prompts ({len(tasks)}, not {len(others)})"
    for task, other in zip(tasks, others, strict=True):
        for what, old, new in (
            ("id", task.id, other.id),
            ("text", task.prompt, other.prompt),
            ("category", task.category, other.category),
        ):
            if old != new:
                return f"other prompts (the {what} of prompt '{task.id[:40]}' was {_short(old)}, not {_short(new)})"
        was, now = _as_read(task.metadata), _as_read(other.metadata)
        name = next((key for key in sorted({*was, *now}) if was.get(key) != now.get(key)), None)
        if name is not None:
            return (
                f"other {name[:40]} for prompt '{task.id[:40]}' ({_short(was.get(name))}, not {_short(now.get(name))})"
            )
    return ""


def _as_read(metadata: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(metadata))  # tuples come back as lists
    return found


def _in_words(differs: str, head: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    if differs == "contents":
        name = next(name for name, value in other[differs].items() if head[differs].get(name, value) != value)
        return f"another '{name}': its files have changed since ({head[differs][name]}, not {other[differs][name]})"
    return f"another {differs.replace('_', ' ')} ({_short(head.get(differs))}, not {_short(other[differs])})"


# --- Reading, also while a run goes on ------------------------------------------------------------------------------


def read_head(folder: Path) -> dict[str, Any]:
    """What run.json says. Raises UserError where the folder is no run, or its prompts are no longer those it began
    with."""
    head = _head_of(folder)
    if "tasks" not in head:
        return head
    found = question_of(read_tasks(folder))
    if difference(head, found):
        raise UserError(
            f"{folder / 'tasks.jsonl'} holds other prompts or checks than the run began with; restore it, or run the "
            "run's command again."
        )
    return {**head, **found}


def _head_of(folder: Path) -> dict[str, Any]:
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
        sync_folder(folder.parent)
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


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
