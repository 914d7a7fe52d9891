"""Models that say what is where in a picture, as plain detections: Mask2Former, GroundingDINO, OWLv2, and depth.

Knows transformers and pictures, no prompt and no rule: the rules of a critic are pure functions on what these return.
All work at the sizes of their papers whatever a hub file says, and only pictures of one size (and texts of one length)
share a batch, so a picture's detections do not depend on its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from milr import hub
from milr.critics.local.models import Frozen, ModelSettings, folder_of, in_batches
from milr.critics.rules.t2i_compbench import Detection
from milr.drafts import Box, UserError
from milr.settings import setting

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from PIL.Image import Image

SHORT_SIDE, LONG_SIDE = 800, 1333  # pixels that Mask2Former and GroundingDINO were trained for and are judged with
OVERLAP = 0.5  # of two boxes of a name, by intersection over union, the less sure one is dropped

Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True)
class DetectorSettings(ModelSettings):
    """Settings of critics that compare confidences with thresholds: their published numbers are float32's."""

    dtype: str = setting("float32", "float32, bfloat16 or float16; thresholds were chosen for float32")


@dataclass(frozen=True)
class Instance:
    """One object that Mask2Former sees; `label` is the number of its class, `mask` [height, width] is True on it."""

    label: int
    score: float
    box: Box
    mask: NDArray[Any] = field(repr=False, compare=False)


class NounDetector(Protocol):
    """Finds what nouns name."""

    def find(self, images: Sequence[Image], nouns: Sequence[Sequence[str]], least: float) -> list[list[Detection]]:
        """Per image the detections of its nouns above `least`, best first: `label` (a noun), `score`, `box`."""
        ...


