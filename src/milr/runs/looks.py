"""How a picture looks, in four numbers that need no critic. They tell when a search leaves what the model draws.

Meant to be compared with the same model's first drafts, never across models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

LOOKS = ("brightness", "edges", "colours", "flat")
BLOCK = 8  # pixels a side
FLAT = 2.0  # standard deviation of the grey levels (0 to 255) below which a block is flat


def look(image: Image) -> dict[str, float]:
    """Brightness: mean grey level, 0 to 1. Edges: mean step between neighbouring grey levels, 0 to 1. Colours: entropy
    of the histogram of 4 x 4 x 4 colours, 0 to 6 bits. Flat: share of the 8 x 8 blocks with hardly any structure."""
    pixels = np.asarray(image.convert("RGB"))
    grey = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    steps = (np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()) / 2
    two_bits = pixels >> 6
    bins = two_bits[..., 0] << 4 | two_bits[..., 1] << 2 | two_bits[..., 2]
    shares = np.bincount(bins.ravel(), minlength=64) / bins.size
    shares = shares[shares > 0]
    rows, columns = (size // BLOCK * BLOCK for size in grey.shape)
    blocks = grey[:rows, :columns].reshape(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
    found = {
        "brightness": grey.mean() / 255,
        "edges": steps / 255,
        "colours": -(shares * np.log2(shares)).sum(),
        "flat": (blocks.std(axis=(1, 3)) < FLAT).mean() if blocks.size else 0.0,
    }
    return {name: round(float(value), 5) for name, value in found.items()}
