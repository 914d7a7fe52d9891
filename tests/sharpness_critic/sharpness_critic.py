"""How sharp a picture is: the mean step from pixel to pixel. A critic of fifteen lines, as a package of its own."""

import numpy as np

from milr.drafts import Score

NAME = "sharpness"
SUMMARY = "Mean step from pixel to pixel; likes any sharp picture, whatever was asked for"
NEEDS_BACKBONE = False


class Sharpness:
    name = NAME

    def score(self, images, tasks):
        greys = [np.asarray(image.convert("L"), dtype=float) / 255 for image in images]
        return [Score(min(1.0, 4 * float(np.abs(np.diff(grey)).mean()))) for grey in greys]


def make(backbone):
    return Sharpness()
