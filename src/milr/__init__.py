"""milr: draw a picture, judge it, and search the model's latents for a better one.

    import milr

    model = milr.load("lab")
    result = milr.generate(model, "two red foxes above a blue car", reward="scene", budget=20, seed=0)
    result.image.show()
    result.save("foxes")  # image.png, drafts/, trajectory.json, trajectory.html

The names below are the public Python API. They are loaded when first used: `import milr` itself costs nothing. It sets
OMP_WAIT_POLICY=PASSIVE unless a variable says how threads wait, so import it before torch (see `milr.threads`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from milr import threads  # noqa: F401  (first: how threads wait must be said before torch is loaded)
from milr.version import __version__

if TYPE_CHECKING:
    from milr.backbones import load
    from milr.drafts import Check, Cost, Draft, Score, Task, Trajectory, UserError
    from milr.runs.generate import Result, generate
    from milr.runs.replay import replay
    from milr.searches.driver import drive

_HOMES = {
    "load": "milr.backbones",
    "generate": "milr.runs.generate",
    "Result": "milr.runs.generate",
    "replay": "milr.runs.replay",
    "drive": "milr.searches.driver",
    "Task": "milr.drafts",
    "Draft": "milr.drafts",
    "Trajectory": "milr.drafts",
    "Score": "milr.drafts",
    "Check": "milr.drafts",
    "Cost": "milr.drafts",
    "UserError": "milr.drafts",
}

__all__ = [
    "Check",
    "Cost",
    "Draft",
    "Result",
    "Score",
    "Task",
    "Trajectory",
    "UserError",
    "__version__",
    "drive",
    "generate",
    "load",
    "replay",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'milr' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
