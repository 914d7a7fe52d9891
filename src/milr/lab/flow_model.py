"""The lab's flow model: a true Flux2KleinPipeline whose text encoder is the language model of the lab model.

A picture is 8 x 8 cells of 32 numbers, one cell a tile of codes.py. As the codes of the lab model were fixed before
any training, so are the numbers of every tile here (`tile_latents`): the autoencoder learns them, the transformer draws
them. What the picture attends to are the states of three layers of the language model over the very tokens with which
it writes: prompt and reasoning stand on two lines of one message, and the tokenizer's template puts them in their
places.
This file knows diffusers' classes; it knows no training (train_flow.py).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import JanusForConditionalGeneration, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from milr.backbones.checkpoint import find
from milr.drafts import UserError
from milr.lab.codes import CODES, FIRST_FRAME, FIRST_SPRITE, FRAME_TILES, GRID
from milr.lab.model import ASSISTANT, BOI, BOS, EOS, USER
from milr.lab.world import COLOUR_NAMES, LOOKS, NOUNS, PAGE

if TYPE_CHECKING:
    from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel

CELL_WIDTH = 32  # numbers of a cell
CHANNELS = CELL_WIDTH // 4  # of the autoencoder's own grid, 16 x 16: the pipeline packs 2 x 2 of its places to a cell
TEXT_LAYERS = (2, 4, 6)  # whose states the picture attends to; the last is behind the final norm
TEXT_WIDTH = 256 * len(TEXT_LAYERS)
MAX_TEXT = 96  # tokens of prompt and reasoning; the longest of the world has fewer
STEPS = 8
SETTINGS = "milr.json"  # beside model_index.json: how this pipeline is to be called

# One message, "prompt\nreading", rendered as the lab model reads and writes it; without a second line, a prompt alone.
TEMPLATE = (
    "{% set lines = messages[0]['content'].split('\\n') %}"
    + BOS + USER + " {{ lines[0] }}" + ASSISTANT
    + "{% if lines|length > 1 %} {{ lines[1:]|join(' ') }}" + EOS + BOI + "{% endif %}"
)  # fmt: skip


@dataclass(frozen=True)
class FlowSize:
    """The transformer. A head has 64 numbers, so `heads` sets the width."""

    heads: int = 3
    double_blocks: int = 2
    single_blocks: int = 4
    mlp_ratio: float = 3.0


def drawer_text(prompt: str, reading: str | None) -> str:
    """What the pipeline is given as its prompt."""
    first = " ".join(prompt.split())
    return first if reading is None else f"{first}\n{' '.join(reading.split())}"


# --- The numbers of a tile ------------------------------------------------------------------------------------


def _signs(bits: int) -> Tensor:
    """The corners of a cube, [2^bits, bits]."""
    return torch.tensor([[1.0 if n >> b & 1 else -1.0 for b in range(bits)] for n in range(2**bits)])


def _far_apart(points: int) -> Tensor:
    """Up to twice as many points as directions, of 1 and -1, each orthogonal to all others or the negative of one."""
    rows = _hadamard(points // 2 if points % 2 == 0 else points - 1)
    return torch.cat([rows, -rows])[:points]


def _hadamard(size: int) -> Tensor:
    rows = torch.ones(1, 1)
    while len(rows) < size:
        rows = torch.cat([torch.cat([rows, rows], 1), torch.cat([rows, -rows], 1)])
    return rows


def tile_latents() -> Tensor:
    """What the encoder is taught to say of every tile, [1217, 32]: noun, look and part have numbers of their own, 1 or
    -1 where a tile has one and 0 where not. Blank paper is 0.

    So a noun is one thing to learn, whatever its colour, and all pairs of nouns are about equally far apart.
    """
    nouns, looks, ring = _far_apart(len(NOUNS)), _far_apart(LOOKS), _signs(3)
    across, down = _signs(2).T
    quadrants = torch.stack([across, down, across * down, across, down], 1)  # learnt last when they were but two
    noun_at, look_at, quadrant_at, ring_at = slice(0, 16), slice(16, 24), slice(24, 29), slice(29, 32)
    table = torch.zeros(CODES, CELL_WIDTH)
    sprites = table[FIRST_SPRITE:].view(len(NOUNS), LOOKS, 4, CELL_WIDTH)
    sprites[..., noun_at] = nouns[:, None, None]
    sprites[..., look_at] = looks[None, :, None]
    sprites[..., quadrant_at] = quadrants
    frames = table[FIRST_FRAME:FIRST_SPRITE].view(len(COLOUR_NAMES), FRAME_TILES, CELL_WIDTH)
    frames[..., look_at] = looks[1:, None]
    frames[..., ring_at] = ring
    return table


def grid_of(cells: Tensor) -> Tensor:
    """Cells [B, 64, 32] as the autoencoder has them, [B, 8, 16, 16]."""
    return (
        cells.view(-1, GRID, GRID, CHANNELS, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(-1, CHANNELS, 2 * GRID, 2 * GRID)
    )


def cells_of(grid: Tensor) -> Tensor:
    """The way back: [B, 8, 16, 16] to [B, 64, 32], in the order in which the pipeline packs."""
    parts = grid.reshape(-1, CHANNELS, GRID, 2, GRID, 2).permute(0, 2, 4, 1, 3, 5)
    return parts.reshape(-1, GRID * GRID, CELL_WIDTH)


# --- The parts ------------------------------------------------------------------------------------------------


def diffusers() -> Any:
    """The package. Raises UserError where it is not installed."""
    try:
        import diffusers as package
    except ImportError as error:
        raise UserError(
            f"A flow model needs the package '{error.name}'; pip install 'milr[flow]' brings it."
        ) from error
    return package


def make_autoencoder(seed: int = 0) -> AutoencoderKLFlux2:
    """An untrained autoencoder, 128 x 128 pixels to 16 x 16 places of 8 numbers."""
    torch.manual_seed(seed)
    made: AutoencoderKLFlux2 = diffusers().AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 32, 64),
        decoder_block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=PAGE,
        mid_block_add_attention=False,
    )
    return made


def make_transformer(size: FlowSize = FlowSize(), seed: int = 0) -> Flux2Transformer2DModel:
    """An untrained transformer."""
    torch.manual_seed(seed)
    made: Flux2Transformer2DModel = diffusers().Flux2Transformer2DModel(
        in_channels=CELL_WIDTH,
        num_layers=size.double_blocks,
        num_single_layers=size.single_blocks,
        attention_head_dim=64,
        num_attention_heads=size.heads,
        joint_attention_dim=TEXT_WIDTH,
        timestep_guidance_channels=64,
        mlp_ratio=size.mlp_ratio,
        axes_dims_rope=(16, 16, 16, 16),
        guidance_embeds=False,
    )
    return made


def language_model(model: str = "lab") -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The language model of a lab checkpoint ('lab' or a folder), bit for bit, and its tokenizer as a drawer's."""
    folder = find(model, "cpu", "float32").directory
    whole = JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    text: Any = whole.config.text_config
    config = LlamaConfig(**{**text.to_dict(), "tie_word_embeddings": True, "architectures": ["LlamaForCausalLM"]})
    writer = LlamaForCausalLM(config)
    writer.model.load_state_dict(whole.model.language_model.state_dict())
    writer.lm_head.weight = writer.model.embed_tokens.weight
    if not torch.equal(writer.lm_head.weight, whole.lm_head.weight):
        raise UserError(f"The head of '{model}' is not its embeddings; a lab checkpoint is needed.")
    writer.eval().requires_grad_(False)
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.padding_side = "right"
    return writer, tokenizer


