"""What a critic is. Knows no model and no search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from milr.drafts import Score, Task, UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from milr.critics.remote.purse import Cashier


ROUNDING = 1e-6  # a reward may leave [0, 1] by this much (float32 averages do)


class Critic(Protocol):
    """How well does each image show its prompt? Scores lie in [0, 1], higher is better.

    A critic that cannot judge (no network, unreadable verdict) abstains with the reason: a low score would be a
    lie that the search then learns from. It raises UserError only where the user must act before anything can go on
    (a wrong key, a spent budget): that ends the work, what is on record stays, and the same command goes on later.

    Two more methods may be there: `why_not(prompt)` says why it can say nothing of a prompt (else None), and
    `settle(place)` is called once before the first score.
    """

    name: str

    def score(self, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
        """One score for each image, in order."""
        ...


@dataclass(frozen=True)
class Place:
    """Where a critic works.

    `folder` is the run's, where replies that were paid for may be kept. `max_judge_cost` is what judges may spend in
    this process and in earlier starts of the run, in US dollars; None is no limit. `till` keeps the replies and the
    money where another process does so for many.
    """

    folder: Path | None = None
    max_judge_cost: float | None = None
    till: Cashier | None = None


NOWHERE = Place()  # no folder, no limit


def judge(critic: Critic, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
    """Scores of a critic that may fail: whatever is not a number in [0, 1] becomes an abstention with its
    reason.

    When a whole batch fails, each image is tried alone, so that one bad image does not cost its neighbours
    their score (and a draft's score does not depend on its batch).
    """
    if not images:
        return []
    try:
        scores = critic.score(images, tasks)
    except UserError:  # only the user can put it right: nothing is gained by going on
        raise
    except Exception as error:  # foreign code: whatever goes wrong in it is an abstention
        if len(images) > 1:
            pairs = zip(images, tasks, strict=True)
            return [judge(critic, [image], [task])[0] for image, task in pairs]
        return [Score(None, reason=f"critic '{critic.name}' failed: {type(error).__name__}: {error}")]
    if not isinstance(scores, Sequence) or len(scores) != len(images):
        given = len(scores) if isinstance(scores, Sequence) else f"{scores!r} as"
        raise UserError(
            f"Critic '{critic.name}' gave {given} scores for {len(images)} images. "
            "This is a bug of the critic; report it to its author."
        )
    return [_sound(score, critic.name) for score in scores]


def _sound(score: object, critic_name: str) -> Score:
    """The score itself, or an abstention that says why it is none."""
    if not isinstance(score, Score):
        return Score(None, reason=f"critic '{critic_name}' gave {score!r} instead of a Score")
    if score.value is None:
        return Score(None, score.checks, score.reason or f"critic '{critic_name}' abstained without a reason")
    try:
        value = float(score.value)  # also takes numpy and torch scalars
    except (TypeError, ValueError):
        value = math.nan
    if not -ROUNDING <= value <= 1 + ROUNDING:  # False for NaN
        return Score(None, score.checks, f"critic '{critic_name}' gave the reward {score.value!r}, not in [0, 1]")
    return Score(min(1.0, max(0.0, value)), score.checks, score.reason)
