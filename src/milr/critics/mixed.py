"""The paper's MixedReward: GroundingDINO looks for objects, numbers and places, GIT-VQA for colours.

    value = .5 detector + .5 GIT where a colour is asked for, .75 detector + .25 GIT otherwise
    detector = places, if the prompt has any; else numbers, if it has any; else objects
      objects: share of the names that are found
      numbers: mean over names of 1 if exactly as many are found, .2 if any, 0 if none
      places:  mean over relations of (.2 for each object found + .5 x how far the relation holds) / .9
    GIT = mean P(yes) of 'red bench?' over things

The models are those of T2I-R1's reward, which the paper took over. Two of its quirks are mended: its places end at .9,
so that a right picture is not 1, and it has no rule for 'above' and 'on top of', which are always wrong. Unlike
`geneval` it judges any prompt that names things: it reads them from the benchmark's metadata, else from the words, and
says in `reason` what it understood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from milr.critics.base import Critic, mean
from milr.critics.local.detectors import DetectorSettings, GroundingDino, NounDetector
from milr.critics.local.vqa_models import LEAST_SHARE, Git, YesNo
from milr.critics.rules import prompt_parts
from milr.critics.rules.prompt_parts import Parts, Place, Thing
from milr.critics.rules.t2i_compbench import Detection, detector_scale, place_2d
from milr.drafts import Box, Check, Score, Task
from milr.settings import setting

if TYPE_CHECKING:
    from PIL.Image import Image

    from milr.backbones.base import Backbone

NAME = "mixed"
SUMMARY = "The paper's MixedReward: GroundingDINO (objects, numbers, places) and GIT-VQA (colours); any prompt"
NEEDS_BACKBONE = False
MODELS = {"IDEA-Research/grounding-dino-tiny": 689_000_000, "microsoft/git-large-vqav2": 1_580_000_000}

RULES = {  # names of the places that a flat picture shows, as the rule for them is called
    "left of": "on the left of", "right of": "on the right of", "above": "on the top of", "on top of": "on the top of",
    "below": "on the bottom of", "next to": "next to", "near": "near",
}  # fmt: skip
SEEN, PLACED = 0.2, 0.5  # what an object, and what the relation, is worth in a place
SOME = 0.2  # what a wrong number is worth where at least one is found
COLOUR_WEIGHTS, OTHER_WEIGHTS = (0.5, 0.5), (0.75, 0.25)  # detector, GIT
MOST_THINGS = 16
PASSED = 0.5  # P(yes) from which a check counts as passed; the value keeps the probability itself


@dataclass(frozen=True)
class Mixed(DetectorSettings):
    """Settings of `mixed`."""

    detector: str = setting("IDEA-Research/grounding-dino-tiny", "hub id or folder of a GroundingDINO")
    vqa: str = setting("microsoft/git-large-vqav2", "hub id or folder of a GIT that answers questions")
    least: float = setting(0.3, "confidence above which a box counts (T2I-R1)", low=0, high=1)
    least_share: float = setting(
        LEAST_SHARE, "of the probability that GIT's yes and no must hold together; below, it abstains", low=0, high=1
    )


class MixedCritic:
    """Asks both models once a batch; the scoring is `judged`, a pure function."""

    name = NAME

    def __init__(self, detector: NounDetector, vqa: YesNo, least: float = 0.3) -> None:
        self._detector, self._vqa, self._least = detector, vqa, least

    def score(self, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
        """Abstains on a prompt that names no thing."""
        parts = [parts_of(task) for task in tasks]
        why = [reason_against(one) for one in parts]
        able = [index for index, reason in enumerate(why) if reason is None]
        pictures = [images[index] for index in able]
        nouns = [tuple(dict.fromkeys(thing.name for thing in parts[index].things)) for index in able]
        seen = self._detector.find(pictures, nouns, self._least)
        pairs = [(images[index], f"{thing.described}?") for index in able for thing in parts[index].things]
        yes = iter(self._vqa.p_yes([image for image, _ in pairs], [question for _, question in pairs]))
        scores: dict[int, Score] = {}
        for index, found in zip(able, seen, strict=True):
            said = [next(yes) for _ in parts[index].things]
            silent = next((reason for reason in said if isinstance(reason, str)), None)
            answers = [chance for chance in said if not isinstance(chance, str)]
            scores[index] = (
                judged(parts[index], found, answers, images[index].size)
                if silent is None
                else Score(None, reason=f"of a thing GIT says neither yes nor no: {silent}")
            )
        return [scores[index] if reason is None else Score(None, reason=reason) for index, reason in enumerate(why)]

    @staticmethod
    def why_not(prompt: str) -> str | None:
        """Why a prompt without metadata cannot be judged, or None."""
        return reason_against(prompt_parts.read(prompt))


def parts_of(task: Task) -> Parts:
    """What GenEval's metadata asks for, else what the prompt says."""
    if "include" not in task.metadata:
        return prompt_parts.read(task.prompt)
    include = task.metadata["include"]
    return Parts(
        tuple(
            Thing(str(one["class"]), int(one["count"]), (str(one["color"]),) if "color" in one else ())
            for one in include
        ),
        tuple(
            Place(index, str(one["position"][0]), int(one["position"][1]))
            for index, one in enumerate(include)
            if "position" in one
        ),
    )


