"""T2I-CompBench's judge: BLIP-VQA for attributes, a detector and depth for places and numbers, CLIPScore (2307.06350).

    color, shape, texture   B-VQA: product of P(yes) to 'a green bench?' over the prompt's noun phrases
    spatial, 3d_spatial,    a detector of nouns instead of UniDet, which has no free weights: what these say is
    numeracy                another measure than the paper's, and reasons call it spatial-sub, ...
    non_spatial             cosine of CLIP ViT-B/32, cut to [0, 1]
    complex                 3-in-1: B-VQA with spatial-sub, or CLIP, or the mean of all three
    any other prompt        B-VQA, where it has noun phrases

The formulas are `rules.t2i_compbench`. Noun phrases come from `prompt_parts`, not from spaCy. Each model is loaded when
the first prompt needs it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

from milr.critics.base import Critic
from milr.critics.local.detectors import Depth, DetectorSettings, NounDetector, nearness, noun_detector
from milr.critics.local.models import folder_of
from milr.critics.local.vqa_models import LEAST_SHARE, Blip, Clip, YesNo
from milr.critics.rules import prompt_parts
from milr.critics.rules.t2i_compbench import (
    CONFIDENCE,
    DETECTOR_NAMES,
    MOST_CHUNKS,
    PEOPLE,
    Detection,
    Relation,
    asked_relation,
    attribute_binding,
    boxes_3d,
    numeracy,
    spatial,
    spatial_3d,
    three_in_one,
)
from milr.drafts import Check, Score, Task
from milr.settings import setting

if TYPE_CHECKING:
    from PIL.Image import Image

    from milr.backbones.base import Backbone

NAME = "t2i-compbench"
SUMMARY = "T2I-CompBench's judge: BLIP-VQA on noun phrases, OWLv2 with depth (in UniDet's place), CLIPScore, 3-in-1"
NEEDS_BACKBONE = False
MODELS = {
    "Salesforce/blip-vqa-capfilt-large": 1_540_000_000,
    "google/owlv2-base-patch16-ensemble": 620_000_000,
    "depth-anything/Depth-Anything-V2-Small-hf": 99_200_000,
    "openai/clip-vit-base-patch32": 605_000_000,
}
ATTRIBUTES = ("color", "shape", "texture")
Kind = Literal["spatial", "action", "spatial and action"]
WORDS = {  # of prompt_parts, as the benchmark's formulas call them
    "left of": "on the left of", "right of": "on the right of", "above": "on the top of", "below": "on the bottom of",
    "next to": "next to", "near": "near", "on top of": "on top of", "in front of": "in front of", "behind": "behind",
}  # fmt: skip
NO_CHUNKS = ("top", "the side", "the left", "the right")  # phrases that the authors leave out
NO_PHRASE = "no noun phrase to ask about was understood in this prompt"
PASSED = 0.5  # from which a check counts as passed; the value keeps the number itself


@dataclass(frozen=True)
class Compbench(DetectorSettings):
    """Settings of `t2i-compbench`."""

    vqa: str = setting("Salesforce/blip-vqa-capfilt-large", "hub id or folder of a BLIP that answers questions")
    detector: str = setting("google/owlv2-base-patch16-ensemble", "hub id or folder of an OWLv2 or GroundingDINO")
    depth: str = setting("depth-anything/Depth-Anything-V2-Small-hf", "hub id or folder of a Depth Anything or DPT")
    clip: str = setting("openai/clip-vit-base-patch32", "hub id or folder of the CLIP for CLIPScore")
    least: float = setting(0.2, "the detector's confidence that stands for UniDet's 0.5", low=0.01, high=0.99)
    least_share: float = setting(
        LEAST_SHARE, "of the probability that BLIP's yes and no must hold together; below, it abstains", low=0, high=1
    )


@dataclass(frozen=True)
class Models:
    """The four models, each behind a function that loads it once."""

    vqa: Callable[[], YesNo]
    detector: Callable[[], NounDetector]
    depth: Callable[[], Depth]
    clip: Callable[[], Clip]


class CompbenchCritic:
    """One method a measure; `score` sends each picture to that of its category."""

    name = NAME

    def __init__(self, models: Models, least: float = 0.2) -> None:
        self._models, self._least = models, least

    def score(self, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
        """Abstains where a prompt has nothing that its measure looks at."""
        measures = {
            **dict.fromkeys(ATTRIBUTES, self._attributes), "spatial": self._spatial, "3d_spatial": self._spatial,
            "numeracy": self._numeracy, "non_spatial": self._similarity, "complex": self._complex,
        }  # fmt: skip
        mine = [measures.get(task.category, self._attributes) for task in tasks]
        scores: dict[int, Score] = {}
        for measure in dict.fromkeys(mine):
            these = [index for index, one in enumerate(mine) if one == measure]
            said = measure([images[index] for index in these], [tasks[index] for index in these])
            scores.update(zip(these, said, strict=True))
        return [scores[index] for index in range(len(tasks))]

    @staticmethod
    def why_not(prompt: str) -> str | None:
        """Why a prompt of another benchmark cannot be judged, or None."""
        return None if chunks_of(prompt) else NO_PHRASE

    def _attributes(self, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
        """B-VQA."""
        chunks = [chunks_of(task.prompt) for task in tasks]
        pairs = [(image, f"{chunk}?") for image, own in zip(images, chunks, strict=True) for chunk in own]
        yes = iter(self._models.vqa().p_yes([image for image, _ in pairs], [question for _, question in pairs]))
        return [bound(own, [next(yes) for _ in own]) if own else Score(None, reason=NO_PHRASE) for own in chunks]

    def _similarity(self, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
        """CLIPScore; adjectives are left out of complex prompts."""
        texts = [without_adjectives(task.prompt) if task.category == "complex" else task.prompt for task in tasks]
        cosines = self._models.clip().similarity(images, texts)
        return [Score(min(1.0, max(0.0, cosine)), reason=f"cosine {cosine:.3f}") for cosine in cosines]

    def _spatial(self, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
        """2D or 3D, whichever the relation asks for."""
        asked = [relation_of(task) for task in tasks]
        seen = self._detect(images, [() if one is None else (one.first, one.second) for one in asked])
        near: dict[int, tuple[float, float]] = {}
        deep = {
            index: both
            for index, (one, found) in enumerate(zip(asked, seen, strict=True))
            if one is not None and is_deep(one) and (both := _both(boxes_3d(as_detected(one), found))) is not None
        }
        if deep:
            maps = self._models.depth().maps([images[index] for index in deep])
            for (index, (first, second)), depth in zip(deep.items(), maps, strict=True):
                near[index] = nearness(depth, first["box"]), nearness(depth, second["box"])
        return [
            Score(None, reason="no relation of two things was understood in this prompt")
            if one is None
            else placed(one, found, image.size, near.get(index))
            for index, (one, found, image) in enumerate(zip(asked, seen, images, strict=True))
        ]

    def _numeracy(self, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
        asked = [counts_of(task) for task in tasks]
        seen = self._detect(images, [[name for name, _ in one] for one in asked])
        return [
            counted(one, found) if one else Score(None, reason="no thing with a number was understood in this prompt")
            for one, found in zip(asked, seen, strict=True)
        ]

    def _complex(self, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
        """3-in-1. A part that a prompt does not need is not asked; one that it needs must not abstain."""
        kinds = [kind_of(task) for task in tasks]
        attribute = self._attributes(images, tasks)
        nothing = [Score(0.0)] * len(tasks)
        relation, similarity = list(nothing), list(nothing)
        for measure, into, word in (
            (self._spatial, relation, "spatial"),
            (self._similarity, similarity, "action"),
        ):
            mine = [index for index, kind in enumerate(kinds) if word in kind]
            said = measure([images[index] for index in mine], [tasks[index] for index in mine]) if mine else []
            for index, score in zip(mine, said, strict=True):
                into[index] = score
        return [combined(*four) for four in zip(kinds, attribute, relation, similarity, strict=True)]

    def _detect(self, images: Sequence[Image], nouns: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """Detections on UniDet's scale of confidence."""
        names = [tuple(dict.fromkeys(map(detector_name, own))) for own in nouns]
        found = self._models.detector().find(images, names, self._least)
        return [[{**one, "score": as_unidet(float(one["score"]), self._least)} for one in own] for own in found]


