"""Scores pictures that any generator made, in the layouts that official scorers read.

    geneval          00000/metadata.jsonl (the benchmark's line) and 00000/samples/0000.png, 0001.png, ...
    wise             1.png ... 1000.png, named by prompt_id; several seeds in folders 0, 1, ...
    t2i-compbench    <prompt>_000000.png, <prompt>_000001.png, ...

`milr.pictures` opens them. What is left out is said, with why, and what is missing too: only the whole benchmark has
the benchmark's own score. Every verdict is kept as it comes (`runs.verdicts`). Knows critics and benchmarks by what
they offer, no search.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milr.critics.base import content_of, judge
from milr.drafts import Score, Task, UserError, reaches
from milr.paths import safe_name
from milr.pictures import ENDINGS, Seen, read_file, see
from milr.reading import read_entries
from milr.registry import shorten
from milr.statistics import clustered_share, mean_interval

if TYPE_CHECKING:
    from milr.critics.base import Critic
    from milr.runs.verdicts import Verdicts

AT_ONCE = 32
LAYOUTS = ("geneval", "wise", "t2i-compbench")
BESIDE = ("metadata.jsonl", "grid.png")  # what official generators write beside their samples
FORMAT = "milr-score/1"


@dataclass(frozen=True)
class Picture:
    """An image file and the prompt that it was drawn for."""

    file: Path
    task: Task


@dataclass(frozen=True)
class LeftOut:
    """A file that is not scored, and why. `is_fault`: it should have been; its owner can mend it."""

    file: Path
    reason: str
    is_fault: bool = False


@dataclass(frozen=True)
class Found:
    """What a folder holds in a layout: pictures, and the files that are none of it. `tasks` are all that was asked
    for, of `of` prompts that the benchmark has."""

    pictures: tuple[Picture, ...]
    left_out: tuple[LeftOut, ...]
    tasks: tuple[Task, ...]
    of: int


# --- Reading -----------------------------------------------------------------------------------------------------


def find_pictures(folder: Path, layout: str, tasks: Sequence[Task], of: int | None = None) -> Found:
    """The pictures of a folder in this layout, with their prompts. Raises UserError where there are none.

    `of`: how many prompts the whole benchmark has, where `tasks` may be a part of it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the one that holds the pictures.")
    finders: Mapping[str, Callable[[Path, Sequence[Task]], Iterator[Picture | LeftOut]]] = {
        "geneval": _geneval,
        "wise": _wise,
        "t2i-compbench": _compbench,
    }
    try:
        every = list(finders[layout](folder, tasks))
    except OSError as error:
        raise UserError(f"Cannot read {error.filename or folder} ({error.strerror}); mend its permissions.") from error
    pictures = tuple(one for one in every if isinstance(one, Picture))
    left_out = tuple(one for one in every if isinstance(one, LeftOut))
    if not pictures:
        why = f" ({len(left_out)} files are left out, e.g. {_example(left_out)})" if left_out else ""
        raise UserError(f"There is no picture in {folder} in the layout of {layout}{why}; {LAYOUT_HELP[layout]}.")
    return Found(pictures, left_out, tuple(tasks), len(tasks) if of is None else of)


LAYOUT_HELP = {
    "geneval": "it wants 00000/metadata.jsonl and 00000/samples/0000.png",
    "wise": "it wants 1.png, 2.png, ... named by prompt_id",
    "t2i-compbench": "it wants '<prompt>_000000.png'",
}


def _geneval(folder: Path, tasks: Sequence[Task]) -> Iterator[Picture | LeftOut]:
    by_prompt = {task.prompt: task for task in tasks}
    of_place: dict[Path, Task | LeftOut] = {}
    for file in _files(folder):
        place = file.parent.parent
        if file.parent.name != "samples" or place.parent != folder or not _is_number(place.name):
            if file.name not in BESIDE:
                yield LeftOut(file, "it is not in NNNNN/samples")
        elif (why := _wrong_name(file, _is_number(file.stem), "NNNN.png")) is not None:
            yield LeftOut(file, why)
        else:
            if place not in of_place:
                of_place[place] = _task_of(place, by_prompt)
            of = of_place[place]
            yield Picture(file, of) if isinstance(of, Task) else LeftOut(file, of.reason, of.is_fault)


