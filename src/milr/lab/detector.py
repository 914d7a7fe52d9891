"""The oracle of the lab world: finds what is on a page, and checks it against a meaning.

Sprites are found by normalised correlation of ink (1 - pixel) with all 288 templates at every token-aligned place.
It is exact on clean pages and knows nothing of the model that drew the picture.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from milr.drafts import Box, Check
from milr.lab.language import plain_phrase, usual
from milr.lab.lexicon import NUMBER_WORDS
from milr.lab.world import (
    CELL,
    COLOUR_NAMES,
    COLOURS,
    FRAME_WIDTH,
    NATURAL_COLOURS,
    NO_FRAME,
    PAGE,
    SPRITES,
    Group,
    Meaning,
    Scene,
    cell_centre,
    holds,
    sprite_name,
    sprites,
)

STEP = 16  # places are token-aligned
MATCH = 0.80  # least correlation of a find
INK_RANGE = (0.6, 1.5)  # a find has between these shares of its template's ink
FAINT = 0.12  # ink below this is a shadow of the decoder, not a mark
SURPLUS = 40.0  # summed ink that belongs to nothing: more than this is a thing nobody can name
FRAME_SHARE = 0.75  # share of the border's pixels that must be near one colour


@dataclass(frozen=True)
class Found:
    """A sprite on a page. `looks` are the colours it may be called (a natural apple is also red); None = natural."""

    noun: str
    looks: frozenset[str | None]
    box: Box
    match: float

    @property
    def centre(self) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True)
class Page:
    """What is on a page: sprites, the frame ('none', a colour, or 'broken'), and boxes of unnameable marks."""

    found: tuple[Found, ...]
    frame: str
    marks: tuple[Box, ...]


@functools.cache
def _templates() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Unit ink vectors [288, 3072] and their norms [288]."""
    ink: NDArray[np.float32] = np.asarray(1 - sprites(), np.float32).reshape(SPRITES, -1)
    norms = np.sqrt((ink * ink).sum(axis=1)).astype(np.float32)
    unit: NDArray[np.float32] = np.divide(ink, norms[:, None], dtype=np.float32)
    return unit, norms


def _looks(noun: str, colour: str | None) -> frozenset[str | None]:
    """The colours that a sprite may be called."""
    if colour is not None:
        return frozenset([colour])
    return frozenset([None, *NATURAL_COLOURS.get(noun, ())])


def as_array(image: Image.Image) -> NDArray[np.float32]:
    """Any picture as a page, [128, 128, 3] in 0..1."""
    picture = image.convert("RGB")
    if picture.size != (PAGE, PAGE):
        picture = picture.resize((PAGE, PAGE), Image.Resampling.LANCZOS)
    return np.asarray(picture, np.float32) / np.float32(255)


def look_at(images: Sequence[Image.Image]) -> list[Page]:
    """Find what is on each page."""
    if not images:
        return []
    pages = np.stack([as_array(image) for image in images])
    ink = np.clip(1 - pages, 0, 1)
    places = [(y, x) for y in range(0, PAGE - CELL + 1, STEP) for x in range(0, PAGE - CELL + 1, STEP)]
    unit, norms = _templates()
    results = []
    for page, page_ink in zip(pages, ink, strict=True):
        frame = _frame(page)
        if frame != NO_FRAME:
            page_ink = page_ink.copy()
            _blank_border(page_ink)
        windows = np.stack([page_ink[y : y + CELL, x : x + CELL].reshape(-1) for y, x in places])
        amount = np.linalg.norm(windows, axis=1)
        match = windows @ unit.T / (amount[:, None] + 1e-3)
        share = amount[:, None] / norms[None, :]
        match = np.where((share > INK_RANGE[0]) & (share < INK_RANGE[1]), match, 0.0)
        best, which = match.max(1), match.argmax(1)
        found: list[Found] = []
        for place in np.argsort(-best, kind="stable"):
            if best[place] < MATCH:
                break
            y, x = places[place]
            if any(abs(y - f.box[1]) < CELL and abs(x - f.box[0]) < CELL for f in found):
                continue
            sprite = int(which[place])
            box = (float(x), float(y), float(x + CELL), float(y + CELL))
            noun, colour = sprite_name(sprite)
            found.append(Found(noun, _looks(noun, colour), box, float(best[place])))
        rest = np.where(page_ink.max(-1) > FAINT, page_ink.mean(-1), 0.0)
        for item in found:
            left, top, right, bottom = (int(v) for v in item.box)
            rest[top:bottom, left:right] = 0
        found.sort(key=lambda f: (f.box[1], f.box[0]))
        results.append(Page(tuple(found), frame, _mark_boxes(rest)))
    return results


def page_of(scene: Scene) -> Page:
    """What a perfect look at a scene's picture finds."""
    found = []
    for thing in scene.things:
        x, y = cell_centre(thing.cell)
        box = (x - CELL / 2, y - CELL / 2, x + CELL / 2, y + CELL / 2)
        found.append(Found(thing.noun, _looks(thing.noun, thing.colour), box, 1.0))
    return Page(tuple(found), scene.frame or NO_FRAME, ())


