"""Finding a flow pipeline's folder, and checking it before a single weight is read: place, classes, format, memory.

A folder is diffusers' own: model_index.json and a folder for each part. Weights are read from safetensors alone, and
nothing that a repository brings is run. Beside model_index.json may stand milr.json, which says what diffusers' files
have no place for:

    image_size    pixels a side of a picture (1024)
    steps         steps of a draw, where the maker's are others than the family's
    guidance      guidance of a draw, likewise
    text_tokens   the longest text that the encoder reads, its template included
    text_layers   of FLUX.2-klein: the encoder's layers whose states the picture sees (9, 18, 27)
    reasoning     what the encoder is asked for when it writes a reasoning, with {prompt} in it
    drawing       what the picture is drawn from, with {prompt} and {reasoning} in it
    reasoning_tokens  the longest reasoning
    text_encoder  lab: the text encoder is the language model of the embedded model, and has no folder here
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from milr.backbones import PRESETS
from milr.backbones.checkpoint import Memory, free_bytes, locate, pictures_at_once
from milr.backbones.flow.families import FAMILIES, PATCH, Family, Variant, known
from milr.backbones.writing import REASONING
from milr.drafts import UserError
from milr.hub import (
    FILES,
    PIPELINE,
    auto_dtype,
    cached,
    check_files,
    check_tokenizer,
    device_of,
    dtype_of,
    fetch,
    name_of,
)

OWN = "milr.json"
PARTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
WITH_WEIGHTS = ("text_encoder", "transformer", "vae")
SCHEDULER = "FlowMatchEulerDiscreteScheduler"
IMAGE_SIZE = 1024  # what every family's pipeline draws where nothing else is said
TEXTS_AT_ONCE = 8  # that the encoder reads; it keeps the states of all its layers
_SMALL_PARAMETERS = 500_000_000  # up to here float32 is cheap enough to be the default
_LARGEST_SIDE = 4096
_LARGEST = {"image_size": _LARGEST_SIDE, "steps": 1000, "guidance": 1000, "text_tokens": 1024, "reasoning_tokens": 512}
_WORDS = {"reasoning": ("{prompt}",), "drawing": ("{prompt}", "{reasoning}")}  # texts, and what stands in them
LENDER, LENT = "lab", "model.language_model."  # who lends its language model, and how its weights' names begin
DRAWING, REASONING_TOKENS = "{prompt}. {reasoning}", 128


@dataclass(frozen=True)
class Found:
    """A pipeline that can be loaded. `name` is what results carry: never a full path."""

    directory: str
    name: str
    family: Family
    variant: Variant
    options: Mapping[str, Any]  # what model_index.json says beside the parts
    classes: Mapping[str, str]  # a part's class
    image_size: int
    steps: int
    guidance: float
    text_tokens: int
    text_layers: tuple[int, ...]
    lender: (
        str  # folder of a Janus checkpoint whose language model is the text encoder; '' where the pipeline has its own
    )
    reasoning: str
    drawing: str
    reasoning_tokens: int
    channels: int
    grid: int
    device: torch.device
    dtype: torch.dtype
    parameters: int
    memory: Memory
    free: int | None

    def images_at_once(self) -> int:
        """How many pictures to draw in one batch; whoever draws halves it should this be too many."""
        return self.memory.places_in(None if self.free is None else self.free - self.memory.weights)


def find(name_or_dir: str, device: str = "auto", dtype: str = "auto", image_size: int | None = None) -> Found:
    """Find a pipeline (fetching it if need be) and check that it can be loaded; raises UserError if not.

    Args:
        name_or_dir: a preset, a hub id or the folder of a pipeline.
        device, dtype: as for every model.
        image_size: pixels a side; None: what the folder says.
    """
    if importlib.util.find_spec("diffusers") is None:
        raise UserError("Flow models need the package 'diffusers'; install it with pip install 'milr[flow]'.")
    target = device_of(device)
    directory, name = locate(name_or_dir, _download, "flow pipeline")
    index = _index(directory, name)
    family, classes = _classes(index, name)
    own = _own(directory, name)
    lent = _lender(own)
    _check_parts(directory, PARTS if lent is None else tuple(part for part in PARTS if part != "text_encoder"))
    read = {
        part: _json(directory, part, _CONFIG_NAMES.get(part, "config.json"), name)
        if part != "text_encoder" or lent is None
        else _json(lent, "", "config.json", LENDER)["text_config"]
        for part in _CONFIGURED
    }
    scheduler, network, autoencoder = read["scheduler"], read["transformer"], read["vae"]
    if scheduler.get("stochastic_sampling") or scheduler.get("invert_sigmas"):
        raise UserError(
            f"The scheduler of {name} is not that of a plain rectified flow, which is all that is drawn with."
        )
    if image_size is not None:
        own = {**own, "image_size": _number("image_size", image_size, "The setting")}
    parameters = sum(_parameters(Path(directory) / part) for part in WITH_WEIGHTS)
    parameters += 0 if lent is None else _parameters(Path(lent), LENT)
    kind = dtype_of(auto_dtype(target, parameters <= _SMALL_PARAMETERS) if dtype == "auto" else dtype, target)
    size, tokens = int(own.get("image_size", IMAGE_SIZE)), int(own.get("text_tokens", family.text_tokens))
    try:
        variant = family.variant(index, scheduler)
        cell, channels = family.scale(autoencoder) * PATCH, family.channels(network)
        if size % cell:
            raise UserError(f"{name} draws pictures of a multiple of {cell} pixels a side, which {size} is not.")
        layers = _layers(family, own, read["text_encoder"], network, name)
        needed = _memory(parameters, read, size, (size // cell) ** 2, channels, tokens, kind)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:  # fields missing, or of another kind
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"The configuration of {name} is not that of a {family.pipeline} ({what}).") from error
    free = free_bytes(target)
    if free is not None and needed.total > free:
        raise UserError(
            f"{name} in {str(kind).removeprefix('torch.')} at {size} pixels needs {needed.total / 1e9:.1f} GB of "
            f"memory, but {target} has only {free / 1e9:.1f} GB free; choose a smaller model, another device or "
            "smaller pictures."
        )
    return Found(
        directory=directory,
        name=name,
        family=family,
        variant=variant,
        options={key: value for key, value in index.items() if not key.startswith("_") and key not in PARTS},
        classes={**classes, "text_encoder": _writer(classes["text_encoder"], read["text_encoder"], directory)},
        image_size=size,
        steps=int(own.get("steps", variant.steps)),
        guidance=float(own.get("guidance", variant.guidance)),
        text_tokens=tokens,
        text_layers=layers,
        lender=lent or "",
        reasoning=str(own.get("reasoning", REASONING)),
        drawing=str(own.get("drawing", DRAWING)),
        reasoning_tokens=int(own.get("reasoning_tokens", REASONING_TOKENS)),
        channels=channels,
        grid=size // cell,
        device=target,
        dtype=kind,
        parameters=parameters,
        memory=needed,
        free=free,
    )


def describe(name: str, device: str = "auto") -> str:
    """One line for people: what a preset needs, and whether it is here. Nothing is fetched for it."""
    preset = PRESETS[name]
    if importlib.util.find_spec("diffusers") is None:
        return f"{preset.summary}; about {preset.gigabytes:.0f} GB of weights, fetched when first used"
    if (folder := cached(preset.source)) is None:
        return f"not here yet: about {preset.gigabytes:.0f} GB of weights, fetched when first used"
    found = find(folder, device)
    needed, free = found.memory, free_bytes(found.device)
    has = "an unknown amount" if free is None else f"{free / 1e9:.1f} GB"
    return (
        f"{name} in {str(found.dtype).removeprefix('torch.')} needs {needed.weights / 1e9:.1f} GB for its weights and "
        f"{needed.image / 1e9:.2f} GB for each picture of {found.image_size} pixels drawn at once; {found.device} has "
        f"{has} free."
    )


def is_pipeline(name_or_dir: str) -> bool:
    """Whether a folder, or a repository of the hub, is a pipeline of diffusers. Other models have no such file."""
    if Path(name_or_dir).is_dir():
        return (Path(name_or_dir) / PIPELINE).is_file()
    return "/" in name_or_dir and (Path(fetch(name_or_dir, [PIPELINE])) / PIPELINE).is_file()


# --- Place -------------------------------------------------------------------------------------------------


def _download(repository: str) -> str:
    """The local copy of a hub repository, fetched if need be: first what it is, then the parts that are read.

    Some repositories hold the weights a second time, as one file for other programs, or in other formats.
    """
    folder = fetch(repository, [PIPELINE, OWN])
    _classes(_index(folder, repository), repository)
    wanted = [f"{part}/{pattern}" for part in PARTS for pattern in FILES]
    return fetch(repository, [PIPELINE, OWN, *wanted], ignore=["*.fp16*.safetensors", "*.bf16*.safetensors"])


def _json(directory: str, part: str, file: str, name: str) -> Mapping[str, Any]:
    """An object in a JSON file."""
    path = Path(directory) / part / file
    where = f"{part}/{file}" if part else file
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{name} is not complete ({where} is missing); copy or fetch it again.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{where} of {name} cannot be read ({error}); copy or fetch it again.") from error
    if not isinstance(found, dict):
        raise UserError(f"{where} of {name} is no JSON object; copy or fetch it again.")
    return found


def _index(directory: str, name: str) -> Mapping[str, Any]:
    if not (Path(directory) / PIPELINE).is_file():
        raise UserError(f"{name} is no pipeline of diffusers (it has no {PIPELINE}); flow models are {known()}.")
    return _json(directory, "", PIPELINE, name)


_CONFIGURED = ("scheduler", "text_encoder", "transformer", "vae")
_CONFIG_NAMES = {"scheduler": "scheduler_config.json"}


# --- Classes -----------------------------------------------------------------------------------------------


def _classes(index: Mapping[str, Any], name: str) -> tuple[Family, dict[str, str]]:
    """The family of a pipeline, and the class of each part: the family's own, of diffusers and transformers."""
    said = index.get("_class_name")
    if not isinstance(said, str):
        raise UserError(
            f"{name} brings a pipeline of its own ({said}), and no code of a repository is run; flow models are "
            f"{known()}."
        )
    family = FAMILIES.get(said)
    if family is None:
        raise UserError(f"{name} holds a '{said}', which is not drawn with here; flow models are {known()}.")
    own = {
        "scheduler": ("diffusers", SCHEDULER),
        "transformer": ("diffusers", family.transformer),
        "vae": ("diffusers", family.autoencoder),
    }
    classes = {}
    for part in PARTS:
        entry = index.get(part)
        if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry)):
            raise UserError(f"{PIPELINE} of {name} does not say which class its {part} is; copy or fetch it again.")
        library, kind = entry
        wanted = own.get(part, ("transformers", kind))
        if (library, kind) != wanted:
            raise UserError(
                f"The {part} of {name} is a {library}.{kind}, but a {family.pipeline} is drawn with "
                f"{wanted[0]}{'.' + wanted[1] if part in own else ''} alone."
            )
        classes[part] = kind
    return family, classes