def _task_of(place: Path, by_prompt: Mapping[str, Task]) -> Task | LeftOut:
    """The task of a folder of GenEval's layout."""
    file = place / "metadata.jsonl"
    try:
        entries = read_entries(file)
    except UserError as error:
        return LeftOut(file, f"{file} is not a line of GenEval's metadata: {error}", is_fault=True)
    if len(entries) > 1:
        return LeftOut(file, f"{file} is not a line of GenEval's metadata but {len(entries)}", is_fault=True)
    prompt = entries[0].prompt
    return by_prompt.get(prompt) or LeftOut(file, f"its prompt is none of the benchmark's ('{shorten(prompt)}')")


def _wise(folder: Path, tasks: Sequence[Task]) -> Iterator[Picture | LeftOut]:
    by_id = {str(task.metadata.get("prompt_id", "")): task for task in tasks}
    for file in _files(folder):
        if file.parent != folder and not (file.parent.parent == folder and _is_number(file.parent.name)):
            yield LeftOut(file, "it is neither in the folder itself nor in one of a seed (0, 1, ...)")
        elif (why := _wrong_name(file, _is_number(file.stem), "<prompt_id>.png")) is not None:
            yield LeftOut(file, why)
        elif (task := by_id.get(file.stem.lstrip("0"))) is None:
            yield LeftOut(file, f"the prompts have no prompt_id {shorten(file.stem)}")
        else:
            yield Picture(file, task)


def _compbench(folder: Path, tasks: Sequence[Task]) -> Iterator[Picture | LeftOut]:
    by_prompt: dict[str, Task] = {}
    for task in tasks:
        for name in (file_prompt(task.prompt), task.prompt.strip().rstrip(".").replace("/", " ")):
            by_prompt.setdefault(name.lower(), task)
    for file in _files(folder):
        match = re.fullmatch(r"(.+)_\d+", file.stem, re.ASCII)
        if (why := _wrong_name(file, match is not None, "<prompt>_NNNNNN.png")) is not None or match is None:
            yield LeftOut(file, str(why))
        elif (found := by_prompt.get(match[1].strip().rstrip(".").lower())) is None:
            yield LeftOut(file, f"'{shorten(match[1])}' is no prompt of the benchmark")
        else:
            yield Picture(file, found)


def file_prompt(prompt: str) -> str:
    """A prompt as it stands in T2I-CompBench's file names, before the number: no full stop at the end."""
    number = "_0000000.png"  # room for it
    return safe_name(prompt.strip().rstrip("."), number).removesuffix(number)


def _files(folder: Path) -> list[Path]:
    """All files below, in order, but those that systems hide there."""
    every = (path for path in folder.rglob("*") if not any(part[0] == "." for part in path.relative_to(folder).parts))
    return sorted(path for path in every if not path.is_dir())


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _wrong_name(file: Path, fits: bool, wanted: str) -> str | None:
    """Why a file is none of the layout's pictures, by its name."""
    if file.suffix.lower() not in ENDINGS:
        return f"its ending is none of {', '.join(ENDINGS)}"
    return None if fits else f"its name is not {wanted}"


def _example(left_out: Sequence[LeftOut]) -> str:
    one = next((one for one in left_out if one.is_fault), left_out[0])
    return f"{shorten(str(one.file), 120)}: {shorten(one.reason, 200)}"


# --- Scoring -----------------------------------------------------------------------------------------------------


