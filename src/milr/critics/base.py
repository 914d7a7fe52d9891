"""What a critic is. Knows no model and no search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from milr.drafts import Check, Score, Task, UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from milr.backbones.base import Backbone
    from milr.critics.remote.purse import Cashier


LEAST_SHARE = 0.05  # of the probability that yes and no must hold together; below, 19 of 20 answers begin otherwise
ROUNDING = 1e-6  # a reward may leave [0, 1] by this much (float32 averages do)


class Critic(Protocol):
    """How well does each image show its prompt? Scores lie in [0, 1], higher is better.

    A critic that cannot judge (unreadable verdict, nothing to look for) abstains with the reason: a low score would be
    a lie that the search then learns from. Where it could not be asked at all it says so (`Score.outage`). It raises
    UserError only where the user must act before anything can go on (a wrong key, a spent budget): that ends the work,
    what is on record stays, and the same command goes on later. docs/critics.md has the whole table.

    More may be there: `why_not(prompt)` says why it can say nothing of a prompt (else None), and `settle(place)` is
    called once before the first score. `waits` says that it only waits for a server and may be asked from several
    threads at once: then other drafts are drawn meanwhile. `hurry()` tells such a one that the run is over while it is
    asked: what is on its way may still come, nothing is tried again.
    """

    name: str

    def score(self, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
        """One score for each image, in order."""
        ...


def check_sees(backbone: Backbone, critic: str) -> None:
    """Refuse a critic that asks a model which cannot look at pictures."""
    if not getattr(backbone.info, "sees", True):
        raise UserError(
            f"'{critic}' asks the model that draws, and {backbone.info.name} cannot look at pictures; choose a critic "
            "that has eyes of its own (milr list critics)."
        )


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


@dataclass(frozen=True)
class Secret:
    """A variable of the environment whose value a critic sends away: a key, or with `is_address` the address itself.

    `where` is the host that gets it. `at_home` is False for a key that is known to belong to another host.
    """

    variable: str
    where: str
    is_address: bool = False
    at_home: bool = True


class Outage(str):
    """Why there is no score, where that is about the way to a critic and not about the picture: asked later, it may
    well answer. A text like any other for whoever only shows it."""


def abstain(reason: str, checks: tuple[Check, ...] = ()) -> Score:
    """An abstention with its reason, marked as an outage where the reason is one."""
    return Score(None, checks, str(reason), isinstance(reason, Outage))


def yes_share(yes: float, no: float, least: float) -> tuple[float | None, str]:
    """P(yes) against P(no) from what either holds of all probability, or None and why: where both together hold less
    than `least`, the answer begins otherwise and their ratio is that of two accidents."""
    held = yes + no
    return believed(yes / held if held > 0 else 0.0, held, least)


def believed(chance: float, held: float, least: float) -> tuple[float | None, str]:
    """`yes_share` of P(yes) that is worked out already; `held` is what yes and no hold together."""
    if not held >= least or held <= 0:
        return None, f"yes and no hold {held:.1g} of the probability together, less than least_share={least:g}"
    return chance, ""


NOWHERE = Place()  # no folder, no limit


def content_of(critic: Critic) -> str:
    """What decides this critic's verdicts beside its name, as `naming.content_of` says it; '' for one made by hand."""
    return str(getattr(critic, "content", ""))


def waits(critic: Critic) -> bool:
    """Whether a critic only waits for a server while it judges, and may be asked from several threads at once."""
    return bool(getattr(critic, "waits", False))


def hurry(critic: Critic) -> None:
    """Nobody waits for the critic any more than it takes to end what is on its way."""
    if (told := getattr(critic, "hurry", None)) is not None:
        told()


def judge(critic: Critic, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
    """Scores of a critic that may fail: whatever is not a number in [0, 1] becomes an abstention with its
    reason.

    When a whole batch fails, each image is tried alone, so that one bad image does not cost its neighbours
    their score (and a draft's score does not depend on its batch). Where not one image could be judged because the
    critic could not be asked (`Score.outage`), going on would write its outage down as the verdict of search after
    search: UserError, at once. An outage among other scores is an abstention, marked as one.
    """
    scores = _scores(critic, images, tasks)
    if scores and all(score.outage for score in scores):
        raise UserError(
            f"The critic '{critic.name}' cannot be asked any more ({scores[0].reason}); see to it and run the same "
            "command again: it goes on where it stopped."
        )
    return scores


def mean(values: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """The weighted mean, rounded once: of equal values it is that value, so all ones are 1 and a search can stop."""
    shares = [Fraction(weight) for weight in weights or (1.0,) * len(values)]
    total = sum(shares)
    return float(sum(share * Fraction(value) for share, value in zip(shares, values, strict=True)) / total)


def _scores(critic: Critic, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
    """What `judge` says of single images."""
    if not images:
        return []
    try:
        scores = critic.score(images, tasks)
    except UserError:  # only the user can put it right: nothing is gained by going on
        raise
    except Exception as error:  # foreign code: whatever goes wrong in it is an abstention
        if len(images) > 1:
            pairs = zip(images, tasks, strict=True)
            return [_scores(critic, [image], [task])[0] for image, task in pairs]
        reason = f"critic '{critic.name}' failed: {type(error).__name__}: {error}"
        return [Score(None, reason=reason, outage=isinstance(error, (ConnectionError, TimeoutError)))]
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
        reason = score.reason or f"critic '{critic_name}' abstained without a reason"
        return Score(None, score.checks, reason, score.outage)
    try:
        value = float(score.value)  # also takes numpy and torch scalars
    except (TypeError, ValueError):
        value = math.nan
    if not -ROUNDING <= value <= 1 + ROUNDING:  # False for NaN
        return Score(None, score.checks, f"critic '{critic_name}' gave the reward {score.value!r}, not in [0, 1]")
    return Score(min(1.0, max(0.0, value)), score.checks, score.reason)
