"""Likes red pictures: three checks, one for each of three corners. Cannot judge a prompt about the moon."""

import numpy as np

from milr.drafts import Check, Score

NAME = "redness"
SUMMARY = "likes red corners, for tests"


class Redness:
    name = NAME

    def why_not(self, prompt):
        return "it knows no moon" if "moon" in prompt else None

    def score(self, images, tasks):
        return [self._score(np.asarray(image)) for image in images]

    def _score(self, pixels):
        size = pixels.shape[0] // 4
        corners = {
            "top left": (0, 0),
            "top right": (3 * size, 0),
            "bottom left": (0, 3 * size),
        }
        checks = tuple(
            Check(
                f"{name} is red",
                bool(pixels[y, x, 0] > 140),
                () if pixels[y, x, 0] > 140 else ((x, y, x + size, y + size),),
            )
            for name, (x, y) in corners.items()
        )
        return Score(sum(check.passed for check in checks) / len(checks), checks)


def make(backbone):
    return Redness()