def score(
    found: Found,
    critics: Sequence[Critic],
    overall: Callable[[Mapping[str, float]], float] | None = None,
    tell: Callable[[int], None] = lambda done: None,
    record: Verdicts | None = None,
) -> dict[str, Any]:
    """Judge every picture with every critic; those that are on `record` already are not judged again.

    Returns one JSON object: `pictures` with each score, and for each critic `success` (share with a score of 1) and
    `score` (mean), both with 95 % intervals over prompts, by category too, and abstentions; `left_out` files with the
    reason; what is `missing`. The benchmark's own score is in it only where every prompt has as many pictures as any
    other and the critic judged them all. Pictures that cannot be read are left out. An abstention on record is asked
    for again: what kept the critic from judging may be mended. Raises UserError where two critics have one name, or no
    picture can be read; what was judged by then is on record.
    """
    if len({critic.name for critic in critics}) < len(critics):
        raise UserError("A critic is named twice; name each once.")
    lines = () if record is None else record.lines
    known: dict[Key, Mapping[str, Any]] = {_key_of(line): line for line in lines if line.keys() >= KEPT}
    rows: list[dict[str, Any]] = []
    unreadable: list[LeftOut] = []
    for start in range(0, len(found.pictures), AT_ONCE):
        some: list[tuple[Picture, str]] = []
        seen: dict[str, Seen] = {}
        for one in found.pictures[start : start + AT_ONCE]:
            try:
                content = read_file(one.file)
                name = hashlib.sha256(content).hexdigest()
                if any(_is_missing(known, critic, one, name) for critic in critics):
                    seen[name] = see(one.file, content)
            except UserError as error:
                unreadable.append(LeftOut(one.file, str(error), is_fault=True))
            else:
                some.append((one, name))
        for critic in critics:
            asked = {_key(critic, *which): which for which in some if _is_missing(known, critic, *which)}
            images, tasks = [seen[name].image for _, name in asked.values()], [one.task for one, _ in asked.values()]
            scores = judge(critic, images, tasks)
            fresh = [
                _line(critic, one, name, seen[name], said)
                for (one, name), said in zip(asked.values(), scores, strict=True)
            ]
            if record is not None and fresh:
                record.add(*fresh)
            known |= zip(asked, fresh, strict=True)
        rows += [_row(one, [known[_key(critic, one, name)] for critic in critics]) for one, name in some]
        tell(min(start + AT_ONCE, len(found.pictures)))
    if not rows:
        raise UserError(f"None of {len(unreadable)} pictures can be read; the first: {unreadable[0].reason}")
    missing = _missing(found, rows)
    is_whole = not (missing["prompts"] or missing["uneven"] or found.of > len(found.tasks))
    return {
        "format": FORMAT,
        "prompts": len({row["task"] for row in rows}),
        "critics": {
            critic.name: _summary(
                rows,
                critic.name,
                overall if is_whole and all(row["scores"][critic.name] is not None for row in rows) else None,
            )
            for critic in critics
        },
        "left_out": [{**asdict(one), "file": str(one.file)} for one in (*unreadable, *found.left_out)],
        "missing": missing,
        "pictures": rows,
    }


Key = tuple[str, str, str, str]  # critic, what its name leaves out, picture, task
KEPT = {"critic", "picture", "task_digest", "value", "reason", "failed", "notes"}  # of a verdict


def _key(critic: Critic, picture: Picture, name: str) -> Key:
    return critic.name, content_of(critic), name, _digest(picture.task)


def _key_of(line: Mapping[str, Any]) -> Key:
    return line["critic"], line.get("content", ""), line["picture"], line["task_digest"]


def _digest(task: Task) -> str:
    """All of a task that a critic sees."""
    return hashlib.sha256(json.dumps(asdict(task), sort_keys=True, default=str).encode()).hexdigest()[:16]


def _is_missing(known: Mapping[Key, Mapping[str, Any]], critic: Critic, picture: Picture, name: str) -> bool:
    line = known.get(_key(critic, picture, name))
    return line is None or line["value"] is None


def _line(critic: Critic, picture: Picture, name: str, seen: Seen, said: Score) -> dict[str, Any]:
    """What is kept of a verdict."""
    return {
        "critic": critic.name, "content": content_of(critic), "picture": name, "task_digest": _digest(picture.task),
        "task": picture.task.id, "file": str(picture.file), "value": said.value, "reason": said.reason,
        "failed": [check.text for check in said.checks if not check.passed], "notes": list(seen.notes),
    }  # fmt: skip


