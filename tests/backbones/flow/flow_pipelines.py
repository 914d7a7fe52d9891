"""A small pipeline of each family, of the true classes, with random weights: ours beside diffusers' own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from milr.backbones.flow.drawer import Drawer
from milr.backbones.flow.families import FAMILIES, KLEIN, QWEN_IMAGE, Z_IMAGE, Family, to_cells, to_latents
from milr.backbones.flow.noise import gaussian

TEXTS = ("a red fox", "two green birds above a blue car, left of the white dog on the table", "a cat")


@dataclass(frozen=True)
class Kind:
    family: Family
    is_distilled: bool = False

    def __str__(self) -> str:
        return self.family.name + ("-distilled" if self.is_distilled else "")


KINDS = (Kind(KLEIN), Kind(KLEIN, True), Kind(Z_IMAGE), Kind(Z_IMAGE, True), Kind(QWEN_IMAGE))
assert {kind.family.pipeline for kind in KINDS} == set(FAMILIES)


@dataclass(frozen=True)
class Pair:
    """Our drawer beside diffusers' own pipeline, from the same folder."""

    kind: Kind
    ours: Drawer
    theirs: Any
    directory: Path

    def noises(self, number: int) -> list[torch.Tensor]:
        cells = self.ours.grid**2
        return [
            gaussian([1000 * picture + cell for cell in range(cells)], self.ours.channels, self.ours.grid)
            for picture in range(number)
        ]

    def call(self, texts: list[str], noises: list[torch.Tensor], steps: int, guidance: float) -> tuple[Any, Any]:
        """The pipeline's `__call__`: latents after the last step as cells, and pictures."""
        cells, drawer = torch.stack(noises), self.ours
        seen: list[torch.Tensor] = []

        def keep(pipe: Any, step: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
            seen.append(values["latents"].clone())
            return {}

        name = {"Qwen-Image": "true_cfg_scale"}.get(self.kind.family.name, "guidance_scale")
        extra: dict[str, Any] = {
            "FLUX.2-klein": {"max_sequence_length": drawer.text_tokens, "text_encoder_out_layers": (1, 2, 3)},
            "Z-Image": {"max_sequence_length": drawer.text_tokens},
            "Qwen-Image": {"negative_prompt": [" "] * len(texts)},
        }[self.kind.family.name]
        given = {
            "FLUX.2-klein": cells,
            "Z-Image": to_latents(cells),
            "Qwen-Image": cells.flatten(2).transpose(1, 2),
        }[self.kind.family.name]
        pictures = self.theirs(
            prompt=list(texts),
            height=drawer.image_size,
            width=drawer.image_size,
            num_inference_steps=steps,
            latents=given,
            callback_on_step_end=keep,
            **{name: guidance},
            **extra,
        ).images
        latents = seen[-1]
        if self.kind.family.name != "Z-Image":
            return latents.transpose(1, 2).unflatten(2, cells.shape[2:]), pictures
        return to_cells(latents), pictures