class Mask2Former(Frozen):
    """Instance segmentation. Objects by the original's rule: 100 pairs of query and class, class x mask confidence."""

    def __init__(self, name_or_dir: str, settings: ModelSettings) -> None:
        from transformers import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessorPil

        super().__init__(Mask2FormerForUniversalSegmentation, name_or_dir, settings)
        self.classes = int(self._model.config.num_labels)
        self._processor = image_processor(
            Mask2FormerImageProcessorPil, self._folder, size={"shortest_edge": SHORT_SIDE, "longest_edge": LONG_SIDE}
        )

    def instances(self, images: Sequence[Image], least: float) -> list[list[Instance]]:
        """Per image what is seen with more confidence than `least`."""
        return batched(self._run, [(image, least) for image in images], self._batch)

    def _run(self, items: Sequence[tuple[Image, float]]) -> list[list[Instance]]:
        import torch

        pixels = self._processor([image for image, _ in items], return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            out = self._model(pixel_values=pixels.to(self._device, self._dtype))
        return [
            instances_of(classes.float(), masks.float(), pixels.shape[-2:], image.size, least)
            for classes, masks, (image, least) in zip(
                self._sound(out.class_queries_logits), self._sound(out.masks_queries_logits), items, strict=True
            )
        ]


class GroundingDino(Frozen):
    """Detection of nouns by text. A box's confidence in a noun is the mean over the noun's tokens."""

    def __init__(self, name_or_dir: str, settings: ModelSettings) -> None:
        from transformers import GroundingDinoForObjectDetection, GroundingDinoImageProcessorPil

        super().__init__(GroundingDinoForObjectDetection, name_or_dir, settings)
        self._processor = image_processor(
            GroundingDinoImageProcessorPil, self._folder, size={"shortest_edge": SHORT_SIDE, "longest_edge": LONG_SIDE}
        )
        self._tokenizer = tokenizer(self._folder)

    def find(self, images: Sequence[Image], nouns: Sequence[Sequence[str]], least: float) -> list[list[Detection]]:
        """See NounDetector. Raises ValueError where an image has more nouns than the model reads."""
        if not images:
            return []
        items = [(image, tuple(names), least) for image, names in zip(images, nouns, strict=True)]
        lengths = [len(ids) for ids in self._tokenizer([_text_of(names) for _, names, _ in items])["input_ids"]]
        if max(lengths) > self._model.config.max_text_len:
            raise ValueError("more nouns than GroundingDINO reads at once")
        return batched(self._run, items, self._batch, lengths)

    def _run(self, items: Sequence[tuple[Image, tuple[str, ...], float]]) -> list[list[Detection]]:
        import torch

        pixels = self._processor([image for image, _, _ in items], return_tensors="pt")
        read = self._tokenizer(
            [_text_of(nouns) for _, nouns, _ in items], return_tensors="pt", return_offsets_mapping=True
        )
        offsets = read.pop("offset_mapping").tolist()
        with torch.inference_mode():
            out = self._model(
                pixel_values=pixels["pixel_values"].to(self._device, self._dtype),
                pixel_mask=pixels["pixel_mask"].to(self._device),
                **{name: ids.to(self._device) for name, ids in read.items()},
            )
        return [
            suppress(
                grounded(logits.float(), boxes.float(), noun_tokens(nouns, where), nouns, image.size, least), OVERLAP
            )
            for logits, boxes, where, (image, nouns, least) in zip(
                self._sound(out.logits), self._sound(out.pred_boxes), offsets, items, strict=True
            )
        ]


class Owlv2(Frozen):
    """Detection of nouns by text ('a photo of a fox'); a box belongs to the noun that it is surest of."""

    def __init__(self, name_or_dir: str, settings: ModelSettings) -> None:
        from transformers import Owlv2ForObjectDetection, Owlv2ImageProcessorPil

        super().__init__(Owlv2ForObjectDetection, name_or_dir, settings)
        side = int(self._model.config.vision_config.image_size)
        self._processor = image_processor(Owlv2ImageProcessorPil, self._folder, size={"height": side, "width": side})
        self._tokenizer = tokenizer(self._folder)

    def find(self, images: Sequence[Image], nouns: Sequence[Sequence[str]], least: float) -> list[list[Detection]]:
        """See NounDetector."""
        items = [(image, tuple(names), least) for image, names in zip(images, nouns, strict=True)]
        return batched(self._run, items, self._batch)

    def _run(self, items: Sequence[tuple[Image, tuple[str, ...], float]]) -> list[list[Detection]]:
        import torch

        most = max(len(nouns) for _, nouns, _ in items)
        if most == 0:
            return [[] for _ in items]
        pixels = self._processor([image for image, _, _ in items], return_tensors="pt")["pixel_values"]
        texts = [f"a photo of a {noun}" for _, nouns, _ in items for noun in nouns]
        length = int(self._model.config.text_config.max_position_embeddings)
        read = self._tokenizer(texts, return_tensors="pt", padding="max_length", truncation=True, max_length=length)
        rows = iter(range(len(texts)))
        # A row of zeros is no noun: the model takes as many for each picture.
        ids = torch.zeros(len(items), most, length, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for number, (_, nouns, _) in enumerate(items):
            for place in range(len(nouns)):
                row = next(rows)
                ids[number, place], mask[number, place] = read["input_ids"][row], read["attention_mask"][row]
        with torch.inference_mode():
            out = self._model(
                pixel_values=pixels.to(self._device, self._dtype),
                input_ids=ids.flatten(0, 1).to(self._device),
                attention_mask=mask.flatten(0, 1).to(self._device),
            )
        return [
            suppress(owl_detections(logits.float(), boxes.float(), nouns, image.size, least), OVERLAP)
            for logits, boxes, (image, nouns, least) in zip(
                self._sound(out.logits), self._sound(out.pred_boxes), items, strict=True
            )
        ]


class Depth(Frozen):
    """Inverse depth by one of transformers' depth models: bigger is nearer, without a unit."""

    def __init__(self, name_or_dir: str, settings: ModelSettings) -> None:
        from transformers import DPTImageProcessorPil

        settings.target()
        super().__init__(_depth_class(folder_of(name_or_dir)), name_or_dir, settings)
        self._processor = image_processor(DPTImageProcessorPil, self._folder)

    def maps(self, images: Sequence[Image]) -> list[torch.Tensor]:
        """Per image its map [height, width] in the image's own pixels, on the CPU."""
        return batched(self._run, [(image,) for image in images], self._batch)

    def _run(self, items: Sequence[tuple[Image]]) -> list[torch.Tensor]:
        import torch

        pixels = self._processor([image for (image,) in items], return_tensors="pt")["pixel_values"]
        width, height = items[0][0].size
        with torch.inference_mode():
            depth = self._sound(self._model(pixel_values=pixels.to(self._device, self._dtype)).predicted_depth)
            resized = torch.nn.functional.interpolate(depth.float()[:, None], (height, width), mode="bicubic")
        return list(resized[:, 0].cpu())


def noun_detector(name_or_dir: str, settings: ModelSettings) -> NounDetector:
    """OWLv2 or GroundingDINO, whichever the folder holds. Raises UserError for anything else."""
    kinds: dict[str, Callable[[str, ModelSettings], NounDetector]] = {
        "owlv2": Owlv2,
        "grounding-dino": GroundingDino,
    }
    folder = folder_of(name_or_dir)
    kind = _model_type(folder)
    if kind not in kinds:
        raise UserError(f"{name_or_dir} is a '{kind}' model; as detector of nouns use an OWLv2 or GroundingDINO.")
    return kinds[kind](folder, settings)


# --- Loading and batches --------------------------------------------------------------------------------------


def image_processor(kind: Any, folder: str, **sizes: Any) -> Any:
    """How the model wants its pictures. `kind` is the class that works by Pillow: it needs no torchvision, gives the
    same numbers with and without it, and runs no code of the repository. Raises UserError."""
    try:
        return kind.from_pretrained(folder, local_files_only=True, **sizes)
    except (OSError, ValueError) as error:
        name = hub.name_of(folder)
        raise UserError(f"{name} has no usable preprocessor_config.json; {hub.again(folder)}.") from error


def tokenizer(folder: str) -> Any:
    """The model's own tokenizer. Raises UserError."""
    from transformers import AutoTokenizer

    hub.check_tokenizer(folder)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a missing or broken file shows in many ways
        raise UserError(f"{hub.name_of(folder)} has no usable tokenizer; {hub.again(folder)}.") from error


def batched(
    run: Callable[[Sequence[Item]], Sequence[Found]],
    items: Sequence[Item],
    batch: int,
    lengths: Sequence[int] | None = None,
) -> list[Found]:
    """`run` over items whose first part is an image, in batches of images of one size and of one length: padding
    would change what a model sees (several of transformers' do not mask all of it). Results in the items' order."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    ready = [(item[0].convert("RGB"), *item[1:]) for item in items]  # type: ignore[index]
    for index, item in enumerate(ready):
        groups.setdefault((item[0].size, lengths[index] if lengths else 0), []).append(index)
    found: dict[int, Found] = {}
    for indices in groups.values():
        results = in_batches(run, [ready[index] for index in indices], batch)  # type: ignore[arg-type]
        found.update(zip(indices, results, strict=True))
    return [found[index] for index in range(len(items))]


def _depth_class(folder: str) -> Any:
    from transformers import DepthAnythingForDepthEstimation, DPTForDepthEstimation

    class Dpt(DPTForDepthEstimation):
        pass

    # The first fusion layer has nothing to add to: its first unit is never used, and published files lack it.
    Dpt._keys_to_ignore_on_load_missing = [r"neck\.fusion_stage\.layers\.0\.residual_layer1\."]
    kinds = {"dpt": Dpt, "depth_anything": DepthAnythingForDepthEstimation}
    kind = _model_type(folder)
    if kind not in kinds:
        raise UserError(f"{Path(folder).name} is a '{kind}' model; for depth use a DPT or Depth Anything.")
    return kinds[kind]


def _model_type(folder: str) -> str:
    import json

    try:
        return str(json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")).get("model_type", "unknown"))
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{hub.name_of(folder)} has no readable config.json; {hub.again(folder)}.") from error


# --- From outputs to detections (pure functions) --------------------------------------------------------------


def instances_of(
    class_logits: torch.Tensor,
    mask_logits: torch.Tensor,
    input_size: Sequence[int],
    image_size: tuple[int, int],
    least: float,
) -> list[Instance]:
    """Objects in the outputs for one image, as mmdet makes them (transformers would judge masks at 384 pixels).

    class_logits [queries, classes + 1], mask_logits [queries, h, w]; input_size (height, width) as the model saw the
    image, image_size (width, height) its own. The box is that of the mask, right and bottom edges exclusive.
    """
    import torch

    probabilities = class_logits.softmax(-1)[:, :-1]
    classes = probabilities.shape[1]
    values, pairs = probabilities.flatten().topk(len(class_logits))
    values, pairs = values[values > least], pairs[values > least]  # the mask's confidence can only lower it
    if not len(pairs):
        return []
    masks = mask_logits[pairs // classes][None]
    for size in (tuple(input_size), (image_size[1], image_size[0])):
        masks = torch.nn.functional.interpolate(masks, size, mode="bilinear", align_corners=False)
    inside = masks[0] > 0
    sure = (masks[0].sigmoid() * inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
    found = []
    for score, label, mask in zip((values * sure).tolist(), (pairs % classes).tolist(), inside, strict=True):
        if score > least:
            columns, rows = (mask.any(axis).nonzero().flatten().tolist() for axis in (0, 1))
            box = (float(columns[0]), float(rows[0]), columns[-1] + 1.0, rows[-1] + 1.0)
            found.append(Instance(label, score, box, mask.cpu().numpy()))
    return sorted(found, key=lambda one: -one.score)


def _text_of(nouns: Sequence[str]) -> str:
    """GroundingDINO's text; `noun_tokens` knows where each noun stands in it."""
    return " . ".join((*nouns, "")).strip() or "."


def noun_tokens(nouns: Sequence[str], offsets: Sequence[Sequence[int]]) -> list[list[int]]:
    """Which tokens of 'dog . red car .' belong to each noun; `offsets` are each token's first and last letter."""
    found, start = [], 0
    for noun in nouns:
        end = start + len(noun)
        found.append([index for index, (left, right) in enumerate(offsets) if start <= left < right <= end])
        start = end + len(" . ")
    return found


def grounded(
    logits: torch.Tensor,
    boxes: torch.Tensor,
    tokens: Sequence[Sequence[int]],
    nouns: Sequence[str],
    image_size: tuple[int, int],
    least: float,
) -> list[Detection]:
    """GroundingDINO's detections: a box and a noun whose tokens' mean probability is above `least`.

    logits [boxes, tokens]; boxes [boxes, 4] as centre and size, shares of the image.
    """
    probabilities = logits.sigmoid()
    return _best_first(
        {"label": noun, "score": score, "box": _pixels(box, image_size[0], image_size[1], image_size)}
        for noun, own in zip(nouns, tokens, strict=True)
        if own
        for score, box in zip(probabilities[:, list(own)].mean(1).tolist(), boxes.tolist(), strict=True)
        if score > least
    )


def owl_detections(
    logits: torch.Tensor, boxes: torch.Tensor, nouns: Sequence[str], image_size: tuple[int, int], least: float
) -> list[Detection]:
    """OWLv2's detections. Boxes are shares of the square that the image was padded to, below and to the right."""
    if not nouns:
        return []
    side = max(image_size)
    best, labels = logits[:, : len(nouns)].max(1)  # of logits: probabilities near 1 are all the same
    scores = best.sigmoid()
    return _best_first(
        {"label": nouns[label], "score": score, "box": _pixels(box, side, side, image_size)}
        for score, label, box in zip(scores.tolist(), labels.tolist(), boxes.tolist(), strict=True)
        if score > least
    )


def suppress(detections: Sequence[Detection], overlap: float) -> list[Detection]:
    """Without boxes that a surer one of the same name covers by more than `overlap`; best first."""
    kept: list[Detection] = []
    for one in _best_first(detections):
        if all(one["label"] != sure["label"] or shared(one["box"], sure["box"]) <= overlap for sure in kept):
            kept.append(one)
    return kept


def shared(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    common = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return common / union if union > 0 else 0.0


def nearness(depth: torch.Tensor, box: Box) -> float:
    """Mean inverse depth within a box, at least one pixel of it."""
    height, width = depth.shape
    left, top = (min(max(0, math.floor(value)), most - 1) for value, most in ((box[0], width), (box[1], height)))
    right, bottom = max(left + 1, math.ceil(box[2])), max(top + 1, math.ceil(box[3]))
    return float(depth[top:bottom, left:right].mean())


def _best_first(detections: Any) -> list[Detection]:
    return sorted(detections, key=lambda one: -float(one["score"]))


def _pixels(box: Sequence[float], across: float, down: float, image_size: tuple[int, int]) -> Box:
    """Centre and size as shares -> corners in pixels, within the image."""
    x, y, width, height = box
    return (
        min(max(0.0, (x - width / 2) * across), float(image_size[0])),
        min(max(0.0, (y - height / 2) * down), float(image_size[1])),
        min(max(0.0, (x + width / 2) * across), float(image_size[0])),
        min(max(0.0, (y + height / 2) * down), float(image_size[1])),
    )
