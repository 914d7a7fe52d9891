"""Trajectories of the toy model, for the tests of what is written about them."""

import json

import milr
from milr import registry
from milr.drafts import Score
from toy_milr.backbone import ToyBackbone
from toy_milr.critic import Redness


def draw(prompt="two red foxes", **options):
    """A result of the toy model with the published method, judged by the toy critic."""
    return milr.generate(ToyBackbone(), prompt, **{"search": "milr", "reward": Redness(), "budget": 6, **options})


def install_known(patch, name, score):
    """Let `name` mean a critic whose score of a picture is what `score(task, number)` says: a number or None. `number`
    counts the pictures of a task that it was shown, from 0; a search shows its drafts one after the other."""
    seen = {}

    class Known:
        def score(self, images, tasks):
            found = []
            for task in tasks:
                number = seen[task.id] = seen.get(task.id, -1) + 1
                found.append(Score(score(task, number), reason="does not say"))
            return found

    Known.name = name
    module = type("Module", (), {"make": staticmethod(lambda backbone: Known())})
    find, load = registry.find, registry.load
    part = registry.Part("critic", name, "", name)
    patch.setattr(registry, "find", lambda kind, asked: part if asked == name else find(kind, asked))
    patch.setattr(registry, "load", lambda one: module if one is part else load(one))


def without_machines(folder):
    """A run's report without the machines that drew: a test's processes may differ in their threads."""
    report = json.loads((folder / "report.json").read_bytes())
    del report["machines"]
    report["warnings"] = [one for one in report["warnings"] if "another machine" not in one]
    return report


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