# --- What a prompt asks for -----------------------------------------------------------------------------------


def chunks_of(prompt: str) -> tuple[str, ...]:
    """Its noun phrases as written ('a green bench'), eight at most."""
    phrases = (thing.phrase for thing in prompt_parts.read(prompt).things)
    return tuple(phrase for phrase in phrases if phrase not in NO_CHUNKS)[:MOST_CHUNKS]


def relation_of(task: Task) -> Relation | None:
    """The benchmark's metadata, else its grammar, else the first relation that the words name."""
    if "relation" in task.metadata:
        first, name, second = map(str, task.metadata["relation"])
        return Relation(first, name, second)
    if task.category != "complex" and (exact := asked_relation(task.prompt)) is not None:
        return exact  # of a sentence it would take the verb for a part of the name
    parts = prompt_parts.read(task.prompt)
    for place in parts.places:
        if place.relation in WORDS:
            first, second = (noun_of(parts.things[index].name) for index in (place.first, place.second))
            return Relation(first, WORDS[place.relation], second)
    return None


def counts_of(task: Task) -> list[tuple[str, int]]:
    """The benchmark's metadata, else the things that the words give a number."""
    if "counts" in task.metadata:
        return [(str(name), int(count)) for name, count in task.metadata["counts"]]
    return [(thing.name, thing.count) for thing in prompt_parts.read(task.prompt).things if thing.count is not None]