def reason_against(parts: Parts) -> str | None:
    """Why these parts cannot be judged, or None."""
    if not parts.things:
        return "no thing to look for was understood in this prompt"
    if len(parts.things) > MOST_THINGS:
        return f"the prompt names {len(parts.things)} things, more than {MOST_THINGS}"
    return None


def judged(
    parts: Parts, detections: Sequence[Detection], answers: Sequence[float], image_size: tuple[int, int]
) -> Score:
    """The score from plain detections (best first, suppressed) and P(yes) of each thing."""
    places = [place for place in parts.places if _is_judged(parts, place)]
    if places:
        values, checks = zip(*(_place(parts, place, detections, image_size) for place in places), strict=True)
    elif any(thing.count is not None for thing in parts.things):
        values, checks = zip(*(_number(*pair, detections) for pair in _counts(parts).items()), strict=True)
    else:
        values, checks = zip(*(_object(name, detections) for name in _counts(parts)), strict=True)
    coloured = any(thing.colours for thing in parts.things)
    detector_weight, vqa_weight = COLOUR_WEIGHTS if coloured else OTHER_WEIGHTS
    detector, vqa = mean(values), mean(answers)
    said = f"understood: {parts}; detector {detector:.2f}, GIT {vqa:.2f}"
    passed_over = sorted({place.relation for place in parts.places if place not in places})
    if passed_over:
        said += f"; not judged: {', '.join(passed_over)}"
    return Score(
        mean((detector, vqa), (detector_weight, vqa_weight)),
        (*checks, *(_answer(*pair, detections) for pair in zip(parts.things, answers, strict=True))),
        said,
    )


def _is_judged(parts: Parts, place: Place) -> bool:
    """A flat picture shows it, and the detector can tell the two things apart."""
    return place.relation in RULES and parts.things[place.first].name != parts.things[place.second].name


def _counts(parts: Parts) -> dict[str, int | None]:
    """How many of each name: a red dog and a blue dog are two dogs to the detector. None where it is not said."""
    counts: dict[str, int | None] = {}
    for thing in parts.things:
        before = counts.get(thing.name, 0)
        counts[thing.name] = None if before is None or thing.count is None else before + thing.count
    return counts


def _object(name: str, detections: Sequence[Detection]) -> tuple[float, Check]:
    found = _boxes(name, detections)
    return float(bool(found)), Check(f"{name} (found {len(found)})", bool(found))


def _number(name: str, count: int | None, detections: Sequence[Detection]) -> tuple[float, Check]:
    """A thing without a number is right where any is found."""
    if count is None:
        return _object(name, detections)
    found = _boxes(name, detections)
    is_right = len(found) == count
    surplus = () if is_right else tuple(found[count:])
    value = 1.0 if is_right else SOME if found else 0.0
    return value, Check(f"{count} {name} (found {len(found)})", is_right, surplus)


def _place(
    parts: Parts, place: Place, detections: Sequence[Detection], image_size: tuple[int, int]
) -> tuple[float, Check]:
    """The surest box of each object, compared on the scale that the rule's distances are meant for."""
    first, second = parts.things[place.first].name, parts.things[place.second].name
    words = f"{first} {place.relation} {second}"
    found = [_boxes(name, detections)[:1] for name in (first, second)]
    value = SEEN * sum(map(len, found))
    if not all(found):
        missing = second if found[0] else first
        return value / (2 * SEEN + PLACED), Check(f"{words} (no {missing} found)", False)
    scale = detector_scale(image_size)
    holds = place_2d(RULES[place.relation], *(_scaled(boxes[0], scale) for boxes in found))
    is_right = holds == 1
    wrong = () if is_right else (found[0][0], found[1][0])
    return (value + PLACED * holds) / (2 * SEEN + PLACED), Check(f"{words} ({holds:.2f})", is_right, wrong)


def _answer(thing: Thing, yes: float, detections: Sequence[Detection]) -> Check:
    """GIT sees no boxes: those of the things of that name are shown where it says no."""
    passed = yes >= PASSED
    return Check(f"{thing.described}? yes {yes:.2f}", passed, () if passed else tuple(_boxes(thing.name, detections)))


def _boxes(name: str, detections: Sequence[Detection]) -> list[Box]:
    return [one["box"] for one in detections if one["label"] == name]


def _scaled(box: Box, scale: float) -> Box:
    left, top, right, bottom = box
    return left * scale, top * scale, right * scale, bottom * scale


def make(backbone: Backbone | None, settings: Mixed) -> Critic:
    """The critic, with its two models loaded."""
    return MixedCritic(
        GroundingDino(settings.detector, settings), Git(settings.vqa, settings, settings.least_share), settings.least
    )


SETTINGS = Mixed
