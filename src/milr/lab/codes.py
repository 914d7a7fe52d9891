"""The taught codebook: which image tokens a page is made of.

Every distinct 16 x 16 tile that a clean page can contain has one code, fixed before any training: blank paper,
the eight tiles of each coloured frame, the four quadrants of each sprite. So the image tokenizer and the language
model can be trained side by side, no code is ever dead, and a page's true tokens need no encoder.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from milr.lab.world import (
    CELLS,
    COLOUR_NAMES,
    LOOKS,
    MARGIN,
    NOUNS,
    PAGE,
    SPRITES,
    Scene,
    Thing,
    render,
    sprite_index,
    sprite_name,
)

TILE = 16  # pixels a side of one image token
GRID = PAGE // TILE  # tokens a side: 8
TOKENS = GRID * GRID  # tokens of one page: 64
BLANK = 0
FRAME_TILES = 8  # corners and edges: the ring read clockwise from the top-left corner
FIRST_FRAME = 1
FIRST_SPRITE = FIRST_FRAME + FRAME_TILES * len(COLOUR_NAMES)
CODES = FIRST_SPRITE + 4 * SPRITES  # 1217
CODE_WIDTH = 8  # numbers per code vector, as in Janus


def _frame_tile(row: int, column: int) -> int:
    """Which of the eight frame tiles stands at this place of the ring."""
    last = GRID - 1
    if row == 0:
        return 0 if column == 0 else 2 if column == last else 1
    if row == last:
        return 6 if column == 0 else 4 if column == last else 5
    return 7 if column == 0 else 3


def page_tokens(scene: Scene) -> list[int]:
    """The true tokens of a scene, 64 codes in raster order."""
    grid = [[BLANK] * GRID for _ in range(GRID)]
    if scene.frame is not None:
        first = FIRST_FRAME + FRAME_TILES * COLOUR_NAMES.index(scene.frame)
        for row in range(GRID):
            for column in range(GRID):
                if row in (0, GRID - 1) or column in (0, GRID - 1):
                    grid[row][column] = first + _frame_tile(row, column)
    for thing in scene.things:
        row, column = divmod(thing.cell, CELLS)
        code = FIRST_SPRITE + 4 * sprite_index(thing.noun, thing.colour)
        top, left = MARGIN // TILE + 2 * row, MARGIN // TILE + 2 * column
        for quadrant in range(4):
            grid[top + quadrant // 2][left + quadrant % 2] = code + quadrant
    return [code for line in grid for code in line]


@functools.cache
def code_tiles() -> NDArray[np.float32]:
    """The exact picture of every code, [1217, 16, 16, 3] in 0..1."""
    tiles = np.ones((CODES, TILE, TILE, 3), np.float32)
    scenes = [Scene((), colour) for colour in COLOUR_NAMES]
    for start in range(0, SPRITES, CELLS * CELLS):
        names = [sprite_name(index) for index in range(start, min(start + CELLS * CELLS, SPRITES))]
        scenes.append(Scene(tuple(Thing(noun, colour, cell) for cell, (noun, colour) in enumerate(names))))
    for scene in scenes:
        blocks = (
            render(scene).reshape(GRID, TILE, GRID, TILE, 3).transpose(0, 2, 1, 3, 4).reshape(TOKENS, TILE, TILE, 3)
        )
        for code, block in zip(page_tokens(scene), blocks, strict=True):
            tiles[code] = block
    return tiles


def look_up(tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Exact pixels of token grids, [B, 64] -> [B, 128, 128, 3]: what the VQ decoder approximates."""
    blocks = code_tiles()[tokens].reshape(-1, GRID, GRID, TILE, TILE, 3)
    return np.ascontiguousarray(blocks.transpose(0, 1, 3, 2, 4, 5).reshape(-1, PAGE, PAGE, 3))


def starting_codebook() -> Tensor:
    """Unit vectors [1217, 8] that start the codebook and the model's image embeddings: PCA of the shrunk tiles.

    A little noise keeps tiles apart that look alike when shrunk (left and right edges of a frame).
    """
    tiles = torch.from_numpy(code_tiles()).permute(0, 3, 1, 2)
    small = torch.nn.functional.avg_pool2d(tiles, 4).flatten(1)
    left, scale, _ = torch.linalg.svd(small - small.mean(0), full_matrices=False)
    points = left[:, :CODE_WIDTH] * scale[:CODE_WIDTH].sqrt()
    noise = torch.randn(points.shape, generator=torch.Generator().manual_seed(0))
    spread = torch.linspace(1.2, 0.8, CODE_WIDTH)
    return torch.nn.functional.normalize(points / points.std(0) * spread + 0.15 * noise, dim=-1)


def starting_patches(width: int) -> tuple[Tensor, Tensor]:
    """Kernel [width, 3, 16, 16] and bias [width] that start the eye: the principal directions of the tiles in -1..1.

    Blank paper, most of a page, is 0; the other tiles have a spread of 1.
    """
    tiles = torch.from_numpy(code_tiles()).permute(0, 3, 1, 2).flatten(1) * 2 - 1
    _, scale, directions = torch.linalg.svd(tiles - tiles.mean(0), full_matrices=False)
    weight = directions[:width] / scale[:width, None].sqrt()
    weight = weight / ((tiles - tiles[BLANK]) @ weight.T).std()
    return weight.view(width, 3, TILE, TILE), -weight @ tiles[BLANK]


def starting_head(width: int, scale: float = 0.02) -> Tensor:
    """Rows [1217, width] that start the image head: each sprite tile is the sum of its noun, look and quadrant.

    With unrelated rows every pair of noun and colour has to be learnt by itself (256 pairs); with sums, 'purple' is one
    direction that serves all nouns from the first step. Training is free to leave it.
    """
    generator = torch.Generator().manual_seed(1)

    def directions(count: int) -> Tensor:
        return scale * torch.randn(count, width, generator=generator)

    nouns, looks, quadrants = directions(len(NOUNS)), directions(LOOKS), directions(4)
    frames, tiles = directions(len(COLOUR_NAMES)), directions(FRAME_TILES)
    sprite_rows = nouns[:, None, None] + looks[None, :, None] + quadrants[None, None, :]
    frame_rows = frames[:, None] + tiles[None, :]
    return torch.cat([directions(1), frame_rows.reshape(-1, width), sprite_rows.reshape(-1, width)])
