"""trajectory.html: one self-contained page that shows what a search did, from its record and its images.

Made to be sent around: no request leaves it, no script is in it, and whatever a prompt, a reasoning or a critic says
is text (jinja2 escapes all of it; a content policy forbids the rest). This file knows the record, and nothing else.
"""

from __future__ import annotations

import base64
import difflib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2
    from PIL.Image import Image

CURVE_WIDTH, CURVE_HEIGHT, CURVE_MARGIN = 640, 180, 34
LOSSLESS_UP_TO = 160  # pixels a side; larger drafts are shown as JPEG, or a page of 576-token drafts weighs 10 MB


@dataclass(frozen=True)
class Words:
    """A piece of a reasoning: 'same', 'new' or 'gone' against the draft before, `searched` if the search chose it."""

    text: str
    change: str
    searched: bool = False


@dataclass(frozen=True)
class Point:
    """A draft on the reward curve, in SVG units."""

    x: float
    y: float
    number: int
    reward: float | None


def environment(*packages: str) -> jinja2.Environment:
    """Where a page's templates come from: these packages, then milr.runs. What is put into them is escaped."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in (*packages, "milr.runs")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_page(record: Mapping[str, Any], images: Sequence[Image]) -> str:
    """The page as HTML. `images` are those of all drafts, in order."""
    drafts = record["drafts"]
    before = ""
    shown = []
    for draft, image in zip(drafts, images, strict=True):
        shown.append(
            {
                **draft,
                "picture": data_uri(image),
                "words": word_changes(before, draft["reasoning"], draft["searched_text"]),
                "asked": asked_in_words(draft),
                "cells": [(token % record["model"]["grid"], token // record["model"]["grid"])
                          for token in draft["searched_image"]],
                "is_best": draft["number"] == record["best"],
            }
        )  # fmt: skip
        before = draft["reasoning"]
    return (
        environment()
        .get_template("trajectory.html")
        .render(
            record=record,
            drafts=shown,
            best=shown[record["best"]],
            curve=curve([draft["reward"] for draft in drafts]),
            highest=max((draft for draft in shown if draft["reward"] is not None), key=_reward, default=None),
            stopped=STOPPED.get(record["stopped"], record["stopped"]),
            cell=record["model"]["image_size"] / record["model"]["grid"],
            size=record["model"]["image_size"],
        )
    )


STOPPED = {
    "threshold": "a draft reached the threshold",
    "budget": "the budget was spent",
    "search": "the search had nothing more to ask",
    "abstained": "the critic abstained ten times in a row",
    "interrupted": "it was interrupted",
}


def _reward(draft: Mapping[str, Any]) -> float:
    return float(draft["reward"])


def word_changes(before: str, after: str, searched: str = "") -> list[Words]:
    """What to change in `before` to get `after`, word by word; words inside the prefix `searched` are marked.

    With an empty `before` (the first draft) every word is 'same': nothing changed yet.
    """
    before, after = before.strip(), after.strip()
    old, new = (re.findall(r"\S+\s*", text) for text in (before, after))
    starts, position = [], 0
    for word in new:
        starts.append(position)
        position += len(word)
    reach = len(searched) if after.startswith(searched) else 0
    marked = [start < reach for start in starts]
    if not before:
        return _join(Words(word, "same", mark) for word, mark in zip(new, marked, strict=True))
    pieces: list[Words] = []
    matcher = difflib.SequenceMatcher(None, [word.strip() for word in old], [word.strip() for word in new], False)
    for what, old_from, old_to, new_from, new_to in matcher.get_opcodes():
        if what != "equal":
            pieces += [Words(word, "gone") for word in old[old_from:old_to]]
        change = "same" if what == "equal" else "new"
        pieces += [Words(new[index], change, marked[index]) for index in range(new_from, new_to)]
    return _join(pieces)


def _join(pieces: Any) -> list[Words]:
    """Neighbours of the same kind as one piece."""
    joined: list[Words] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if last is not None and (last.change, last.searched) == (piece.change, piece.searched):
            space = "" if last.text[-1:].isspace() else " "
            joined[-1] = Words(last.text + space + piece.text, piece.change, piece.searched)
        else:
            joined.append(piece)
    return joined


def asked_in_words(draft: Mapping[str, Any]) -> str:
    """What the search asked of this draft, e.g. 'reasoning: first 3 tokens chosen, rest greedy'."""
    note = draft["ask"]["note"]
    text, image = (_choice_in_words(draft["ask"][kind], note.get(f"{kind}_searched")) for kind in ("text", "image"))
    return f"{note.get('why', '')} Reasoning {text}; image {image}.".lstrip()


def _choice_in_words(choice: Mapping[str, Any], searched: object) -> str:
    if choice["how"] == "greedy":
        return "greedy"
    if choice["how"] == "sample":
        return "sampled" if choice["temperature"] == 1 else f"sampled at temperature {choice['temperature']:g}"
    rest = _choice_in_words(choice["then"], None)
    if choice["free"] is not None:
        free = len(choice["free"])
        return f"{'one token' if free == 1 else f'{free} tokens'} drawn afresh ({rest}), all others kept"
    forced = len(choice["tokens"])
    if isinstance(searched, int) and searched < forced:  # the rest was written before and is only repeated
        return f"{_first(searched)} chosen by the search, rest {rest}"
    return f"{_first(forced)} given by the search, rest {rest}"


def _first(count: int) -> str:
    return "first token" if count == 1 else f"first {count} tokens"


def curve(rewards: Sequence[float | None]) -> dict[str, Any]:
    """Points and polylines of the reward curve: each draft, and the best so far as steps."""
    span = max(1, len(rewards) - 1)
    width, height = CURVE_WIDTH - 2 * CURVE_MARGIN, CURVE_HEIGHT - 2 * CURVE_MARGIN
    points, steps = [], []
    best: float | None = None
    for number, reward in enumerate(rewards):
        x = CURVE_MARGIN + width * (number / span if len(rewards) > 1 else 0.5)
        y = CURVE_MARGIN + height * (1 - (reward if reward is not None else 0))
        points.append(Point(round(x, 1), round(y, 1), number, reward))
        if reward is not None and (best is None or reward > best):
            if best is not None:
                steps.append((round(x, 1), round(CURVE_MARGIN + height * (1 - best), 1)))
            best = reward
        if best is not None:
            steps.append((round(x, 1), round(CURVE_MARGIN + height * (1 - best), 1)))
    return {
        "width": CURVE_WIDTH,
        "height": CURVE_HEIGHT,
        "margin": CURVE_MARGIN,
        "points": points,
        "scored": " ".join(f"{point.x},{point.y}" for point in points if point.reward is not None),
        "best": " ".join(f"{x},{y}" for x, y in steps),
        "label_every": 1 + (len(rewards) - 1) // 12,
    }


def data_uri(image: Image) -> str:
    """The picture inside the page."""
    buffer = io.BytesIO()
    if max(image.size) <= LOSSLESS_UP_TO:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.convert("RGB").save(buffer, "JPEG", quality=88)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