def kind_of(task: Task) -> Kind:
    """The benchmark's metadata, else what the words name."""
    if "kind" in task.metadata:
        return cast(Kind, task.metadata["kind"])
    return "action" if relation_of(task) is None else "spatial and action"


def without_adjectives(prompt: str) -> str:
    """Without colours and common adjectives (the authors ask a tagger for them)."""
    dropped = {*prompt_parts.COLOURS, *prompt_parts.ADJECTIVES}
    return " ".join(word for word in prompt.split() if word.strip(",.").lower() not in dropped)


def noun_of(name: str) -> str:
    """A name without adjectives, unless nothing is left."""
    return without_adjectives(name) or name


def is_deep(asked: Relation) -> bool:
    """Whether a relation is one of depth."""
    return asked.name in ("in front of", "behind", "hidden", "hidden by")


def detector_name(name: str) -> str:
    """What the rules will look for: people are persons, and so on."""
    return DETECTOR_NAMES.get(name, "person" if name in PEOPLE else name)


def as_detected(asked: Relation) -> Relation:
    """A relation between what the rules will look for."""
    return replace(asked, first=detector_name(asked.first), second=detector_name(asked.second))


def as_unidet(score: float, least: float) -> float:
    """`least` -> .5, 1 -> 1: the formulas want a detector whose sure ones are above a half; OWLv2's are not."""
    return CONFIDENCE + (1 - CONFIDENCE) * (score - least) / (1 - least)


# --- Scores from plain answers and detections (pure functions) ------------------------------------------------


