"""A picture's noise: from integer keys, one a cell of its grid, and from coarse to fine.

A key names the Gaussian numbers of its cell, so a flow model's picture begins with a chain of integers, as a token
model's does. The numbers come from Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), a
function of (key, cell) that needs no state, and from the transform of Box and Muller with logarithm, sine and cosine
made of sums, products, quotients and roots alone. IEEE 754 fixes each of those to the last bit, a library's logarithm
it does not: the same keys are the same float32 numbers on every machine.

Knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Words = npt.NDArray[np.uint64]  # 32-bit words, held wide so that a product of two fits
Doubles = npt.NDArray[np.float64]

KEYS = 2**63  # a key is at least 0 and below this
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)


# --- From keys ---------------------------------------------------------------------------------------------


def gaussian(keys: Sequence[int] | npt.NDArray[np.integer[Any]], channels: int, grid: int, stage: int = 0) -> Tensor:
    """The noise that one key a cell names: [C, grid, grid] float32 on the CPU; standard normal, independent.

    Args:
        keys: one for each cell in raster order, each at least 0 and below 2**63.
        channels: C, the numbers of one cell.
        grid: cells a side.
        stage: which noise of the picture: 0 is what it begins with; others share nothing with it.
    """
    named = np.asarray(keys)
    if named.shape != (grid * grid,):
        raise ValueError(f"{named.size} keys do not name the noise of {grid} x {grid} cells")
    if named.dtype.kind not in "iu" or int(named.min()) < 0 or int(named.max()) >= KEYS:
        raise ValueError("a key is a whole number of at least 0 and below 2**63")
    blocks = -(-channels // 4)
    key = named.astype(np.uint64)[:, None]
    cell = np.arange(grid * grid, dtype=np.uint64)[:, None]
    counter = (np.arange(blocks, dtype=np.uint64)[None, :], cell, np.full((1, 1), stage, dtype=np.uint64))
    shape = (grid * grid, blocks)
    words = philox(
        tuple(np.broadcast_to(word, shape) for word in (*counter, np.zeros((1, 1), dtype=np.uint64))),
        (np.broadcast_to(key & _LOW, shape), np.broadcast_to(key >> _HALF, shape)),
    )
    numbers = np.stack([*_box_muller(words[0], words[1]), *_box_muller(words[2], words[3])], axis=-1)
    by_cell = numbers.reshape(grid * grid, 4 * blocks)[:, :channels].astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(by_cell.T).reshape(channels, grid, grid))


def philox(counter: tuple[Words, ...], key: tuple[Words, Words]) -> tuple[Words, Words, Words, Words]:
    """Philox4x32-10: four random words for each counter of four words and key of two. All arrays have one shape."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for turn in range(10):
        high0, low0 = _product(c0, _MULTIPLIERS[0])
        high1, low1 = _product(c2, _MULTIPLIERS[1])
        turned0, turned1 = (np.uint64(turn * weyl % 2**32) for weyl in _WEYL)
        c0, c1, c2, c3 = high1 ^ c1 ^ ((k0 + turned0) & _LOW), low1, high0 ^ c3 ^ ((k1 + turned1) & _LOW), low0
    return c0, c1, c2, c3


def _product(words: Words, factor: np.uint64) -> tuple[Words, Words]:
    """The high and the low word of each product."""
    product = words * factor
    return product >> _HALF, product & _LOW


def _box_muller(first: Words, second: Words) -> tuple[Doubles, Doubles]:
    """Two independent standard normal numbers from two random words each."""
    radius = np.sqrt(-2.0 * _logarithm((first.astype(np.float64) + 0.5) * 2.0**-32))
    cosine, sine = _on_the_circle(second)
    return radius * cosine, radius * sine


def _logarithm(values: Doubles) -> Doubles:
    """The natural logarithm of positive numbers, from + - * / alone: ln(m 2^e) = e ln 2 + 2 artanh((m-1) / (m+1))."""
    mantissa, exponent = np.frexp(values)
    small = mantissa < math.sqrt(0.5)
    mantissa = np.where(small, 2.0 * mantissa, mantissa)
    exponent = exponent - small
    s = (mantissa - 1.0) / (mantissa + 1.0)  # at most .172 from 0
    square = s * s
    series = np.zeros_like(s)
    for power in range(21, 0, -2):
        series = series * square + 1.0 / power
    return exponent * math.log(2.0) + 2.0 * s * series


def _on_the_circle(words: Words) -> tuple[Doubles, Doubles]:
    """Cosine and sine of 2 pi (w + 1/2) / 2^32, from + - * / alone: the nearest quarter, then Taylor's series."""
    quarter = ((words + np.uint64(2**29)) >> np.uint64(30)) & np.uint64(3)
    rest = words.astype(np.float64) + 0.5 - quarter.astype(np.float64) * 2.0**30
    rest = np.where(rest > 2.0**31, rest - 2.0**32, rest)  # the last eighth lies just below quarter 0
    angle = rest * (2.0 * math.pi * 2.0**-32)  # at most pi / 4 from 0
    square = angle * angle
    cosine, sine = np.zeros_like(angle), np.zeros_like(angle)
    for power in range(18, 0, -2):
        cosine = 1.0 - cosine * square / (power * (power - 1))
    for power in range(19, 1, -2):
        sine = 1.0 - sine * square / (power * (power - 1))
    sine = angle * sine
    swapped = (quarter & np.uint64(1)) == 1
    x, y = np.where(swapped, sine, cosine), np.where(swapped, cosine, sine)
    x = np.where((quarter == 1) | (quarter == 2), -x, x)
    return x, np.where(quarter >= 2, -y, y)


# --- Coarse to fine ----------------------------------------------------------------------------------------


def coarse_to_fine(noise: Tensor) -> Tensor:
    """The coefficients of a noise [C, h, w], coarsest first: [M] with M = C h w, float32 on the CPU.

    Orthonormal two-dimensional cosines (DCT-II) over the grid, each channel by itself; so white noise stays white, and
    the first share of a picture's coefficients says how it is laid out. All channels of one frequency stand together.
    """
    channels, height, width = noise.shape
    down, across = _cosines(height), _cosines(width)
    coefficients = down @ noise.detach().to("cpu", torch.float64) @ across.T
    return coefficients.reshape(channels, -1)[:, list(order(height, width))].T.reshape(-1).float()


def fine_to_picture(coefficients: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The noise [C, h, w] whose coefficients these are: the inverse of `coarse_to_fine`."""
    channels, height, width = shape
    placed = torch.empty(channels, height * width, dtype=torch.float64)
    placed[:, list(order(height, width))] = coefficients.detach().to("cpu", torch.float64).reshape(-1, channels).T
    return (_cosines(height).T @ placed.reshape(shape) @ _cosines(width)).float()


@lru_cache(maxsize=16)
def order(height: int, width: int) -> tuple[int, ...]:
    """The places of a grid's frequencies in raster order, coarsest first; those that are equally coarse by row."""
    places = [(row, column) for row in range(height) for column in range(width)]
    places.sort(key=lambda at: ((at[0] * width) ** 2 + (at[1] * height) ** 2, at[0], at[1]))
    return tuple(row * width + column for row, column in places)


@lru_cache(maxsize=16)
def _cosines(length: int) -> Tensor:
    """The orthonormal matrix of DCT-II, [frequency, place] float64."""
    places = np.arange(length)
    matrix = np.cos(math.pi / length * (places[None, :] + 0.5) * places[:, None]) * math.sqrt(2.0 / length)
    matrix[0] = math.sqrt(1.0 / length)
    return torch.from_numpy(matrix)
