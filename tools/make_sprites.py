"""Make src/milr/lab/sprites.png, the sprite atlas of the lab world: 32 nouns (rows) x 9 looks (columns).

Pictures: fluent-emoji-flat by Microsoft (MIT), from the npm package @iconify-json/fluent-emoji-flat.
    npm pack @iconify-json/fluent-emoji-flat && tar xzf iconify-json-fluent-emoji-flat-*.tgz
    pip install cairosvg && python tools/make_sprites.py package/icons.json
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import cairosvg
import numpy as np
from PIL import Image

from milr.lab.world import CELL, COLOURS, LOOKS, NOUNS

ICONS = {
    "dog": "dog-face", "cat": "cat-face", "fish": "tropical-fish", "rabbit": "rabbit-face", "bee": "honeybee",
    "cow": "cow-face", "apple": "red-apple", "cake": "shortcake", "car": "automobile", "tree": "evergreen-tree",
}  # fmt: skip
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
BORDER = 1  # white pixels around a sprite, so that neighbours never touch


def draw(svg_body: str) -> tuple[np.ndarray, np.ndarray]:
    """An icon at 4x, shrunk: colour [30, 30, 3] and coverage [30, 30, 1] in 0..1."""
    size = CELL - 2 * BORDER
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">{svg_body}</svg>'
    png = cairosvg.svg2png(bytestring=svg.encode(), output_width=4 * size, output_height=4 * size)
    picture = Image.open(io.BytesIO(png)).convert("RGBA").resize((size, size), Image.Resampling.LANCZOS)
    pixels = np.asarray(picture, np.float32) / 255
    return pixels[..., :3], pixels[..., 3:]


def recolour(rgb: np.ndarray, coverage: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Map luminance, centred on its median, to black -> colour -> white: the shape stays readable."""
    light = (rgb @ LUMINANCE)[..., None]
    tone = np.clip(0.5 + (light - np.median(light[coverage > 0.5])) * 0.8, 0.08, 0.92)
    paint = np.array(colour, np.float32) / 255
    return np.where(tone < 0.5, paint * (tone / 0.5), paint + (1 - paint) * ((tone - 0.5) / 0.5))


def main(icons_json: str) -> None:
    icons = json.loads(Path(icons_json).read_text())["icons"]
    atlas = np.ones((len(NOUNS) * CELL, LOOKS * CELL, 3), np.float32)
    for row, noun in enumerate(NOUNS):
        rgb, coverage = draw(icons[ICONS.get(noun, noun)]["body"])
        for column, look in enumerate([rgb, *(recolour(rgb, coverage, colour) for colour in COLOURS.values())]):
            top, left = row * CELL + BORDER, column * CELL + BORDER
            pixels = np.clip(look, 0, 1) * coverage + 1 - coverage
            atlas[top : top + CELL - 2 * BORDER, left : left + CELL - 2 * BORDER] = pixels
    target = Path(__file__).parents[1] / "src/milr/lab/sprites.png"
    Image.fromarray((atlas * 255).round().astype(np.uint8)).save(target, optimize=True)
    print(f"{target}: {len(NOUNS)} nouns x {LOOKS} looks")


if __name__ == "__main__":
    main(sys.argv[1])
