"""Trajectories of the toy model, for the tests of what is written about them."""

import milr
from milr import registry
from toy_milr.backbone import ToyBackbone
from toy_milr.critic import Redness


def draw(prompt="two red foxes", **options):
    """A result of the toy model with the published method, judged by the toy critic."""
    return milr.generate(ToyBackbone(), prompt, **{"search": "milr", "reward": Redness(), "budget": 6, **options})


def install_redness(patch):
    """Let the name `redness` mean the toy critic, as if its package were installed. `patch`: pytest's MonkeyPatch."""
    find, load = registry.find, registry.load
    part = registry.Part("critic", "redness", "", "redness")
    patch.setattr(registry, "find", lambda kind, name: part if name == "redness" else find(kind, name))
    patch.setattr(registry, "load", lambda one: Critics if one is part else load(one))


class Critics:
    """The module of the toy critic; tests may put another `make` here."""

    @staticmethod
    def make(backbone):
        return Redness()