def _writer(kind: str, config: Mapping[str, Any], directory: str) -> str:
    """The class with a head of an encoder whose pipeline asks for its body alone, where the folder holds the head: its
    states are the same, and it can write. Z-Image's folder names the body of a whole Qwen3."""
    if not kind.endswith("Model"):
        return kind
    import transformers

    writer = kind.removesuffix("Model") + "ForCausalLM"
    has_head = config.get("tie_word_embeddings", False) or "lm_head.weight" in _shapes(Path(directory) / "text_encoder")
    return writer if has_head and hasattr(transformers, writer) else kind


def _lender(own: Mapping[str, Any]) -> str | None:
    """The folder of the checkpoint whose language model is the text encoder, where the pipeline has none of its own."""
    return locate(LENDER, _download, "Janus checkpoint")[0] if own.get("text_encoder") == LENDER else None


def _check_parts(directory: str, parts: Sequence[str]) -> None:
    """Whether every part is there and whole."""
    for part in parts:
        folder = Path(directory) / part
        if not folder.is_dir():
            raise UserError(
                f"{name_of(directory)} is not complete (its folder {part} is missing); copy or fetch it again."
            )
        check_files(str(folder), weights=part in WITH_WEIGHTS)
    check_tokenizer(str(Path(directory) / "tokenizer"))


