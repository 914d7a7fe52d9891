"""What differs between families of flow models, as one table: whoever draws reads it, and asks nothing about families.

All of it is said of a picture as cells [C, h, w]: one cell a token of the transformer, which is a patch of 2 x 2
latents, its channels in the order (channel, row, column) that FLUX.2 and Qwen-Image pack by themselves. The velocity is
that of the rectified flow x = (1 - s) picture + s noise: v = noise - picture, whatever sign the network has.

The steps' noise levels come from the pipeline's own scheduler, and its shift from the pipeline's own module; nothing of
either is written down again here. Loads no weights, and diffusers only by what it is given.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

PATCH = 2  # latents a side of a cell

# A pipeline, and a name of its scheduler's, its network's and its autoencoder's, is diffusers' own and has no types.
Pipeline = Any


@dataclass(frozen=True)
class Variant:
    """One of a family's models, with what its makers draw with."""

    name: str
    steps: int
    guidance: float
    can_guide: bool = True  # False: distilled so that its pipeline does without the unconditional pass


@dataclass(frozen=True)
class Schedule:
    """The noise levels of a draw: what the network is told before each step, and the levels, one more than steps."""

    times: Tensor  # [n] float32, in the scheduler's thousand
    sigmas: Tensor  # [n + 1] float32, the last is 0


@dataclass(frozen=True)
class Family:
    """One kind of pipeline."""

    name: str
    pipeline: str  # diffusers' classes
    transformer: str
    autoencoder: str
    thinks: bool  # whether the encoder's template asks for thinking; no thoughts are written before the states are read
    text_tokens: int  # the longest text that is read, template included
    pads_text: bool  # whether the encoder reads every text as long as the longest; FLUX.2-klein's pictures see that
    words_together: int  # the network fills a text up to a multiple of so many states
    nothing: str  # the text of the unconditional pass
    no_guidance: float  # the largest guidance that means: no unconditional pass
    guides_in_one_pass: bool  # whether the pipeline runs both passes of a guided step as one batch
    float32_latents: bool  # whether a picture stays in float32 between steps, whatever the network's format
    takes_layers: bool  # whether its pipeline can be told which layers' states to read
    text_width: str  # the field of the transformer's config that says how wide these states are
    variant: Callable[[Mapping[str, Any], Mapping[str, Any]], Variant]  # of model_index.json and the scheduler's config
    layers: Callable[[int], tuple[int, ...]]  # whose states are read, of an encoder of so many
    channels: Callable[[Mapping[str, Any]], int]  # of a cell, by the transformer's config
    scale: Callable[[Mapping[str, Any]], int]  # pixels a side of one latent, by the autoencoder's config
    template: Callable[[Pipeline, str], str]  # what the encoder reads for a text
    unseen: Callable[[Pipeline], int]  # how many of the template's tokens the picture never sees
    encode: Callable[[Pipeline, list[str], int, tuple[int, ...]], list[Tensor]]  # texts, tokens, layers -> [L, D] each
    schedule: Callable[[Pipeline, int, int], Schedule]  # steps, cells of the picture
    velocity: Callable[[Pipeline, Tensor, Tensor, Sequence[Tensor]], Tensor]  # cells, times [B], states -> cells
    guide: Callable[[Tensor, Tensor, float], Tensor]  # conditional and unconditional velocity of one picture, guidance
    pixels: Callable[[Pipeline, Tensor], Tensor]  # cells -> [B, 3, H, W] in about [-1, 1]


