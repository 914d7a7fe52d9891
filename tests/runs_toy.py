"""Trajectories of the toy model, for the tests of what is written about them."""

import milr
from toy_milr.backbone import ToyBackbone
from toy_milr.critic import Redness


def draw(prompt="two red foxes", **options):
    """A result of the toy model with the published method, judged by the toy critic."""
    return milr.generate(ToyBackbone(), prompt, **{"search": "milr", "reward": Redness(), "budget": 6, **options})