# --- What milr.json says -----------------------------------------------------------------------------------


def _own(directory: str, name: str) -> Mapping[str, Any]:
    if not (Path(directory) / OWN).is_file():
        return {}
    said = _json(directory, "", OWN, name)
    fields = [*_LARGEST, "text_layers", *_WORDS, "text_encoder"]
    unknown = sorted(set(said) - set(fields))
    if unknown:
        raise UserError(f"{OWN} of {name} says '{unknown[0]}', which is unknown; known are {', '.join(fields)}.")
    checked: dict[str, Any] = {key: _number(key, said[key], f"{OWN} of {name}:") for key in _LARGEST if key in said}
    for key, needed in _WORDS.items():
        if key in said:
            if not isinstance(said[key], str) or not all(word in said[key] for word in needed):
                raise UserError(
                    f"{OWN} of {name}: {key} is {said[key]!r}, not a text with {' and '.join(needed)} in it."
                )
            checked[key] = said[key]
    if "text_encoder" in said:
        if said["text_encoder"] != LENDER:
            raise UserError(f"{OWN} of {name}: text_encoder is {said['text_encoder']!r}, not '{LENDER}'; leave it out.")
        checked["text_encoder"] = LENDER
    if "text_layers" in said:
        layers = said["text_layers"]
        if not isinstance(layers, list) or not layers or not all(type(layer) is int and layer >= 0 for layer in layers):
            raise UserError(f"{OWN} of {name}: text_layers is {layers!r}, not a list of whole numbers.")
        checked["text_layers"] = tuple(layers)
    return checked


