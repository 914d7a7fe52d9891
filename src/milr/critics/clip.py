"""CLIPScore: how near picture and prompt lie in the common space of a CLIP model (Radford 2021, Hessel 2021).

    score = (cosine - low) / (high - low), cut to [0, 1]

Raw cosines fill a narrow band: with ViT-L/14 a picture and a text that have nothing in common are at about 0.1, good
matches at about 0.3. `low` and `high` spread that band, so that a threshold of a search means something. They change
no order. This file also holds what every critic with CLIP's two towers shares.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from milr import hub
from milr.critics.base import Critic
from milr.critics.local.models import ModelSettings, folder_of, in_batches, load_model, unit_vectors
from milr.critics.local.vlm import load_processor
from milr.drafts import Score, Task, UserError
from milr.settings import setting

if TYPE_CHECKING:
    from PIL.Image import Image

    from milr.backbones.base import Backbone

NAME = "clip"
SUMMARY = "Cosine of picture and prompt in CLIP ViT-L/14: what is in the picture; blind to counts and places"
NEEDS_BACKBONE = False
MODELS = {"openai/clip-vit-large-patch14": 1_710_540_580}
WITHOUT_WEIGHTS = ("*.json", "*.txt")


@dataclass(frozen=True)
class ClipSettings(ModelSettings):
    """Settings of `clip`."""

    model: str = setting("openai/clip-vit-large-patch14", "hub id or folder of a CLIP")
    low: float = setting(0.1, "cosine that counts as 0", low=-1, high=1)
    high: float = setting(0.35, "cosine that counts as 1", low=-1, high=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.low < self.high:
            raise UserError(f"Setting 'low' ({self.low:g}) must be less than 'high' ({self.high:g}).")


@dataclass(frozen=True)
class Near:
    """How near one picture and its prompt lie: the cosine, and CLIP's own score, `exp(logit_scale)` times it."""

    cosine: float
    logit: float
    note: str = ""  # what the model could not read


class Clip:
    """A frozen CLIP: two towers, one space."""

    def __init__(self, model: str, settings: ModelSettings, processor: str | None = None) -> None:
        """`processor` is where tokenizer and picture sizes are, if not beside the weights."""
        from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

        target = settings.target()
        folder = folder_of(model)
        self._name = hub.name_of(folder)
        reader = folder if processor is None else _folder_without_weights(processor)
        self._tokenizer = load_processor(AutoTokenizer, reader)
        self._pictures = load_processor(CLIPImageProcessorPil, reader)  # Pillow's resizing, as CLIP was trained
        self._model = load_model(CLIPModel, folder, *target)
        self._longest = int(self._model.config.text_config.max_position_embeddings)
        self._batch = settings.batch

    def compare(self, images: Sequence[Image], prompts: Sequence[str]) -> list[Near]:
        """Each image with its own prompt."""
        return in_batches(self._compare, list(zip(images, prompts, strict=True)), self._batch)

    def _compare(self, pairs: Sequence[tuple[Image, str]]) -> list[Near]:
        import torch

        images, prompts = zip(*pairs, strict=True)
        model = self._model
        pixels = self._pictures([image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]
        words = self._tokenizer(
            list(prompts), padding=True, truncation=True, max_length=self._longest, return_tensors="pt"
        )
        ids, mask = words["input_ids"].to(model.device), words["attention_mask"].to(model.device)
        with torch.inference_mode():
            seen = unit_vectors(model.get_image_features(pixel_values=pixels.to(model.device, model.dtype)), self._name)
            meant = unit_vectors(model.get_text_features(input_ids=ids, attention_mask=mask), self._name)
            cosines = (seen * meant).sum(-1).tolist()
            scale = float(model.logit_scale.float().exp())
        cut = [bool(encoding.overflowing) for encoding in words.encodings]
        note = f"only the first {self._longest} tokens of the prompt were read"
        return [
            Near(cosine, scale * cosine, note if is_cut else "") for cosine, is_cut in zip(cosines, cut, strict=True)
        ]


class ClipCritic:
    """Score = the cosine, spread from [low, high] to [0, 1]."""

    name = NAME

    def __init__(self, settings: ClipSettings) -> None:
        self._settings = settings
        self._clip = Clip(settings.model, settings)

    def score(self, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
        """Never abstains; says where a prompt was too long to be read whole."""
        return [
            Score(spread(near.cosine, self._settings.low, self._settings.high), reason=near.note)
            for near in self._clip.compare(images, [task.prompt for task in tasks])
        ]


def spread(cosine: float, low: float, high: float) -> float:
    """Where a cosine lies between low (0) and high (1)."""
    return min(1.0, max(0.0, (cosine - low) / (high - low)))


def make(backbone: Backbone | None, settings: ClipSettings) -> Critic:
    """The critic, with its weights loaded."""
    return ClipCritic(settings)


def _folder_without_weights(name_or_dir: str) -> str:
    """A repository whose tokenizer is wanted, but not its gigabytes."""
    is_local = os.path.isdir(name_or_dir) or not hub.is_repository(name_or_dir)
    return folder_of(name_or_dir, weights=False) if is_local else hub.fetch(name_or_dir, WITHOUT_WEIGHTS)


SETTINGS = ClipSettings
