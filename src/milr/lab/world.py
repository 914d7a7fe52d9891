"""The emoji-scene world: what exists in it, how a scene is laid out, and how it is rendered.

A page is 128 x 128 pixels: a frame ring 16 px wide around a grid of 3 x 3 cells of 32 px. A cell is empty or
holds one sprite. In image tokens (16 x 16 px each) a page is 8 x 8 = 64 tokens in raster order, so the very first
tokens say which frame the page has.
This file knows meanings and pixels. It knows no language (language.py), no tokens (codes.py) and no model.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CELL = 32  # pixels a side of a cell and of a sprite
MARGIN = 16  # pixels of the frame ring
CELLS = 3  # cells a side
PAGE = 2 * MARGIN + CELLS * CELL  # pixels a side of a page: 128
FRAME_WIDTH = 8  # pixels of the coloured line at the outer edge

# Order matters: it is the row order of the sprite atlas and the numbering of the image codes.
NOUNS = (
    "dog", "cat", "fish", "owl", "duck", "frog", "turtle", "snail",
    "rabbit", "bee", "butterfly", "penguin", "cow", "fox", "apple", "banana",
    "carrot", "pizza", "cake", "mushroom", "car", "bus", "bicycle", "airplane",
    "sailboat", "rocket", "tree", "cactus", "key", "umbrella", "guitar", "bell",
)  # fmt: skip
COLOURS = {
    "red": (225, 40, 45),
    "orange": (255, 140, 20),
    "yellow": (250, 210, 40),
    "green": (50, 170, 70),
    "blue": (45, 110, 235),
    "purple": (140, 70, 200),
    "pink": (250, 130, 190),
    "gray": (130, 130, 135),
}
COLOUR_NAMES = tuple(COLOURS)
# What a natural look may also be called: nobody would say that a plain apple is not red.
NATURAL_COLOURS = {
    "turtle": {"green"}, "frog": {"green"}, "tree": {"green"}, "cactus": {"green"}, "apple": {"red"},
    "banana": {"yellow"}, "carrot": {"orange"}, "fox": {"orange"}, "cat": {"orange"}, "key": {"yellow"},
    "bell": {"yellow", "orange"}, "umbrella": {"purple"},
}  # fmt: skip
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
NO_FRAME = "none"
LOOKS = 1 + len(COLOUR_NAMES)  # natural, then the colours
SPRITES = len(NOUNS) * LOOKS


@dataclass(frozen=True)
class Group:
    """`count` objects of one kind; `colour` None means that any look will do."""

    noun: str
    colour: str | None = None
    count: int = 1


@dataclass(frozen=True)
class Relation:
    """Every object of group `first` is `kind` ('left of', ...) every object of group `second`."""

    first: int
    kind: str
    second: int


@dataclass(frozen=True)
class Meaning:
    """What a prompt or a reasoning says. `frame`: a colour, 'none' (asked to be plain), or None (not mentioned)."""

    groups: tuple[Group, ...]
    relations: tuple[Relation, ...] = ()
    frame: str | None = None

    @property
    def objects(self) -> int:
        return sum(group.count for group in self.groups)


@dataclass(frozen=True)
class Thing:
    """One sprite on a page: what it is, its colour (None = natural) and its cell (0..8, raster order)."""

    noun: str
    colour: str | None
    cell: int


@dataclass(frozen=True)
class Scene:
    """A page: its things and its frame (None = no frame)."""

    things: tuple[Thing, ...]
    frame: str | None = None


def sprite_index(noun: str, colour: str | None) -> int:
    """Row-major index of a sprite in the atlas: noun * 9 + look."""
    return NOUNS.index(noun) * LOOKS + (0 if colour is None else 1 + COLOUR_NAMES.index(colour))


def sprite_name(index: int) -> tuple[str, str | None]:
    noun, look = divmod(index, LOOKS)
    return NOUNS[noun], None if look == 0 else COLOUR_NAMES[look - 1]


@functools.cache
def sprites() -> NDArray[np.float32]:
    """All sprites, [288, 32, 32, 3] in 0..1, from the atlas that ships with the package."""
    with resources.files("milr.lab").joinpath("sprites.png").open("rb") as file:
        atlas = np.asarray(Image.open(file).convert("RGB"), np.float32) / 255
    rows = atlas.reshape(len(NOUNS), CELL, LOOKS, CELL, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(rows.reshape(SPRITES, CELL, CELL, 3))


def holds(kind: str, first: tuple[float, float], second: tuple[float, float]) -> bool:
    """Does `first` stand in relation `kind` to `second`? Points are (x, y) centres, y downwards.

    As in GenEval, the offset must point mostly that way; on a diagonal both readings hold.
    """
    dx, dy = first[0] - second[0], first[1] - second[1]
    along, across = {"left of": (-dx, dy), "right of": (dx, dy), "above": (-dy, dx), "below": (dy, dx)}[kind]
    return along > 1e-6 and along >= abs(across) - 1e-6


def cell_centre(cell: int) -> tuple[float, float]:
    """Pixel centre (x, y) of a cell."""
    row, column = divmod(cell, CELLS)
    return MARGIN + CELL * (column + 0.5), MARGIN + CELL * (row + 0.5)


def lay_out(meaning: Meaning, rng: random.Random, plain_frame: float = 0.75) -> Scene:
    """A random scene that shows `meaning`: cells chosen uniformly among the layouts that obey its relations.

    A frame that nobody asked for is left out with probability `plain_frame`. Raises ValueError when no layout
    exists (more than nine objects, or contradicting relations).
    """
    if meaning.objects > CELLS * CELLS:
        raise ValueError(f"A page has room for {CELLS * CELLS} objects, not {meaning.objects}.")
    for _ in range(2000):
        cells = rng.sample(range(CELLS * CELLS), meaning.objects)
        members, start = [], 0
        for group in meaning.groups:
            members.append(cells[start : start + group.count])
            start += group.count
        if all(
            holds(relation.kind, cell_centre(a), cell_centre(b))
            for relation in meaning.relations
            for a in members[relation.first]
            for b in members[relation.second]
        ):
            break
    else:
        raise ValueError("No layout on a 3 x 3 page satisfies these relations.")
    frame = meaning.frame
    if frame is None and rng.random() >= plain_frame:
        frame = rng.choice(COLOUR_NAMES)
    things = [
        Thing(group.noun, group.colour, cell)
        for group, group_cells in zip(meaning.groups, members, strict=True)
        for cell in group_cells
    ]
    return Scene(tuple(sorted(things, key=lambda thing: thing.cell)), None if frame == NO_FRAME else frame)


def render(scene: Scene) -> NDArray[np.float32]:
    """The page as pixels, [128, 128, 3] in 0..1."""
    page = np.ones((PAGE, PAGE, 3), np.float32)
    if scene.frame is not None:
        page[:] = np.array(COLOURS[scene.frame], np.float32) / 255
        page[FRAME_WIDTH:-FRAME_WIDTH, FRAME_WIDTH:-FRAME_WIDTH] = 1
    for thing in scene.things:
        row, column = divmod(thing.cell, CELLS)
        top, left = MARGIN + CELL * row, MARGIN + CELL * column
        page[top : top + CELL, left : left + CELL] = sprites()[sprite_index(thing.noun, thing.colour)]
    return page


def to_image(page: NDArray[np.float32]) -> Image.Image:
    return Image.fromarray((np.clip(page, 0, 1) * 255).round().astype(np.uint8))