def _number(key: str, value: Any, of: str) -> float:
    whole = key != "guidance"
    right = type(value) is int or (not whole and type(value) is float and math.isfinite(value))
    if not right or not (1 if whole else 0) <= value <= _LARGEST[key]:
        kind = f"a whole number from 1 to {_LARGEST[key]}" if whole else f"a number from 0 to {_LARGEST[key]}"
        raise UserError(f"{of} {key} is {value!r}, not {kind}.")
    return float(value) if not whole else int(value)


def _layers(
    family: Family, own: Mapping[str, Any], encoder: Mapping[str, Any], network: Mapping[str, Any], name: str
) -> tuple[int, ...]:
    """The layers of the encoder whose states the picture sees; checks that they are there, and as wide as it wants."""
    language = encoder.get("text_config", encoder)
    depth, hidden = int(language.get("num_hidden_layers", 0)), int(language.get("hidden_size", 0))
    layers = family.layers(depth)
    if "text_layers" in own and own["text_layers"] != layers:
        if not family.takes_layers:
            raise UserError(
                f"{OWN} of {name} names text_layers, which a {family.pipeline} does not choose; leave it out."
            )
        layers = own["text_layers"]
    if max(layers) > depth:
        raise UserError(
            f"The picture of {name} is to see layer {max(layers)} of its text encoder, which has {depth}; "
            f"say which in {OWN}: text_layers."
        )
    wanted = int(network.get(family.text_width, 0))
    if len(layers) * hidden != wanted:
        raise UserError(
            f"The parts of {name} do not fit: its transformer reads {wanted} numbers a word, its text encoder gives "
            f"{len(layers)} x {hidden}."
        )
    return layers


# --- Memory ------------------------------------------------------------------------------------------------


def _shapes(folder: Path) -> dict[str, list[int]]:
    """The shapes of a part's weights by their names, from the headers of its files. A copy in a smaller format has the
    same names."""
    shapes: dict[str, list[int]] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="np") as tensors:
            shapes |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    return shapes


def _parameters(folder: Path, prefix: str = "") -> int:
    """Numbers of all weights whose names begin so."""
    return sum(math.prod(shape) for name, shape in _shapes(folder).items() if name.startswith(prefix))


def _memory(
    parameters: int,
    read: Mapping[str, Mapping[str, Any]],
    image_size: int,
    cells: int,
    channels: int,
    tokens: int,
    dtype: torch.dtype,
) -> Memory:
    """From the configurations alone: bounds, by what is alive at once in the widest place of each network."""
    network, autoencoder = read["transformer"], read["vae"]
    width = network.get("dim") or network["num_attention_heads"] * network["attention_head_dim"]
    language = read["text_encoder"].get("text_config", read["text_encoder"])
    hidden, depth = language["hidden_size"], language["num_hidden_layers"]
    # The widest layer of a block is nine times the network's width (queries, keys, values and two branches of an MLP
    # side by side); what goes in, what comes out and their normed copies come to seven more.
    passing = (cells + tokens) * 16 * width * dtype.itemsize
    states = tokens * hidden * 3 * dtype.itemsize
    # The encoder keeps the states of all layers, and a head that writes makes logits of every place.
    reading = tokens * ((depth + 1) * hidden + 4 * language["intermediate_size"] + language["vocab_size"])
    base = (
        autoencoder.get("decoder_block_out_channels")
        or autoencoder.get("block_out_channels")
        or [autoencoder.get("base_dim", 96)]
    )[0]
    return Memory(
        weights=parameters * dtype.itemsize,
        image=2 * (passing + states) + 6 * cells * channels * 4,  # both passes of a guided step
        reading=reading * dtype.itemsize,
        reading_at_once=TEXTS_AT_ONCE * reading * dtype.itemsize,
        pixels=8 * image_size**2 * base * dtype.itemsize,
        pictures=pictures_at_once(image_size**2),
    )
