"""T2I-CompBench's formulas: from detections and answers to scores (Huang et al. 2023, arXiv 2307.06350; ++: 2025).

Knows prompts of the benchmark's grammar, boxes and probabilities; no model and no picture. The authors' own quirks are
kept, each said where it is, since a published number contains them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from milr.drafts import Box

RELATIONS_2D = (
    "on side of", "next to", "near", "on the left of", "on the right of", "on the bottom of", "on the top of",
    "on top of",
)  # fmt: skip
RELATIONS_3D = ("in front of", "behind", "hidden by", "hidden")
CONFIDENCE = 0.5  # a detection of less does not count
OVERLAP_2D = 0.1  # intersection over union from which a relation beside something is worth less
NEAR = 150.0  # pixels on the detector's scale, short side 479 and long side 480 at most
OVERLAP_3D = 0.5
SAME_BOX = 0.9  # overlap from which two boxes of a name are one thing
PEOPLE = ("girl", "boy", "man", "woman")
DETECTOR_NAMES = {"ship": "boat", "telivision": "tv", "goldfish": "fish", "painting": "picture"}  # numeracy only
NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8}
MOST_CHUNKS = 8

Detection = Mapping[str, Any]  # `label`, `score` in [0, 1], `box` (left, top, right, bottom in pixels); best first


@dataclass(frozen=True)
class Relation:
    """'a girl on the top of a frog': first, name, second."""

    first: str
    name: str
    second: str


def asked_relation(prompt: str) -> Relation | None:
    """The relation of a prompt 'a THING RELATION a THING', 2D or 3D; None for any other text."""
    names = "|".join(map(re.escape, sorted((*RELATIONS_2D, *RELATIONS_3D), key=len, reverse=True)))
    found = re.fullmatch(rf"(?:an?|the) (.+?) ({names}) (?:an?|the) (.+?)\.?", prompt.strip(), re.IGNORECASE)
    return Relation(found[1].lower(), found[2].lower(), found[3].lower()) if found else None


def asked_counts(prompt: str, plurals: Mapping[str, str]) -> list[tuple[str, int]]:
    """What and how many: 'two deer and four men' -> [('deer', 2), ('man', 4)].

    `plurals`: singular by plural, of the benchmark's own list; names of one or two words. Others are passed over.
    """
    words = re.findall(r"[\w'-]+|[^\w\s]", prompt.lower())
    singulars = set(plurals.values())
    found = []
    for index, word in enumerate(words):
        if word not in NUMBERS:
            continue
        for length in (2, 1):
            name = " ".join(words[index + 1 : index + 1 + length])
            if NUMBERS[word] == 1 and name in singulars:
                found.append((name, 1))
                break
            if name in plurals:
                found.append((plurals[name], NUMBERS[word]))
                break
    return found


# --- Formulas -------------------------------------------------------------------------------------------------


def attribute_binding(yes: Sequence[float]) -> float:
    """B-VQA: the product of P(yes) over the prompt's noun phrases, eight at most ('a green bench?', 'a blue bowl?')."""
    return math.prod(yes[:MOST_CHUNKS])


def spatial(asked: Relation, detections: Iterable[Detection], image_size: tuple[int, int]) -> float:
    """2D relations: a quarter of each object's confidence, half of the relation's value; below 0.5 it is 0.

    Quirk: of several boxes of a name the first is taken. 'On top of' (without 'the') has no rule and is worth 0.
    """
    scale = detector_scale(image_size)
    sure = _sure(detections)
    first, second = (
        next((one for one in sure if one["label"] == _label(name)), None) for name in (asked.first, asked.second)
    )
    score = sum(0.25 * float(one["score"]) for one in (first, second) if one is not None)
    if first is not None and second is not None:
        score += place_2d(asked.name, _scaled(first["box"], scale), _scaled(second["box"], scale)) / 2
    return score if score >= 0.5 else 0.0


def spatial_3d(asked: Relation, detections: Iterable[Detection], nearness: tuple[float, float] | None = None) -> float:
    """3D relations: as `spatial`, but a name may be part of a label, and nothing is cut off.

    `nearness`: mean inverse depth within the two boxes (bigger is nearer), needed where both objects are found.
    Quirks: only boxes that overlap can be in front or behind; side by side is worth 0. Of the object that comes
    first, the last box before the other's first is taken.
    """
    first, second = boxes_3d(asked, detections)
    score = sum(0.25 * float(one["score"]) for one in (first, second) if one is not None)
    if first is not None and second is not None and nearness is not None:
        wanted = nearness[0] - nearness[1]
        if asked.name != "in front of":
            wanted = -wanted
        overlap = _overlap(first["box"], second["box"])
        if wanted > 0 and overlap != OVERLAP_3D:
            score += min(1.0, overlap / OVERLAP_3D) / 2
    return score