def _row(picture: Picture, said: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A picture of the result, with what each critic said of it."""
    return {
        "file": str(picture.file),
        "task": picture.task.id,
        "category": picture.task.category or "all",
        "prompt": picture.task.prompt,
        "notes": list(said[0]["notes"]),
        "scores": {line["critic"]: line["value"] for line in said},
        "reasons": {line["critic"]: line["reason"] for line in said if line["value"] is None},
        "failed": {line["critic"]: list(line["failed"]) for line in said},
    }


def _missing(found: Found, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Which prompts have no picture, or fewer than others. A prompt that a benchmark has twice needs pictures once."""
    pictures = Counter(row["prompt"] for row in rows)
    most = max(pictures.values())
    without = [task for task in found.tasks if task.prompt not in pictures]
    fewer = [task for task in found.tasks if 0 < pictures[task.prompt] < most]
    return {
        "prompts": found.of - (len(found.tasks) - len(without)),
        "of": found.of,
        "by_category": dict(Counter(task.category or "all" for task in without)),
        "example": without[0].prompt if without else None,
        "uneven": len(fewer),
        "uneven_example": fewer[0].prompt if fewer else None,
        "pictures_a_prompt": most,
    }


def describe_gaps(found: Mapping[str, Any]) -> list[str]:
    """In sentences: which files were left out, which prompts have no picture, and that a part is no benchmark."""
    lines, missing = [], found["missing"]
    for is_fault, words in ((True, "could not be read"), (False, "are no pictures of this layout or benchmark")):
        some = [one for one in found["left_out"] if one["is_fault"] is is_fault]
        if some:
            example = f"{shorten(some[0]['file'], 120)}: {shorten(some[0]['reason'], 300)}"
            lines.append(f"Left out: {len(some)} files {words}, e.g. {example}")
    if missing["prompts"]:
        by_category = ", ".join(f"{name} {count}" for name, count in missing["by_category"].items())
        example = f" ({by_category}; e.g. '{shorten(missing['example'], 100)}')" if missing["example"] else ""
        lines.append(f"Missing: {missing['prompts']} of {missing['of']} prompts have no picture{example}.")
    if missing["uneven"]:
        lines.append(
            f"Uneven: {missing['uneven']} prompts have fewer than {missing['pictures_a_prompt']} pictures, e.g. "
            f"'{shorten(missing['uneven_example'], 100)}'."
        )
    if missing["prompts"] or missing["uneven"]:
        lines.append("So these are means over what is there, not the benchmark's score.")
    noted = Counter(note for row in found["pictures"] for note in row["notes"])
    lines += [f"Seen as in a viewer: {count} pictures with {note}." for note, count in noted.most_common(5)]
    return lines


def _summary(
    rows: Sequence[Mapping[str, Any]], critic: str, overall: Callable[[Mapping[str, float]], float] | None
) -> dict[str, Any]:
    judged = [row for row in rows if row["scores"][critic] is not None]
    by_category: dict[str, list[Mapping[str, Any]]] = {}
    for row in judged:
        by_category.setdefault(row["category"], []).append(row)
    found: dict[str, Any] = {"n": len(judged), "abstained": len(rows) - len(judged), **_means(judged, critic)}
    found["by_category"] = {name: {"n": len(of), **_means(of, critic)} for name, of in by_category.items()}
    if overall is not None and by_category:
        for what in ("success", "score"):
            found[f"benchmark_{what}"] = overall({name: of[what] for name, of in found["by_category"].items()})
    return found


def _means(rows: Sequence[Mapping[str, Any]], critic: str) -> dict[str, Any]:
    if not rows:
        return {}
    prompts: dict[str, list[float]] = {}
    for row in rows:
        prompts.setdefault(row["task"], []).append(row["scores"][critic])
    shares = [sum(reaches(value) for value in values) / len(values) for values in prompts.values()]
    share, low, high = clustered_share(shares, max(len(values) for values in prompts.values()))
    mean, mean_low, mean_high = mean_interval([sum(values) / len(values) for values in prompts.values()])
    return {
        "success": share, "low": low, "high": high,
        "score": mean, "score_low": mean_low, "score_high": mean_high,
    }  # fmt: skip


def to_markdown(found: Mapping[str, Any]) -> str:
    """A table a critic. Where `found` has the benchmark's `number` ("success" or "mean"), its own score is that one
    alone, else both are given."""
    lines = [f"{len(found['pictures'])} pictures of {found['prompts']} prompts; 95 % intervals over prompts.", ""]
    for critic, of in found["critics"].items():
        if not of["n"]:
            reasons = {row["reasons"][critic] for row in found["pictures"]}
            lines += [f"{critic} judged none of them: {'; '.join(sorted(reasons)[:3])}", ""]
            continue
        lines += [f"| {critic} | pictures | right | mean score |", "|---|---|---|---|"]
        for name, row in [*of["by_category"].items(), ("all", of)]:
            right = f"{row['success']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
            mean = f"{row['score']:.3f} [{row['score_low']:.3f}, {row['score_high']:.3f}]"
            lines.append(f"| {name} | {row['n']} | {right} | {mean} |")
        if "benchmark_success" in of:
            number = found.get("number")
            right = "" if number == "mean" else f"{of['benchmark_success']:.3f}"
            mean = "" if number == "success" else f"{of['benchmark_score']:.3f}"
            lines.append(f"| the benchmark's own | | {right} | {mean} |")
        lines += ["", *([f"{critic} abstained on {of['abstained']}.", ""] if of["abstained"] else [])]
    return "\n".join(lines)
