"""Signs of trouble in a finished run: reward hacking, collapsed texts and pictures, wrong relations that are rewarded.

The paper names them; what is counted here is said function by function, so that a number can be argued with. Works on
the journal alone: rewards, held-out scores, texts and looks (looks.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from milr.runs.journal import Outcome
from milr.runs.looks import LOOKS
from milr.statistics import paired_means

SHIFT = 0.5  # standard deviations of the first drafts' looks that the returned ones may shift, on average
FEWEST = 10  # searches that must have changed their draft before a run is accused of anything
HIGH_REWARD = 0.8
RELATION = re.compile(
    r"\b(left of|right of|above|below|under|beneath|on top of|next to|beside|near|behind|in front of|between)\b"
)


@dataclass(frozen=True)
class Ends:
    """A search's first and returned draft: rewards, looks, texts, and what a held-out critic says of both."""

    outcome: Outcome
    first_look: Mapping[str, float]
    returned_look: Mapping[str, float]
    first_text: str = ""
    returned_text: str = ""
    first_image: str = ""  # SHA-256: the image's name in the run
    returned_image: str = ""

    @property
    def gain(self) -> float:
        """How much reward the search gained."""
        first = self.outcome.rewards[0] or 0.0
        return (self.outcome.rewards[self.outcome.returned] or 0.0) - first

    def held_out_gain(self, critic: str) -> float | None:
        """The same as a held-out critic sees it; None where it abstained."""
        before, after = self.outcome.held_out_first.get(critic), self.outcome.held_out.get(critic)
        return None if before is None or after is None else after - before


@dataclass(frozen=True)
class Alarm:
    """Whether a method is fooling its reward. `reasons` say why, in words; `prompts` are the searches whose reward rose
    while a held-out score fell (task id, seed index)."""

    raised: bool
    reasons: tuple[str, ...]
    prompts: tuple[tuple[str, int], ...]
    changed: int  # searches that returned another draft than their first
    measured: Mapping[str, Any] = field(default_factory=dict)


def hacking_alarm(ends: Sequence[Ends], critics: Sequence[str] = ()) -> Alarm:
    """Accuse a method of reward hacking, or not.

    Over the searches that returned another draft than their first, with more reward: the alarm is raised where a
    held-out score falls on average (its 95 % interval below 0), or where the pictures' looks leave those of the
    model's own first drafts: a mean shift of more than half a standard deviation, by its whole interval.
    """
    gained = [one for one in ends if one.outcome.returned != 0 and one.gain > 0]
    reasons, measured = [], {}
    fallen: dict[tuple[str, int], None] = {}
    for critic in critics:
        pairs = [(one, gain) for one in gained if (gain := one.held_out_gain(critic)) is not None]
        for one, gain in pairs:
            if gain < 0:
                fallen[one.outcome.task, one.outcome.seed_index] = None
        if pairs:
            mean, low, high = paired_means([gain for _, gain in pairs])
            measured[f"held-out {critic}"] = {"mean": mean, "low": low, "high": high, "of": len(pairs)}
            if len(pairs) >= FEWEST and high < 0:
                reasons.append(
                    f"the reward rose while the held-out critic {critic} fell by {-mean:.3f} [{-high:.3f}, {-low:.3f}]"
                )
    base = [one.first_look for one in ends]
    for name in LOOKS if len(gained) >= FEWEST else ():
        spread = float(np.std([one[name] for one in base]))
        shifts = np.array([one.returned_look[name] - one.first_look[name] for one in gained])
        if spread < 1e-6:
            continue
        mean, error = float(shifts.mean()) / spread, float(shifts.std(ddof=1)) / spread / len(shifts) ** 0.5
        measured[name] = {"mean": mean, "low": mean - 1.96 * error, "high": mean + 1.96 * error, "of": len(shifts)}
        if abs(mean) - 1.96 * error > SHIFT:
            way = "rose" if mean > 0 else "fell"
            reasons.append(f"the {name} of the pictures {way} by {abs(mean):.1f} standard deviations of first drafts")
    return Alarm(bool(reasons), tuple(reasons), tuple(fallen), len(gained), measured)


def is_repetitive(text: str, words: int = 4, least: int = 12, share: float = 0.5) -> bool:
    """Textual collapse: of the runs of four words, more than half were said before. Short texts never are."""
    said = re.findall(r"\w+", text.lower())
    if len(said) < least:
        return False
    runs = [tuple(said[index : index + words]) for index in range(len(said) - words + 1)]
    return 1 - len(set(runs)) / len(runs) > share


def has_collapsed(look: Mapping[str, float], base: Sequence[Mapping[str, float]]) -> bool:
    """Visual collapse: flat or blurred as none of a hundred of the model's first drafts is. Half of the least edges, or
    half-way from the flattest to nothing but flat."""
    least = float(np.quantile([one["edges"] for one in base], 0.01))
    flattest = float(np.quantile([one["flat"] for one in base], 0.99))
    return look["edges"] < least / 2 or look["flat"] > (flattest + 1) / 2


def wrong_relation_rewarded(outcome: Outcome, critics: Sequence[str]) -> bool:
    """A high reward for a picture in which a held-out critic finds a relation wrong."""
    if (outcome.rewards[outcome.returned] or 0.0) < HIGH_REWARD:
        return False
    return any(RELATION.search(text) for critic in critics for text in outcome.failed.get(critic, ()))


def signs_of(ends: Sequence[Ends], critics: Sequence[str]) -> dict[str, Any]:
    """All of it for one method, as JSON."""
    alarm = hacking_alarm(ends, critics)
    base = [one.first_look for one in ends]
    returned = [one for one in ends if one.outcome.returned != 0]
    return {
        "hacking_alarm": alarm.raised,
        "reasons": list(alarm.reasons),
        "searches_that_gained": alarm.changed,
        "reward_up_held_out_down": [list(key) for key in alarm.prompts],
        "measured": dict(alarm.measured),
        "repetitive_texts": {
            "first": sum(is_repetitive(one.first_text) for one in ends),
            "returned": sum(is_repetitive(one.returned_text) for one in ends),
        },
        "collapsed_pictures": sum(has_collapsed(one.returned_look, base) for one in returned),
        "wrong_relations_rewarded": sum(wrong_relation_rewarded(one.outcome, critics) for one in ends),
        "searches": len(ends),
    }
