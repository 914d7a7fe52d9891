"""GenEval's own judge: Mask2Former finds the 80 COCO classes, CLIP names their colours, rules decide (2310.11513).

The paper's OracleReward, graded: the share of clauses that hold, 1 exactly where GenEval's verdict is 'correct'. The
rules are `rules.geneval`; this file makes what they need: objects with boxes, and the colour of those that are asked
for one. It reads the benchmark's metadata, or turns a prompt of the same kind into it; of any other it says why not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from milr.critics.base import Critic
from milr.critics.local.detectors import DetectorSettings, Instance, Mask2Former
from milr.critics.local.vqa_models import Clip
from milr.critics.rules import prompt_parts
from milr.critics.rules.geneval import CONFIDENCE, MOST_OF_A_CLASS, check
from milr.critics.rules.t2i_compbench import Detection
from milr.drafts import Score, Task, UserError
from milr.registry import shorten
from milr.settings import setting

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from milr.backbones.base import Backbone

NAME = "geneval"
SUMMARY = "GenEval's judge: Mask2Former, CLIP colours and its rules; for GenEval prompts and others of its 80 classes"
NEEDS_BACKBONE = False
MODELS = {"facebook/mask2former-swin-small-coco-instance": 276_000_000, "openai/clip-vit-large-patch14": 1_710_000_000}

# COCO's classes in the order of the detector's outputs, under the names that GenEval gives them.
CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster",
    "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
ALIASES = {
    "sofa": "couch", "television": "tv", "plane": "airplane", "aeroplane": "airplane", "motorbike": "motorcycle",
    "fridge": "refrigerator", "doughnut": "donut", "mobile phone": "cell phone", "smartphone": "cell phone",
    "keyboard": "computer keyboard", "remote control": "tv remote", "hair dryer": "hair drier", "teddy": "teddy bear",
    "hotdog": "hot dog", "stoplight": "traffic light", "wineglass": "wine glass",
}  # fmt: skip
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")
DIRECTIONS = ("left of", "right of", "above", "below")
BACKGROUND = "#999"  # around an object's mask, so that what lies behind it lends it no colour


@dataclass(frozen=True)
class Geneval(DetectorSettings):
    """Settings of `geneval`; the thresholds belong to the rules and are not settings."""

    detector: str = setting("facebook/mask2former-swin-small-coco-instance", "hub id or folder of a COCO Mask2Former")
    clip: str = setting("openai/clip-vit-large-patch14", "hub id or folder of the CLIP that names colours")


class GenevalCritic:
    """Score = share of GenEval's clauses that hold; its checks say clause by clause what was found, with boxes."""

    name = NAME

    def __init__(self, detector: Mask2Former, clip: Clip) -> None:
        if detector.classes != len(CLASSES):
            raise UserError(
                f"The detector of '{NAME}' must know COCO's {len(CLASSES)} classes, not {detector.classes}; "
                "take facebook/mask2former-swin-small-coco-instance."
            )
        self._detector, self._clip = detector, clip
        self._colours: dict[str, torch.Tensor] = {}  # [10, D] by class name

    def score(self, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
        """Abstains on a prompt that is not made of COCO objects, numbers, colours and directions."""
        asked = [asked_of(task) for task in tasks]
        able = [index for index, metadata in enumerate(asked) if not isinstance(metadata, str)]
        seen = self._detector.instances([images[index] for index in able], CONFIDENCE)
        scores: dict[int, Score] = {}
        for index, instances in zip(able, seen, strict=True):
            metadata = asked[index]
            assert not isinstance(metadata, str)
            scores[index] = verdict(metadata, self._detections(images[index], metadata, instances))
        return [scores.get(index) or Score(None, reason=str(why)) for index, why in enumerate(asked)]

    @staticmethod
    def why_not(prompt: str) -> str | None:
        """Why a prompt without metadata cannot be judged, or None."""
        found = metadata_of(prompt)
        return found if isinstance(found, str) else None

    def _detections(
        self, image: Image, metadata: Mapping[str, Any], instances: Sequence[Instance]
    ) -> list[dict[str, Any]]:
        """Plain detections; only objects whose colour the rules will look at have one."""
        wanted = Counter({str(one["class"]): int(one["count"]) for one in metadata["include"] if "color" in one})
        found, coloured = [], []
        for one in instances:  # surest first, as the rules look at them
            name = CLASSES[one.label]
            found.append({"label": name, "score": one.score, "box": one.box})
            if wanted[name] > 0:
                wanted[name] -= 1
                coloured.append((len(found) - 1, name, cut_out(image, one)))
        if coloured:
            crops = self._clip.images([crop for _, _, crop in coloured])
            for (index, name, _), crop in zip(coloured, crops, strict=True):
                found[index]["color"] = COLOURS[int((self._colour_vectors(name) @ crop).argmax())]
        return found

    def _colour_vectors(self, name: str) -> torch.Tensor:
        """Per colour the mean of the templates' vectors, made a unit vector again."""
        if name not in self._colours:
            texts = [template.format(colour=colour, name=name) for colour in COLOURS for template in TEMPLATES]
            means = self._clip.texts(texts).unflatten(0, (len(COLOURS), len(TEMPLATES))).mean(1)
            self._colours[name] = means / means.norm(dim=-1, keepdim=True)
        return self._colours[name]


def verdict(metadata: Mapping[str, Any], detections: Sequence[Detection]) -> Score:
    """GenEval's verdict as a score: 1 exactly where it is 'correct', else the share of clauses that hold."""
    judged = check(metadata, detections)
    return Score(judged.share, judged.checks, "; ".join(judged.reasons) or "correct")


def cut_out(image: Image, one: Instance) -> Image:
    """The object alone, on grey, cut to its box."""
    from PIL import Image as images

    image = image.convert("RGB")
    blank = images.new("RGB", image.size, BACKGROUND)
    left, top, right, bottom = map(int, one.box)
    return images.composite(image, blank, images.fromarray(one.mask)).crop((left, top, right, bottom))


def asked_of(task: Task) -> Mapping[str, Any] | str:
    """The task's metadata, or what its prompt says, or why neither can be judged."""
    if "include" not in task.metadata:
        return metadata_of(task.prompt)
    clauses = (*task.metadata["include"], *task.metadata.get("exclude", ()))
    unknown = [str(one["class"]) for one in clauses if one["class"] not in CLASSES]
    return f"GenEval's detector does not know '{shorten(unknown[0])}'" if unknown else task.metadata


def metadata_of(prompt: str) -> dict[str, Any] | str:
    """GenEval's metadata of a prompt that says nothing else than COCO objects, numbers, colours and one direction;
    otherwise why not. A number above one is exact, as in GenEval's counting; one object may have company."""
    parts = prompt_parts.read(prompt)
    if not parts.things:
        return "GenEval's rules find no object in this prompt"
    if parts.rest:
        return f"the prompt says more than objects, numbers, colours and directions ('{shorten(parts.rest[0])}')"
    include: list[dict[str, Any]] = []
    for thing in parts.things:
        clause = _clause(thing)
        if isinstance(clause, str):
            return clause
        include.append(clause)
    names = [clause["class"] for clause in include]
    if len(set(names)) < len(names):
        return "the prompt names one class twice, which GenEval's rules cannot tell apart"
    if parts.places:
        place = parts.places[0]
        if len(parts.places) > 1 or len(include) != 2:
            return "GenEval's rules judge one direction between two objects, no more"
        if place.relation not in DIRECTIONS:
            return f"GenEval's rules do not judge '{place.relation}'"
        first, second = include[place.first], include[place.second]
        include = [second, {**first, "position": [place.relation, 0]}]  # the target first, as the benchmark has it
    exclude = [{"class": one["class"], "count": one["count"] + 1} for one in include if one["count"] > 1]
    return {
        "tag": _tag(include),
        "include": include,
        **({"exclude": exclude} if exclude else {}),
        "prompt": prompt,
    }


def _clause(thing: prompt_parts.Thing) -> dict[str, Any] | str:
    name = ALIASES.get(thing.name, thing.name)
    if name not in CLASSES:
        return f"GenEval's detector does not know '{shorten(thing.name)}'"
    if thing.count is None and prompt_parts.singular(thing.phrase.split()[-1]) != thing.phrase.split()[-1]:
        return f"the prompt does not say how many: '{shorten(thing.phrase)}'"
    count = 1 if thing.count is None else thing.count
    if not 1 <= count < MOST_OF_A_CLASS:
        return f"GenEval's rules count up to {MOST_OF_A_CLASS - 1}, not {count}"
    unknown = [colour for colour in thing.colours if colour not in COLOURS]
    if len(thing.colours) > 1 or unknown:
        return f"GenEval's colours do not include '{' and '.join(unknown or thing.colours)}'"
    return {"class": name, "count": count, **({"color": thing.colours[0]} if thing.colours else {})}


def _tag(include: Sequence[Mapping[str, Any]]) -> str:
    """Which of GenEval's tasks this is; only 'counting' changes the rules (a surer detector)."""
    if any(one["count"] > 1 for one in include):
        return "counting"
    if any("position" in one for one in include):
        return "position"
    if any("color" in one for one in include):
        return "colors" if len(include) == 1 else "color_attr"
    return "single_object" if len(include) == 1 else "two_object"


def make(backbone: Backbone | None, settings: Geneval) -> Critic:
    """The critic, with its two models loaded."""
    return GenevalCritic(Mask2Former(settings.detector, settings), Clip(settings.clip, settings))


SETTINGS = Geneval
