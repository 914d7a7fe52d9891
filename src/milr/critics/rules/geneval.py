"""GenEval's rules: are the asked objects there, as many, so coloured, so placed? (Ghosh et al. 2023, arXiv 2310.11513)

Knows detections and the benchmark's metadata, no detector and no picture. Agrees with the verdicts of the authors'
own code on 1,200 cases (tests/golden). Beside the binary verdict it says which clauses hold, with boxes: a graded
reward, and places that a search may repair.

- A detection counts above a confidence of 0.3, for the tag `counting` above 0.9; of each class the 16 surest.
- `include`: the `count` surest boxes of a class are looked at; fewer fail. As many must have the colour. For a
  position every pair of boxes must be so placed.
- A direction holds where its share of the centre offset, less a tenth of the summed box sizes, exceeds one half.
- `exclude` fails where that many or more are found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from milr.drafts import Box, Check

CONFIDENCE = 0.3
COUNTING_CONFIDENCE = 0.9
MOST_OF_A_CLASS = 16
MARGIN = 0.1  # of the summed box sizes: so far apart before a direction counts
DIRECTION = 0.5  # least share of the offset along a direction; two directions may hold at once
NOWHERE = 1e-3  # pixels: offsets below it have no direction


@dataclass(frozen=True)
class Verdict:
    """`correct` is GenEval's own verdict; `checks` says clause by clause, in words, what was asked and found."""

    correct: bool
    checks: tuple[Check, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """The clauses that fail, in words."""
        return tuple(found.text for found in self.checks if not found.passed)

    @property
    def share(self) -> float:
        """Share of the clauses that hold, in [0, 1]: the graded reward. 1 exactly when `correct`."""
        return sum(found.passed for found in self.checks) / len(self.checks)


@dataclass(frozen=True)
class _Found:
    box: Box
    colour: str | None


def check(metadata: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]) -> Verdict:
    """Judge one image.

    Args:
        metadata: a line of the benchmark: `tag`, `include` [{`class`, `count`, `color`?, `position`? [relation,
        index]}],
            `exclude`? [{`class`, `count`}].
        detections: all that the detector says, in any order: `label`, `score` in [0, 1], `box` (left, top, right,
            bottom in pixels), `color` (of that object, from the colour classifier; may be missing or None).
    """
    objects = _sure_ones(detections, COUNTING_CONFIDENCE if metadata.get("tag") == "counting" else CONFIDENCE)
    checks: list[Check] = []
    groups: list[list[_Found] | None] = []  # for each include clause what matched, or None
    for asked in metadata.get("include", ()):
        name, count = str(asked["class"]), int(asked["count"])
        all_found = objects.get(name, [])
        found = all_found[:count]
        of_this = [Check(f"{count} {name} (found {len(all_found)})", len(found) == count)]
        if "color" in asked:
            of_this.append(_colour_check(name, count, str(asked["color"]), found))
        if "position" in asked:
            relation, index = asked["position"]
            matched = all(one.passed for one in of_this)
            target_name = str(metadata["include"][index]["class"])
            of_this.append(_position_check(name, relation, target_name, found if matched else None, groups[index]))
        groups.append(found if all(one.passed for one in of_this) else None)
        checks += of_this
    for banned in metadata.get("exclude", ()):
        name, count = str(banned["class"]), int(banned["count"])
        found = objects.get(name, [])
        surplus = tuple(one.box for one in found[count - 1 :])
        checks.append(Check(f"fewer than {count} {name} (found {len(found)})", len(found) < count, surplus))
    return Verdict(all(found.passed for found in checks), tuple(checks))


def _sure_ones(detections: Sequence[Mapping[str, Any]], least: float) -> dict[str, list[_Found]]:
    """By class the detections above the confidence, surest first, 16 at most."""
    objects: dict[str, list[_Found]] = {}
    for one in sorted(detections, key=lambda one: -float(one["score"])):
        same = objects.setdefault(str(one["label"]), [])
        if float(one["score"]) > least and len(same) < MOST_OF_A_CLASS:
            left, top, right, bottom = map(float, one["box"])
            same.append(_Found((left, top, right, bottom), one.get("color")))
    return objects


def _colour_check(name: str, count: int, colour: str, found: Sequence[_Found]) -> Check:
    wrong = [one for one in found if one.colour != colour]
    saw = ", ".join(str(one.colour or "no colour") for one in found) or "none"
    enough = len(found) - len(wrong) >= count
    return Check(f"{count} {colour} {name} (found {saw})", enough, () if enough else tuple(one.box for one in wrong))


def _position_check(
    name: str, relation: str, target_name: str, found: Sequence[_Found] | None, targets: Sequence[_Found] | None
) -> Check:
    words = f"{name} {relation} {target_name}"
    if found is None or targets is None:
        return Check(f"{words} (no such {name if found is None else target_name} to compare)", False)
    for one in found:
        for target in targets:
            holds = directions(one.box, target.box)
            if relation not in holds:
                saw = " and ".join(sorted(holds)) or "no direction"
                return Check(f"{words} (found {saw})", False, (one.box, target.box))
    return Check(words, True)


def directions(of: Box, from_: Box) -> set[str]:
    """'left of', 'right of', 'above', 'below': how the first box lies to the second; none, one or two of them."""
    offset = [(of[axis] + of[axis + 2] - from_[axis] - from_[axis + 2]) / 2 for axis in (0, 1)]
    sizes = [abs(of[axis + 2] - of[axis]) + abs(from_[axis + 2] - from_[axis]) for axis in (0, 1)]
    apart = [math.copysign(max(abs(way) - MARGIN * size, 0.0), way) for way, size in zip(offset, sizes, strict=True)]
    if all(abs(way) < NOWHERE for way in apart):
        return set()
    distance = math.hypot(*offset)
    across, down = (way / distance for way in apart)
    held = {"left of": -across, "right of": across, "above": -down, "below": down}
    return {direction for direction, share in held.items() if share > DIRECTION}