def make_pipeline(
    autoencoder: AutoencoderKLFlux2,
    transformer: Flux2Transformer2DModel,
    writer: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
) -> Flux2KleinPipeline:
    """The parts as one pipeline, which shows no progress bar of its own."""
    package = diffusers()
    scheduler = package.FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False)
    made: Flux2KleinPipeline = package.Flux2KleinPipeline(
        scheduler=scheduler, vae=autoencoder, text_encoder=writer, tokenizer=tokenizer, transformer=transformer
    )
    made.set_progress_bar_config(disable=True)
    return made


def states_of(
    writer: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], length: int = MAX_TEXT
) -> Tensor:
    """What the picture attends to, [B, length, 768], by the pipeline's own way of reading; the padding is seen too."""
    states: Tensor = diffusers().Flux2KleinPipeline._get_qwen3_prompt_embeds(
        writer, tokenizer, list(texts), max_sequence_length=length, hidden_states_layers=list(TEXT_LAYERS)
    )
    return states


def token_counts(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[int]:
    """How many tokens each text has in the drawer's template."""
    return [
        len(tokenizer(rendered, add_special_tokens=True).input_ids)
        for rendered in (
            tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False) for text in texts
        )
    ]


@torch.no_grad()
def draw(
    pipeline: Flux2KleinPipeline, texts: Sequence[str], seeds: Sequence[int], guidance: float = 1.0, steps: int = STEPS
) -> list[Any]:
    """One picture (PIL) for each text; its noise depends on its seed alone."""
    noise = torch.stack(
        [torch.randn(CELL_WIDTH, GRID, GRID, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )
    pictures: list[Any] = pipeline(
        prompt=list(texts),
        height=PAGE,
        width=PAGE,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=noise.to(pipeline.transformer.dtype),
        max_sequence_length=MAX_TEXT,
        text_encoder_out_layers=TEXT_LAYERS,
    ).images
    return pictures


def save_pipeline(pipeline: Flux2KleinPipeline, folder: Path, settings: dict[str, Any]) -> None:
    """Write a diffusers folder (safetensors, bfloat16 as the lab model) with its settings; whole or not at all."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    parts = [pipeline.vae, pipeline.text_encoder, pipeline.transformer]
    kinds = [part.dtype for part in parts]
    for part in parts:
        torch.nn.Module.to(part, torch.bfloat16)
    pipeline.save_pretrained(partial, safe_serialization=True)
    for part, kind in zip(parts, kinds, strict=True):
        torch.nn.Module.to(part, kind)
    (partial / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)
