"""Likes red pictures: three checks, one for each of three corners, and nothing slow. Knows no moon."""

import numpy as np

from milr.drafts import Check, Score

NAME = "redness"
SUMMARY = "likes red corners, for tests"


class Redness:
    name = NAME

    def why_not(self, prompt):
        return "it knows no moon" if "moon" in prompt else None

    def score(self, images, tasks):
        return [self._score(np.asarray(image), task.prompt) for image, task in zip(images, tasks, strict=True)]

    def _score(self, pixels, prompt):
        size = pixels.shape[0] // 4
        corners = {
            "top left": (0, 0),
            "top right": (3 * size, 0),
            "bottom left": (0, 3 * size),
        }
        checks = [Check("it is fast", False)] if "slow" in prompt else []
        for name, (x, y) in corners.items():
            is_red = bool(pixels[y, x, 0] > 140)
            checks.append(Check(f"{name} is red", is_red, () if is_red else ((x, y, x + size, y + size),)))
        return Score(sum(check.passed for check in checks) / len(checks), tuple(checks))


def make(backbone):
    return Redness()
