"""Unified multimodal models that can be searched. This door is light: nothing heavy loads before `load`.

Knows the names of the models; what a name needs (torch, weights) is the business of the module behind it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, cast

from milr import memory, threads
from milr.drafts import UserError
from milr.imports import lightly

if TYPE_CHECKING:
    from milr.backbones.base import Backbone

ENTRY_POINT_GROUP = "milr.backbones"


@dataclass(frozen=True)
class Preset:
    """A model with a short name. `source` is a hub id, or '' for the weights inside this package."""

    name: str
    source: str
    summary: str
    is_flow: bool = False
    gigabytes: float = 0.0  # of a flow model's weights in bfloat16, reckoned from its published sizes


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("lab", "", "embedded model that draws emoji scenes; runs anywhere in seconds"),
        Preset(
            "janus-pro-1b",
            "deepseek-community/Janus-Pro-1B",
            "DeepSeek Janus-Pro 1B (DeepSeek model licence)",
        ),
        Preset(
            "janus-pro-7b",
            "deepseek-community/Janus-Pro-7B",
            "DeepSeek Janus-Pro 7B (DeepSeek model licence)",
        ),
        Preset(
            "flux2-klein-4b",
            "black-forest-labs/FLUX.2-klein-4B",
            "FLUX.2-klein 4B, a flow model in 4 steps (Apache-2.0); needs milr[flow]",
            is_flow=True,
            gigabytes=16.0,
        ),
        Preset(
            "flux2-klein-base-4b",
            "black-forest-labs/FLUX.2-klein-base-4B",
            "FLUX.2-klein 4B before distillation, 50 steps (Apache-2.0); needs milr[flow]",
            is_flow=True,
            gigabytes=16.0,
        ),
        Preset(
            "z-image-turbo",
            "Tongyi-MAI/Z-Image-Turbo",
            "Z-Image-Turbo 6B, a flow model in 8 steps (Apache-2.0); needs milr[flow]",
            is_flow=True,
            gigabytes=20.5,
        ),
        Preset(
            "qwen-image",
            "Qwen/Qwen-Image",
            "Qwen-Image 20B, a flow model in 50 steps (Apache-2.0); needs milr[flow]",
            is_flow=True,
            gigabytes=57.7,
        ),
    )
}


def names() -> dict[str, str]:
    """Every model name with its line of description; those of other packages by their entry points."""
    known = {preset.name: preset.summary for preset in PRESETS.values()}
    for name, point in _entry_points().items():
        known.setdefault(name, f"from {point.dist.name if point.dist else point.module}")
    return known


def load(name: str = "lab", device: str = "auto", dtype: str = "auto", speculate: str | None = None) -> Backbone:
    """Load a model: a preset, the hub id or directory of a Janus checkpoint or flow pipeline, or an entry point's name.

    Args:
        device: 'auto' (a CUDA GPU if there is one), 'cpu', or any that torch reports: 'cuda:1', 'mps', 'xpu', ...
        dtype: 'auto' (float32 for small models, else bfloat16), 'float32', 'bfloat16' or 'float16'.
        speculate: 'auto' (several tokens are guessed and checked in one pass, where that pays) or 'off'; the tokens are
            the same. None: what the variable MILR_SPECULATE says, or else 'auto'.
    Gives torch as many processor threads as the model can use, unless the caller said how many (`milr.threads`).
    Raises UserError, before any weight is read, for whatever the caller can put right.
    """
    wanted = speculate or os.environ.get("MILR_SPECULATE", "").strip() or "auto"
    check_speculate(wanted, "speculate" if speculate else "The variable MILR_SPECULATE")
    points = _entry_points()
    if name in points and name not in PRESETS:
        backbone = cast("Backbone", points[name].load()(device=device, dtype=dtype))
    else:
        with lightly():
            if is_flow(name):
                from milr.backbones.flow.backbone import load_flow

                backbone = load_flow(name, device=device, dtype=dtype)
            else:
                from milr.backbones.janus import load_janus

                backbone = load_janus(name, device=device, dtype=dtype)
    if wanted == "off" and hasattr(backbone, "speculate"):
        backbone.speculate = wanted
    if backbone.info.device.startswith("cpu"):
        memory.keep()
    threads.fit(threads.parameters_of(getattr(backbone, "model", None)), backbone.info.device)
    return backbone


def is_flow(name: str) -> bool:
    """Whether a name stands for a flow model. Of a hub id that is no preset one small file is asked for."""
    if name in PRESETS:
        return PRESETS[name].is_flow
    from milr.backbones.flow.folder import is_pipeline

    return is_pipeline(name)


def check_speculate(choice: str, source: str = "speculate") -> None:
    """Refuse what is no way to speculate; `source` is who said it."""
    if choice not in ("auto", "off"):
        raise UserError(f"{source} is 'auto' or 'off', not '{choice[:60]}'.")


def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
