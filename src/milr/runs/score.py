"""Scores pictures that any generator made, in the layouts that official scorers read.

    geneval          00000/metadata.jsonl (the benchmark's line) and 00000/samples/0000.png, 0001.png, ...
    wise             1.png ... 1000.png, named by prompt_id; several seeds in folders 0, 1, ...
    t2i-compbench    <prompt>_000000.png, <prompt>_000001.png, ...

Only PNG, JPEG and WebP are opened, and nothing larger than PIXELS; nothing in a picture is run. Knows critics and
benchmarks by what they offer, no search.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milr.critics.base import judge
from milr.drafts import Task, UserError, reaches
from milr.statistics import clustered_share, mean_interval

if TYPE_CHECKING:
    from PIL.Image import Image

    from milr.critics.base import Critic

FORMATS = ("PNG", "JPEG", "WEBP")
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
PIXELS = 50_000_000
AT_ONCE = 32
LAYOUTS = ("geneval", "wise", "t2i-compbench")


@dataclass(frozen=True)
class Picture:
    """An image file and the prompt that it was drawn for."""

    file: Path
    task: Task


# --- Reading -----------------------------------------------------------------------------------------------------


def find_pictures(folder: Path, layout: str, tasks: Sequence[Task]) -> list[Picture]:
    """The pictures of a folder in this layout, with their prompts. Raises UserError where there are none."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the one that holds the pictures.")
    finders: Mapping[str, Callable[[Path, Sequence[Task]], Iterator[Picture]]] = {
        "geneval": _geneval,
        "wise": _wise,
        "t2i-compbench": _compbench,
    }
    found = list(finders[layout](folder, tasks))
    if not found:
        raise UserError(f"There is no picture in {folder} in the layout of {layout}; {LAYOUT_HELP[layout]}.")
    return found


LAYOUT_HELP = {
    "geneval": "it wants 00000/metadata.jsonl and 00000/samples/0000.png",
    "wise": "it wants 1.png, 2.png, ... named by prompt_id",
    "t2i-compbench": "it wants '<prompt>_000000.png'",
}


def _geneval(folder: Path, tasks: Sequence[Task]) -> Iterator[Picture]:
    by_prompt = {task.prompt: task for task in tasks}
    for place in sorted(path for path in folder.iterdir() if path.is_dir() and path.name.isdigit()):
        file = place / "metadata.jsonl"
        try:
            line = json.loads(file.read_text(encoding="utf-8").splitlines()[0])
            prompt = str(line["prompt"])
        except (OSError, ValueError, IndexError, KeyError, TypeError) as error:
            raise UserError(f"{file} is not a line of GenEval's metadata ({error}); restore it.") from error
        task = by_prompt.get(prompt) or Task(prompt, f"geneval-{place.name}", str(line.get("tag", "")), line)
        for picture in sorted((place / "samples").glob("*")):
            if picture.suffix.lower() in ENDINGS and picture.stem.isdigit():
                yield Picture(picture, task)


def _wise(folder: Path, tasks: Sequence[Task]) -> Iterator[Picture]:
    by_id = {str(task.metadata.get("prompt_id", "")): task for task in tasks}
    for picture in sorted([*folder.glob("*"), *folder.glob("[0-9]*/*")]):
        if picture.suffix.lower() in ENDINGS and picture.stem in by_id:
            yield Picture(picture, by_id[picture.stem])


def _compbench(folder: Path, tasks: Sequence[Task]) -> Iterator[Picture]:
    by_prompt = {_file_prompt(task.prompt): task for task in tasks}
    for picture in sorted(folder.rglob("*")):
        match = re.fullmatch(r"(.+)_\d+", picture.stem)
        if match and picture.suffix.lower() in ENDINGS and _file_prompt(match[1]) in by_prompt:
            yield Picture(picture, by_prompt[_file_prompt(match[1])])


def _file_prompt(prompt: str) -> str:
    """A prompt as it stands in a file name: no slash, no full stop at the end."""
    return prompt.strip().rstrip(".").replace("/", " ").lower()


def open_picture(file: Path) -> Image:
    """The image as RGB. Raises UserError where it is none, or too large to be one."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > PIXELS:
                raise UserError(f"{file} has {image.width} x {image.height} pixels; the most is {PIXELS:,}.")
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{file} is not a picture that can be read ({error}); remove it or make it anew.") from error


# --- Scoring -----------------------------------------------------------------------------------------------------


def score(
    pictures: Sequence[Picture],
    critics: Sequence[Critic],
    overall: Callable[[Mapping[str, float]], float] | None = None,
    tell: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Judge every picture with every critic.

    Returns one JSON object: `pictures` with each score, and for each critic `success` (share with a score of 1) and
    `score` (mean), both with 95 % intervals over prompts, by category too, the benchmark's own score (of the means of
    its categories), and abstentions. Raises UserError where two critics have one name.
    """
    if len({critic.name for critic in critics}) < len(critics):
        raise UserError("A critic is named twice; name each once.")
    rows: list[dict[str, Any]] = []
    for start in range(0, len(pictures), AT_ONCE):
        some = pictures[start : start + AT_ONCE]
        images, tasks = [open_picture(one.file) for one in some], [one.task for one in some]
        scores = {critic.name: judge(critic, images, tasks) for critic in critics}
        for index, one in enumerate(some):
            rows.append(
                {
                    "file": str(one.file),
                    "task": one.task.id,
                    "category": one.task.category or "all",
                    "prompt": one.task.prompt,
                    "scores": {name: found[index].value for name, found in scores.items()},
                    "reasons": {name: found[index].reason for name, found in scores.items() if found[index].abstained},
                    "failed": {
                        name: [check.text for check in found[index].checks if not check.passed]
                        for name, found in scores.items()
                    },
                }
            )
        tell(len(rows))
    return {
        "prompts": len({row["task"] for row in rows}),
        "critics": {critic.name: _summary(rows, critic.name, overall) for critic in critics},
        "pictures": rows,
    }


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
