"""Finding a Janus checkpoint, and checking it before a single weight is read: place, format, device, memory.

Every mistake that small files can tell is told here, in one sentence. Builds no model (but an empty one, to
count its parameters) and knows nothing of drawing.
"""

from __future__ import annotations

import difflib
import importlib.resources
import json
import os
import re
from collections.abc import Callable, Set
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import JanusConfig, JanusForConditionalGeneration
from transformers.initialization import no_init_weights

from milr.backbones import PRESETS, names
from milr.backbones.decoding import PLACES, READ_AT_ONCE
from milr.drafts import UserError
from milr.hub import auto_dtype, check_files, check_tokenizer, device_of, dtype_of, fetch, is_repository

LARGEST_BATCH = PLACES[-1]
_SMALL_PARAMETERS = 500_000_000  # up to here float32 is cheap enough to be the default


@dataclass(frozen=True)
class Memory:
    """Bytes a model needs: for its weights (and the inputs of image tokens, worked out once), for each image drawn at
    once (two cache rows, the latents that come back), and for what is done with some images at a time: reading their
    prompts and forced tokens, of all images together at most `reading_at_once`, and decoding the pixels of
    `pictures`."""

    weights: int
    image: int
    reading: int  # of one image
    reading_at_once: int
    pixels: int
    pictures: int

    @property
    def total(self) -> int:
        """The least that is of use: the weights and one image."""
        return self.weights + self.of(1)

    def of(self, images: int) -> int:
        """What so many images need beside the weights."""
        reading = max(min(images, 1) * self.reading, min(images * self.reading, self.reading_at_once))
        return images * self.image + reading + min(images, self.pictures) * self.pixels

    def images_in(self, room: int) -> int:
        """How many images this room has place for, beside the weights."""
        return next((images for images in range(LARGEST_BATCH, 0, -1) if self.of(images) <= room), 0)

    def places_in(self, free: int | None) -> int:
        """How many images to draw at once where so much is free (None: nobody knows) beside the weights: as many as a
        board has places for."""
        images = LARGEST_BATCH if free is None else self.images_in(int(free * 0.8))
        return max((places for places in PLACES if places <= images), default=1)


@dataclass(frozen=True)
class Found:
    """A checkpoint that can be loaded. `name` is what results carry: never a full path."""

    directory: str
    name: str
    config: JanusConfig
    device: torch.device
    dtype: torch.dtype
    memory: Memory
    free: int | None

    def images_at_once(self) -> int:
        """How many images to draw in one batch; the engine halves it should this be too many."""
        return self.memory.places_in(None if self.free is None else self.free - self.memory.weights)


def find(name_or_dir: str, device: str, dtype: str) -> Found:
    """Find a checkpoint (fetching it if need be) and check that it can be loaded; raises UserError if not."""
    target = device_of(device)
    directory, name = _locate(name_or_dir)
    config = _read_config(directory, name)
    # JanusConfig ties the heads by default, which is wrong for a checkpoint that holds an lm_head of its own.
    config.tie_word_embeddings = "lm_head.weight" not in _weight_names(directory, name)
    kind = _dtype(dtype, config, target)
    needed, free = memory_needed(config, kind), free_bytes(target)
    if free is not None and needed.total > free:
        smaller = " or --dtype bfloat16" if kind == torch.float32 else ""
        raise UserError(
            f"{name} in {_name(kind)} needs {needed.total / 1e9:.1f} GB of memory, but {target} has only "
            f"{free / 1e9:.1f} GB free; choose a smaller model, another --device{smaller}."
        )
    return Found(directory, name, config, target, kind, needed, free)


def describe_memory(name_or_dir: str, device: str = "auto", dtype: str = "auto") -> str:
    """One line for people: what a model needs and what the device has. Reads no weights.

    The presets of Janus-Pro are described without a network, from their known configurations.
    """
    from milr.backbones.random_checkpoint import CONFIGS

    target = device_of(device)
    if name_or_dir in CONFIGS:
        config, name = CONFIGS[name_or_dir](), name_or_dir
    else:
        directory, name = _locate(name_or_dir)
        config = _read_config(directory, name)
    kind = _dtype(dtype, config, target)
    needed, free = memory_needed(config, kind), free_bytes(target)
    has = "an unknown amount" if free is None else f"{free / 1e9:.1f} GB"
    verdict = "" if free is None or needed.total <= free else ": too little"
    return (
        f"{name} in {_name(kind)} needs {needed.weights / 1e9:.2f} GB for its weights and "
        f"{needed.image / 1e9:.2f} GB for each image drawn at once ({needed.pixels / 1e9:.2f} GB more for pixels, of "
        f"at most {needed.pictures}); {target} has {has} free{verdict}."
    )


# --- Place -------------------------------------------------------------------------------------------------


def _locate(name_or_dir: str) -> tuple[str, str]:
    """The local directory of a Janus checkpoint, and its name."""
    directory, name = locate(name_or_dir, _download, "Janus checkpoint")
    check_files(directory)
    return directory, name