def boxes_3d(asked: Relation, detections: Iterable[Detection]) -> tuple[Detection | None, Detection | None]:
    """The two detections that `spatial_3d` compares: for `nearness`, take the mean depth within their boxes."""
    first = second = None
    for one in _sure(detections):
        if _label(asked.first) in str(one["label"]):
            first = one
        if _label(asked.second) in str(one["label"]):
            second = one
        if first is not None and second is not None:
            break
    return first, second


def numeracy(asked: Sequence[tuple[str, int]], detections: Iterable[Detection]) -> float:
    """Per object half for being there and half for the exact number; the mean over objects. 0 where nothing is asked.

    Boxes of a name that cover each other by more than 0.9 are one thing. Quirk: where a name is no label, labels that
    contain it are renamed to it, for the objects that follow too ('apple' finds 'pineapple').
    """
    if not asked:
        return 0.0
    kept: list[tuple[str, Box]] = []
    for one in _sure(detections):
        name, box = str(one["label"]), one["box"]
        if not any(name == other and _is_same(box, there) for other, there in kept):
            kept.append((name, box))
    names = [name for name, _ in kept]
    score = 0.0
    for asked_name, count in asked:
        name = DETECTOR_NAMES.get(asked_name, _label(asked_name))
        if name not in names:
            names = [name if name in label else label for label in names]
        found = names.count(name)
        score += 0.5 * (found > 0) + 0.5 * (found == count)
    return score / len(asked)  # only now: six sixths make 0.9999999999999999


def three_in_one(
    kind: Literal["spatial", "action", "spatial and action"], attribute: float, relation: float, similarity: float
) -> float:
    """Complex prompts: attributes (B-VQA) with the relation, or with CLIP's similarity, or the mean of all three."""
    parts = {
        "spatial": (attribute, relation),
        "action": (attribute, similarity),
        "spatial and action": (attribute, relation, similarity),
    }[kind]
    return sum(parts) / len(parts)


def place_2d(name: str, first: Box, second: Box) -> float:
    """How far the relation holds, 0 to 1; boxes in pixels of the detector's scale."""
    across, down = (
        (second[axis] + second[axis + 2] - first[axis] - first[axis + 2]) / 2 for axis in (0, 1)
    )  # fmt: skip
    if name in ("next to", "on side of", "near"):
        if abs(across) < NEAR or abs(down) < NEAR:  # quirk: near along one axis is near
            return 1.0
        return NEAR / max(abs(across), abs(down))
    ahead = {
        "on the right of": -across, "on the left of": across, "on the bottom of": -down, "on the top of": down,
    }.get(name, 0.0)  # fmt: skip
    aside = down if name in ("on the right of", "on the left of") else across
    if ahead <= abs(aside):
        return 0.0
    overlap = _overlap(first, second)
    return 1.0 if overlap < OVERLAP_2D else OVERLAP_2D / overlap


def detector_scale(image_size: tuple[int, int]) -> float:
    """Pixels of the detector's input for one of the picture's: short side 479, long side 480 at most."""
    return min(479 / min(image_size), 480 / max(image_size))


def _scaled(box: Box, scale: float) -> Box:
    left, top, right, bottom = box
    return left * scale, top * scale, right * scale, bottom * scale


def _sure(detections: Iterable[Detection]) -> list[Detection]:
    return [one for one in detections if float(one["score"]) > CONFIDENCE]


def _label(name: str) -> str:
    return "person" if name in PEOPLE else name


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _common(a: Box, b: Box) -> Box:
    return max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])


def _overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    common = _area(_common(a, b))
    union = _area(a) + _area(b) - common
    return common / union if union > 0 else 0.0


def _is_same(a: Box, b: Box) -> bool:
    """Whether one box covers nearly all of the other; pixels are counted as squares, so a box is a pixel larger."""
    a, b = ((box[0], box[1], box[2] + 1, box[3] + 1) for box in (a, b))
    common = _area(_common(a, b))
    return common > SAME_BOX * min(_area(a), _area(b))
