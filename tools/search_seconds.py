"""How long `repair` itself takes, without drawing and judging: CPU seconds a draft, at the size of a real checkpoint.

    python tools/search_seconds.py [--drafts 400] [--tokens 576] [--words 16384] [--width 1] [--old]

Drafts are made up: random logits, of which each position's are kept as its latent, and a reward. `--old` runs the
search as it was when every candidate was an object (tests/searches/old_repair.py) on the same drafts.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from milr.backbones.policies import ImageTokens, TextTokens
from milr.drafts import Ask, Cost, Draft, Drawn, Forced, Latents, Score, Task
from milr.searches import repair
from milr.searches.base import Problem

TEXT, TEXT_WORDS, END = 50, 2000, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--drafts", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=576, help="of an image; a square number")
    parser.add_argument("--words", type=int, default=16384, help="tokens that an image token may be")
    parser.add_argument("--width", type=int, default=1, help="drafts a round")
    parser.add_argument("--old", action="store_true", help="as it was before its candidates were arrays")
    options = parser.parse_args()
    search: Any = repair.repair
    if options.old:
        sys.path.append(str(Path(__file__).parents[1] / "tests" / "searches"))
        search = __import__("old_repair").repair
    generator = torch.Generator().manual_seed(0)
    rng = np.random.default_rng(0)
    pictures = torch.randn(options.tokens, options.words, generator=generator) * 3
    texts = torch.randn(TEXT, TEXT_WORDS, generator=generator) * 3
    problem = Problem(
        Task("a made-up prompt"),
        text=TextTokens(lambda latents: texts[: len(latents)], END),
        image=lambda guidance: ImageTokens(lambda latents: pictures),
        rng=rng,
        budget=options.drafts,
        threshold=1.0,
        grid=int(options.tokens**0.5),
    )
    latents = Latents(torch.zeros(TEXT // 5, 1), torch.zeros(options.tokens, 2, 1))
    image = Image.new("RGB", (384, 384))

    def drawn(ask: Ask) -> Drawn:
        """What the search forced, and random tokens for the rest."""
        words = list(rng.integers(1, TEXT_WORDS, TEXT))
        tokens = list(rng.integers(0, options.words, options.tokens))
        if isinstance(ask.text, Forced):
            forced = [word for word in ask.text.tokens if word != END]
            words[: len(forced)] = forced
        if isinstance(ask.image, Forced):
            free = ask.image.free or frozenset()
            tokens = [
                old if at in free else new for at, (old, new) in enumerate(zip(tokens, ask.image.tokens, strict=True))
            ]
        text, picture = (tuple(map(int, found)) for found in (words, tokens))
        return Drawn("", text, True, picture, image, latents, 1.0, Cost())

    asks = search(problem, repair.Repair(width=options.width))
    spent, marks, number, asked = 0.0, [], 0, next(asks)
    while True:
        each = [asked] if isinstance(asked, Ask) else asked[: options.drafts - number]
        drafts = [
            Draft(number + at, ask, 0, drawn(ask), Score(float(rng.random()) * 0.9)) for at, ask in enumerate(each)
        ]
        number += len(drafts)
        began = time.process_time()
        try:
            asked = asks.send(drafts[0] if isinstance(asked, Ask) else drafts)
        except StopIteration:
            spent += time.process_time() - began
            marks.append(spent)
            break
        spent += time.process_time() - began
        marks += [spent] * len(drafts)
    half = marks[len(marks) // 2]
    kind = "old" if options.old else "present"
    print(
        f"{kind} repair, width {options.width}, {number} drafts, {options.tokens} x {options.words:,} logits: "
        f"{spent:.1f} CPU s, {spent / number:.3f} a draft; first half {half:.1f} s, second half {spent - half:.1f} s"
    )


if __name__ == "__main__":
    main()