def locate(name_or_dir: str, download: Callable[[str], str], kind: str) -> tuple[str, str]:
    """The local directory that a model's name stands for, and what results call it. Checks nothing in a directory.

    Args:
        name_or_dir: a preset, a directory or a hub id (owner/name).
        download: fetches a hub id, if need be, and gives its local copy.
        kind: what a directory holds, for a sentence.
    """
    preset = PRESETS.get(name_or_dir)
    if preset and not preset.source:
        directory = str(importlib.resources.files("milr.lab") / "weights")
        if not os.path.isfile(os.path.join(directory, "config.json")):
            raise UserError(
                "This installation lacks the weights of the embedded model 'lab'; install milr again, or "
                "train them with 'milr lab train'."
            )
        return directory, preset.name
    if preset:
        return download(preset.source), preset.source
    if os.path.isdir(name_or_dir):
        return name_or_dir, Path(name_or_dir).resolve().name
    close = difflib.get_close_matches(name_or_dir.lower(), names(), n=1)
    if not close and is_repository(name_or_dir):
        return download(name_or_dir), name_or_dir
    hint = f"did you mean '{close[0]}'? Known are" if close else "known are"
    raise UserError(
        f"Unknown model '{name_or_dir}': {hint} {', '.join(names())}, any hub id (owner/name) and the "
        f"directory of any {kind}."
    )


def _download(repository: str) -> str:
    """The local copy of a hub repository, fetched if need be: its configuration first."""
    _read_config(fetch(repository, ["config.json"]), repository)
    return fetch(repository, ["*.json", "*.jinja", "*.safetensors"])


def _read_config(directory: str, name: str) -> JanusConfig:
    try:
        with open(os.path.join(directory, "config.json"), encoding="utf-8") as file:
            fields = json.load(file)
    except FileNotFoundError as error:
        raise UserError(f"{name} is no checkpoint (it has no config.json); give a Janus one.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"The config.json of {name} cannot be read ({error}); fetch it again.") from error
    kind = fields.get("model_type") if isinstance(fields, dict) else None
    if kind == "multi_modality":
        raise UserError(f"{name} holds a Janus in DeepSeek's own format; use its converted twin, e.g. 'janus-pro-1b'.")
    if kind != "janus":
        raise UserError(f"{name} holds a '{kind}' model, not a Janus; try 'lab' or 'janus-pro-1b'.")
    try:
        config: JanusConfig = JanusConfig.from_dict(fields)
    except Exception as error:  # strict configurations raise exceptions of their own
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"The config.json of {name} is not that of a Janus ({reason}).") from error
    return config


def _weight_names(directory: str, name: str) -> Set[str]:
    """Names of the stored tensors, from the index or the file's header; checks that every file is there and whole."""
    check_files(directory, weights=True)
    check_tokenizer(directory)
    index = os.path.join(directory, "model.safetensors.index.json")
    single = os.path.join(directory, "model.safetensors")
    try:
        if os.path.isfile(index):
            with open(index, encoding="utf-8") as file:
                places: dict[str, str] = json.load(file)["weight_map"]
            return places.keys()
        if os.path.isfile(single):
            with safe_open(single, framework="pt") as tensors:
                return set(tensors.keys())
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"The weights of {name} cannot be read ({error}); fetch them again.") from error
    raise UserError(f"{name} has no model.safetensors, and weights are read from no other format; convert it.")


# --- Device, dtype, memory ---------------------------------------------------------------------------------


def _dtype(dtype: str, config: JanusConfig, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        dtype = auto_dtype(device, _parameters(config) <= _SMALL_PARAMETERS)
    return dtype_of(dtype, device)


def memory_needed(config: JanusConfig, dtype: torch.dtype) -> Memory:
    """Computed from the configuration alone."""
    text: Any = config.text_config
    vq: Any = config.vq_config
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * head * dtype.itemsize
    image = vq.num_patches**2
    tokens = image + 200  # with a prompt and a reasoning
    # A picture whose tokens are forced is read in one pass: gate, up and their product, and some states.
    passing = (4 * text.intermediate_size + 3 * text.hidden_size) * dtype.itemsize
    latents = 2 * image * 2 * text.hidden_size * 4  # float32, once where they are gathered and once as they come back
    pixels = (vq.num_patches * 2 ** (len(vq.channel_multiplier) - 1)) ** 2
    decoding = 8 * pixels * vq.base_channels * dtype.itemsize  # feature maps at full size, twice what was measured
    return Memory(
        weights=(_parameters(config) + vq.num_embeddings * text.hidden_size) * dtype.itemsize,
        image=2 * tokens * per_token + latents,
        reading=2 * tokens * passing,
        reading_at_once=READ_AT_ONCE * passing,
        pixels=decoding,
        pictures=pictures_at_once(pixels),
    )


def pictures_at_once(pixels: int, device: str = "cuda") -> int:
    """How many pictures of so many pixels are decoded at once: one of 384 x 384 takes about 0.2 GB on its way. A CPU is
    quickest where all of it stays in its cache."""
    return max(1, 2 ** (16 if device == "cpu" else 20) // pixels)


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be taken on a device; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type not in ("cpu", "mps"):  # Apple's shares the machine's memory; of others nobody tells
        return None
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            match = re.search(r"^MemAvailable:\s+(\d+) kB", file.read(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None


def _parameters(config: JanusConfig) -> int:
    return _count(json.dumps(config.to_dict(), sort_keys=True, default=str))


@lru_cache(maxsize=8)
def _count(config: str) -> int:
    with torch.device("meta"), no_init_weights():  # random numbers of nothing would load torch's compiler
        model = JanusForConditionalGeneration(JanusConfig.from_dict(json.loads(config)))
    return sum(parameter.numel() for parameter in model.parameters())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