def bound(chunks: Sequence[str], yes: Sequence[float | str]) -> Score:
    """B-VQA from P(yes) of each noun phrase; abstains where there is none of one."""
    known = [(chunk, p) for chunk, p in zip(chunks, yes, strict=True) if not isinstance(p, str)]
    checks = tuple(Check(f"{chunk}? yes {p:.2f}", p >= PASSED) for chunk, p in known)
    silent = next((reason for reason in yes if isinstance(reason, str)), None)
    if silent is not None:
        return Score(None, checks, f"of a thing BLIP says neither yes nor no: {silent}")
    said = "B-VQA: " + ", ".join(check.text for check in checks)
    return Score(attribute_binding([p for _, p in known]), checks, said)


def placed(
    asked: Relation, found: Sequence[Detection], image_size: tuple[int, int], near: tuple[float, float] | None
) -> Score:
    """A relation of two things; `near`: inverse depth of both, for relations of depth."""
    named = as_detected(asked)
    deep = is_deep(asked)
    value = spatial_3d(named, found, near) if deep else spatial(named, found, image_size)
    best = [next((one for one in found if one["label"] == name), None) for name in (named.first, named.second)]
    both = _both((best[0], best[1]))
    words = f"{asked.first} {asked.name} {asked.second}"
    missing = [name for name, one in zip((asked.first, asked.second), best, strict=True) if one is None]
    # Half of the value is the relation's; above it, it holds at least in part.
    passed = both is not None and value > (float(both[0]["score"]) + float(both[1]["score"])) / 4
    boxes = () if passed or both is None else (both[0]["box"], both[1]["box"])
    says = f"{words} ({'no ' + ' and no '.join(missing) + ' found' if missing else f'{value:.2f}'})"
    return Score(value, (Check(says, passed, boxes),), f"{'3d_spatial' if deep else 'spatial'}-sub: {says}")


def counted(asked: Sequence[tuple[str, int]], found: Sequence[Detection]) -> Score:
    """Numbers of things."""
    checks = []
    for name, count in asked:
        boxes = [one["box"] for one in found if one["label"] == detector_name(name)]
        is_right = len(boxes) == count
        checks.append(Check(f"{count} {name} (found {len(boxes)})", is_right, () if is_right else tuple(boxes[count:])))
    value = numeracy([(detector_name(name), count) for name, count in asked], found)
    return Score(value, tuple(checks), "numeracy-sub: " + ", ".join(check.text for check in checks))


def combined(kind: Kind, attribute: Score, relation: Score, similarity: Score) -> Score:
    """3-in-1; abstains where a part that it needs does."""
    parts = {"B-VQA": attribute}
    parts |= {"spatial": relation} if "spatial" in kind else {}
    parts |= {"CLIP": similarity} if "action" in kind else {}
    checks = tuple(check for score in parts.values() for check in score.checks)
    silent = next((score for score in parts.values() if score.value is None), None)
    if silent is not None:
        return Score(None, checks, silent.reason)
    values = [float(score.value or 0.0) for score in (attribute, relation, similarity)]
    said = ", ".join(f"{name} {score.value:.2f}" for name, score in parts.items())
    return Score(three_in_one(kind, values[0], values[1], values[2]), checks, f"3-in-1-sub ({kind}): {said}")


def _both(pair: tuple[Any, Any]) -> tuple[Detection, Detection] | None:
    return None if pair[0] is None or pair[1] is None else (pair[0], pair[1])


def make(backbone: Backbone | None, settings: Compbench) -> Critic:
    """The critic. All models must be there, before any picture is drawn; each is loaded when it is needed first."""
    settings.target()
    for setting_name in ("vqa", "detector", "depth", "clip"):
        folder_of(getattr(settings, setting_name))
    models = Models(
        vqa=functools.cache(lambda: Blip(settings.vqa, settings, settings.least_share)),
        detector=functools.cache(lambda: noun_detector(settings.detector, settings)),
        depth=functools.cache(lambda: Depth(settings.depth, settings)),
        clip=functools.cache(lambda: Clip(settings.clip, settings)),
    )
    return CompbenchCritic(models, settings.least)


SETTINGS = Compbench