def to_cells(latents: Tensor) -> Tensor:
    """[B, c, H, W] -> [B, 4 c, H / 2, W / 2]."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels, height // PATCH, PATCH, width // PATCH, PATCH).permute(0, 1, 3, 5, 2, 4)
    return patches.reshape(batch, channels * PATCH**2, height // PATCH, width // PATCH)


def to_latents(cells: Tensor) -> Tensor:
    """[B, 4 c, h, w] -> [B, c, 2 h, 2 w], the inverse of `to_cells`."""
    batch, channels, height, width = cells.shape
    patches = cells.reshape(batch, channels // PATCH**2, PATCH, PATCH, height, width).permute(0, 1, 4, 2, 5, 3)
    return patches.reshape(batch, channels // PATCH**2, height * PATCH, width * PATCH)


def _tokens(cells: Tensor) -> Tensor:
    return cells.flatten(2).transpose(1, 2)


def _cells_of(tokens: Tensor, like: Tensor) -> Tensor:
    return tokens.transpose(1, 2).reshape(like.shape)


def _module(pipe: Pipeline) -> ModuleType:
    """The module of a pipeline, with the functions that its drawing calls."""
    return sys.modules[type(pipe).__module__]


def _scheduled(pipe: Pipeline, begin: Any, shift: float) -> Schedule:
    steps = len(begin)
    with np.errstate(invalid="ignore", divide="ignore"):  # a schedule that is none is seen by what comes out
        _module(pipe).retrieve_timesteps(pipe.scheduler, steps, "cpu", sigmas=begin, mu=shift)
    return Schedule(pipe.scheduler.timesteps.clone(), pipe.scheduler.sigmas.clone())


def _shift(pipe: Pipeline, cells: int) -> float:
    """The shift by a picture's size where the scheduler's configuration says how, as in FLUX.1."""
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    known = [pipe.scheduler.config.get(name) for name in names]
    return float(_module(pipe).calculate_shift(cells, *known))


def _stepped_down(steps: int) -> Any:
    return np.linspace(1.0, 1 / steps, steps)


def _chat(pipe: Pipeline, text: str, thinks: bool) -> str:
    messages = [{"role": "user", "content": text}]
    return str(
        pipe.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinks)
    )


# --- FLUX.2-klein ------------------------------------------------------------------------------------------


def _klein_variant(index: Mapping[str, Any], scheduler: Mapping[str, Any]) -> Variant:
    if index.get("is_distilled", False):
        return Variant("FLUX.2-klein", steps=4, guidance=1.0, can_guide=False)
    return Variant("FLUX.2-klein-base", steps=50, guidance=4.0)


def _klein_encode(pipe: Pipeline, texts: list[str], tokens: int, layers: tuple[int, ...]) -> list[Tensor]:
    states, _ = pipe.encode_prompt(texts, max_sequence_length=tokens, text_encoder_out_layers=layers)
    return list(states.unbind())


def _klein_schedule(pipe: Pipeline, steps: int, cells: int) -> Schedule:
    shift = _module(pipe).compute_empirical_mu(image_seq_len=cells, num_steps=steps)
    return _scheduled(pipe, _stepped_down(steps), shift)


def _klein_velocity(pipe: Pipeline, cells: Tensor, times: Tensor, states: Sequence[Tensor]) -> Tensor:
    text = torch.stack(list(states))
    one = torch.arange(1)
    places = torch.cartesian_prod(one, torch.arange(cells.shape[2]), torch.arange(cells.shape[3]), one)
    words = torch.cartesian_prod(one, one, one, torch.arange(text.shape[1]))
    (velocity,) = pipe.transformer(
        hidden_states=_tokens(cells),
        timestep=times.to(cells.dtype) / 1000,
        guidance=None,
        encoder_hidden_states=text,
        txt_ids=words.to(cells.device),
        img_ids=places.to(cells.device),
        return_dict=False,
    )
    return _cells_of(velocity, cells)


def _klein_pixels(pipe: Pipeline, cells: Tensor) -> Tensor:
    statistics = pipe.vae.bn
    mean = statistics.running_mean.view(1, -1, 1, 1).to(cells)
    spread = torch.sqrt(statistics.running_var.view(1, -1, 1, 1) + pipe.vae.config.batch_norm_eps).to(cells)
    (pixels,) = pipe.vae.decode(to_latents(cells * spread + mean), return_dict=False)
    return _tensor(pixels)


def _blend(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """u + w (c - u); 1 is no guidance."""
    return unconditional + guidance * (conditional - unconditional)


# --- Z-Image -----------------------------------------------------------------------------------------------

_TURBO_SHIFT = 3.0  # Z-Image-Turbo and Z-Image have the same classes; their schedulers' shifts are 3 and 6


def _z_variant(index: Mapping[str, Any], scheduler: Mapping[str, Any]) -> Variant:
    if scheduler.get("shift", 1.0) <= _TURBO_SHIFT:
        return Variant("Z-Image-Turbo", steps=8, guidance=0.0)
    return Variant("Z-Image", steps=50, guidance=5.0)


def _z_encode(pipe: Pipeline, texts: list[str], tokens: int, layers: tuple[int, ...]) -> list[Tensor]:
    # Its encode_prompt writes into the list that it is given.
    states, _ = pipe.encode_prompt(list(texts), do_classifier_free_guidance=False, max_sequence_length=tokens)
    return list(states)


def _z_schedule(pipe: Pipeline, steps: int, cells: int) -> Schedule:
    return _scheduled(pipe, _module(pipe).get_default_z_image_sigmas(steps), _shift(pipe, cells))


def _z_velocity(pipe: Pipeline, cells: Tensor, times: Tensor, states: Sequence[Tensor]) -> Tensor:
    latents = to_latents(cells.to(pipe.transformer.dtype)).unsqueeze(2)
    (out,) = pipe.transformer(list(latents.unbind()), (1000 - times) / 1000, list(states), return_dict=False)
    return to_cells(-torch.stack([picture.float() for picture in out]).squeeze(2))


def _z_guide(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """c + w (c - u); 0 is no guidance."""
    return conditional + guidance * (conditional - unconditional)


def _z_pixels(pipe: Pipeline, cells: Tensor) -> Tensor:
    config = pipe.vae.config
    (pixels,) = pipe.vae.decode(to_latents(cells) / config.scaling_factor + config.shift_factor, return_dict=False)
    return _tensor(pixels)


# --- Qwen-Image --------------------------------------------------------------------------------------------


def _qwen_variant(index: Mapping[str, Any], scheduler: Mapping[str, Any]) -> Variant:
    return Variant("Qwen-Image", steps=50, guidance=4.0)


def _qwen_encode(pipe: Pipeline, texts: list[str], tokens: int, layers: tuple[int, ...]) -> list[Tensor]:
    states, mask = pipe.encode_prompt(texts, max_sequence_length=tokens)
    if mask is None:  # nothing is padded
        return list(states.unbind())
    return [row[: int(kept.sum())] for row, kept in zip(states, mask, strict=True)]


def _qwen_schedule(pipe: Pipeline, steps: int, cells: int) -> Schedule:
    return _scheduled(pipe, _stepped_down(steps), _shift(pipe, cells))


def _qwen_velocity(pipe: Pipeline, cells: Tensor, times: Tensor, states: Sequence[Tensor]) -> Tensor:
    text = torch.nn.utils.rnn.pad_sequence(list(states), batch_first=True)
    lengths = torch.tensor([len(row) for row in states])
    mask = (torch.arange(text.shape[1]) < lengths[:, None]).to(cells.device)
    (velocity,) = pipe.transformer(
        hidden_states=_tokens(cells),
        timestep=times.to(cells.dtype) / 1000,
        guidance=None,
        encoder_hidden_states=text,
        encoder_hidden_states_mask=None if bool((lengths == text.shape[1]).all()) else mask,
        img_shapes=[[(1, cells.shape[2], cells.shape[3])]] * len(cells),
        attention_kwargs={},
        return_dict=False,
    )
    return _cells_of(velocity, cells)


def _qwen_guide(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """u + w (c - u), each cell as long as it would be without guidance."""
    blended = _blend(conditional, unconditional, guidance)
    right, now = (torch.linalg.vector_norm(velocity, dim=0, keepdim=True) for velocity in (conditional, blended))
    return _tensor(blended * (right / now))


def _qwen_pixels(pipe: Pipeline, cells: Tensor) -> Tensor:
    latents = to_latents(cells).unsqueeze(2)  # one frame
    config = pipe.vae.config
    mean, inverse = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (config.latents_mean, config.latents_std))
    scaled = latents / (1.0 / inverse.to(latents)) + mean.to(latents)
    (frames,) = pipe.vae.decode(scaled, return_dict=False)
    return _tensor(frames[:, :, 0])


def _tensor(value: Any) -> Tensor:
    assert isinstance(value, Tensor)
    return value


# --- The table ---------------------------------------------------------------------------------------------

KLEIN = Family(
    name="FLUX.2-klein",
    pipeline="Flux2KleinPipeline",
    transformer="Flux2Transformer2DModel",
    autoencoder="AutoencoderKLFlux2",
    thinks=False,
    text_tokens=512,
    pads_text=True,
    words_together=1,
    nothing="",
    no_guidance=1.0,
    guides_in_one_pass=False,
    float32_latents=False,
    takes_layers=True,
    text_width="joint_attention_dim",
    variant=_klein_variant,
    layers=lambda depth: (9, 18, 27),
    channels=lambda transformer: int(transformer["in_channels"]),
    scale=lambda autoencoder: 2 ** (len(autoencoder["block_out_channels"]) - 1),
    template=lambda pipe, text: _chat(pipe, text, thinks=False),
    unseen=lambda pipe: 0,
    encode=_klein_encode,
    schedule=_klein_schedule,
    velocity=_klein_velocity,
    guide=_blend,
    pixels=_klein_pixels,
)

Z_IMAGE = Family(
    name="Z-Image",
    pipeline="ZImagePipeline",
    transformer="ZImageTransformer2DModel",
    autoencoder="AutoencoderKL",
    thinks=True,
    text_tokens=512,
    pads_text=True,
    words_together=32,
    nothing="",
    no_guidance=0.0,
    guides_in_one_pass=True,
    float32_latents=True,
    takes_layers=False,
    text_width="cap_feat_dim",
    variant=_z_variant,
    layers=lambda depth: (depth - 1,),  # hidden_states[-2]
    channels=lambda transformer: int(transformer["in_channels"]) * PATCH**2,
    scale=lambda autoencoder: 2 ** (len(autoencoder["block_out_channels"]) - 1),
    template=lambda pipe, text: _chat(pipe, text, thinks=True),
    unseen=lambda pipe: 0,
    encode=_z_encode,
    schedule=_z_schedule,
    velocity=_z_velocity,
    guide=_z_guide,
    pixels=_z_pixels,
)

QWEN_IMAGE = Family(
    name="Qwen-Image",
    pipeline="QwenImagePipeline",
    transformer="QwenImageTransformer2DModel",
    autoencoder="AutoencoderKLQwenImage",
    thinks=False,
    text_tokens=512,
    pads_text=False,
    words_together=1,
    nothing=" ",
    no_guidance=1.0,
    guides_in_one_pass=False,
    float32_latents=False,
    takes_layers=False,
    text_width="joint_attention_dim",
    variant=_qwen_variant,
    layers=lambda depth: (depth,),
    channels=lambda transformer: int(transformer["in_channels"]),
    scale=lambda autoencoder: 2 ** len(autoencoder["temperal_downsample"]),
    template=lambda pipe, text: str(pipe.prompt_template_encode.format(text)),
    unseen=lambda pipe: int(pipe.prompt_template_encode_start_idx),
    encode=_qwen_encode,
    schedule=_qwen_schedule,
    velocity=_qwen_velocity,
    guide=_qwen_guide,
    pixels=_qwen_pixels,
)

FAMILIES = {family.pipeline: family for family in (KLEIN, Z_IMAGE, QWEN_IMAGE)}


def known() -> str:
    """The families that can be drawn with, for a sentence."""
    return ", ".join(f"{family.name} ({family.pipeline})" for family in FAMILIES.values())