def _border(page: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pixels of the border line, [N, 3], without its blurred inner edge."""
    inner = FRAME_WIDTH - 2
    mask = np.ones(page.shape[:2], bool)
    mask[inner:-inner, inner:-inner] = False
    return page[mask]


def _blank_border(ink: NDArray[np.float32]) -> None:
    width = FRAME_WIDTH + 3
    ink[:width], ink[-width:], ink[:, :width], ink[:, -width:] = 0, 0, 0, 0


def _frame(page: NDArray[np.float32]) -> str:
    border = _border(page)
    palette = np.array([*COLOURS.values(), (255, 255, 255)], np.float32) / 255
    nearest = np.linalg.norm(border[:, None] - palette[None], axis=2).argmin(1)
    shares = np.bincount(nearest, minlength=len(palette)) / len(border)
    if shares[-1] >= FRAME_SHARE:
        return NO_FRAME
    best = int(shares[:-1].argmax())
    return COLOUR_NAMES[best] if shares[best] >= FRAME_SHARE else "broken"


def _mark_boxes(rest: NDArray[np.float32]) -> tuple[Box, ...]:
    """Boxes, one token wide and high at least, around ink that belongs to nothing."""
    if rest.sum() <= SURPLUS:
        return ()
    tiles = rest.reshape(PAGE // STEP, STEP, PAGE // STEP, STEP).sum((1, 3))
    rows, columns = np.nonzero(tiles > SURPLUS / 8)
    if not len(rows):
        rows, columns = np.nonzero(tiles == tiles.max())
    return tuple(
        (float(c * STEP), float(r * STEP), float((c + 1) * STEP), float((r + 1) * STEP))
        for r, c in zip(rows, columns, strict=True)
    )


# --- Checking -------------------------------------------------------------------------------------------------


def _count_words(count: int, noun: str) -> str:
    if count == 0:
        return f"no {usual(noun, False)}"
    word = NUMBER_WORDS[count][0] if count in NUMBER_WORDS else str(count)
    return f"{word} {usual(noun, count != 1)}"


def check(meaning: Meaning, page: Page) -> tuple[Check, ...]:
    """Every check that decides whether the page shows the meaning, in words, with the boxes of what is wrong.

    One check for the number of each noun, one for each colour that is asked, one for each relation, one for the
    frame if it is mentioned, and one that nothing else is there. The score is the share that passes.
    """
    checks: list[Check] = []
    wanted: dict[str, int] = {}
    for group in meaning.groups:
        wanted[group.noun] = wanted.get(group.noun, 0) + group.count
    members = _assign(meaning.groups, page.found)
    for noun, count in wanted.items():
        have = [f for f in page.found if f.noun == noun]
        # Too many: any of them may go. Too few: there is nothing to point at.
        boxes = tuple(f.box for f in have) if len(have) > count else ()
        checks.append(Check(f"{_count_words(count, noun)} (found {len(have)})", len(have) == count, boxes))
    for group, ours in zip(meaning.groups, members, strict=True):
        if group.colour is None:
            continue
        wrong = [f for f in ours if group.colour not in f.looks]
        passed = len(ours) == group.count and not wrong
        checks.append(Check(f"{plain_phrase(group)} in colour", passed, tuple(f.box for f in wrong)))
    for relation in meaning.relations:
        first, second = members[relation.first], members[relation.second]
        broken = [(a, b) for a in first for b in second if not holds(relation.kind, a.centre, b.centre)]
        passed = bool(first) and bool(second) and not broken
        names = [meaning.groups[relation.first], meaning.groups[relation.second]]
        text = f"{usual(names[0].noun, names[0].count > 1)} {relation.kind} {usual(names[1].noun, names[1].count > 1)}"
        blamed = dict.fromkeys(f.box for pair in broken for f in pair)
        checks.append(Check(text, passed, tuple(blamed)))
    if meaning.frame is not None:
        asked = "no frame" if meaning.frame == NO_FRAME else f"{meaning.frame} frame"
        edges: tuple[Box, ...] = (
            (0.0, 0.0, float(PAGE), float(STEP)),
            (0.0, float(PAGE - STEP), float(PAGE), float(PAGE)),
            (0.0, float(STEP), float(STEP), float(PAGE - STEP)),
            (float(PAGE - STEP), float(STEP), float(PAGE), float(PAGE - STEP)),
        )
        right = page.frame == meaning.frame
        checks.append(Check(f"{asked} (found {page.frame})", right, () if right else edges))
    strangers = [f.box for f in page.found if f.noun not in wanted] + list(page.marks)
    checks.append(Check("nothing else", not strangers and page.frame != "broken", tuple(strangers)))
    return tuple(checks)


def _assign(groups: Sequence[Group], found: Sequence[Found]) -> list[list[Found]]:
    """Which finds belong to which group: by noun, and among groups of one noun by colour, best fit first."""
    left = list(found)
    members: list[list[Found]] = [[] for _ in groups]
    for exact in (True, False):
        for index in sorted(range(len(groups)), key=lambda i: groups[i].colour is None):
            group = groups[index]
            shared = sum(g.noun == group.noun for g in groups) > 1
            for item in list(left):
                fits = item.noun == group.noun and (not exact or group.colour is None or group.colour in item.looks)
                # With several groups of one noun, none may take more than its share.
                if fits and (not shared or len(members[index]) < group.count):
                    members[index].append(item)
                    left.remove(item)
    return members
