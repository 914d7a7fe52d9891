"""Stage two of training the lab's flow model: the transformer, by rectified flow on the latents of pages.

Between noise n and a page x the point at time t is (1 - t) x + t n, and what is learnt is its velocity n - x, as the
pipeline's scheduler asks for it. Most times are early (much noise), where only the text says what is drawn.
Frozen states differ in scale from number to number. They are evened out for training, and the factors end up in the
weights of the transformer's text embedder, so the pipeline needs to know nothing of it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from milr.lab.codes import BLANK, CODES, FIRST_FRAME, FIRST_SPRITE, FRAME_TILES, GRID, TOKENS
from milr.lab.flow_data import Data, tell
from milr.lab.flow_model import STEPS, FlowSize, diffusers, make_transformer, states_of, tile_latents
from milr.lab.optimizers import MovingAverage, MuonAndAdamW, autocast, resume, save_state, schedule
from milr.lab.train_vq import Report
from milr.lab.world import LOOKS, NOUNS

if TYPE_CHECKING:
    from diffusers import Flux2Transformer2DModel

MUON_RATE, ADAM_RATE = 0.02, 3e-3
AVERAGE = 0.999
EARLY = 0.5  # centre of the logit of t, whose spread is 1
REPORT_EVERY, SAVE_EVERY, LOOK_EVERY, SNAPSHOT_EVERY = 10, 50, 500, 1000  # steps
LOOKED_FOR = ("wrong tiles", "wrong nouns", "wrong looks", "wrong blank", "wrong pages")
STATE = "flow.pt"


@dataclass(frozen=True)
class FlowPlan:
    """How long, how large and how fast to train the transformer."""

    steps: int
    seed: int = 0
    batch: int = 32
    size: FlowSize = field(default_factory=FlowSize)
    muon_rate: float = MUON_RATE
    adam_rate: float = ADAM_RATE
    early: float = EARLY
    hold: float = 0.4  # share of the steps before the learning rate falls


def normal_cells(autoencoder: Any) -> Tensor:
    """The cells of all tiles as the transformer sees them, [1217, 32]."""
    bn = autoencoder.bn
    spread = (bn.running_var + autoencoder.config.batch_norm_eps).sqrt()
    cells: Tensor = (tile_latents().to(spread.device) - bn.running_mean) / spread
    return cells


def names() -> tuple[Tensor, Tensor]:
    """What the tiles are, [1217] each: noun (then frame, blank) and look (of a frame its colour; then blank)."""
    codes = torch.arange(CODES)
    sprite, frame = (codes - FIRST_SPRITE).clamp(min=0) // 4, (codes - FIRST_FRAME).clamp(min=0) // FRAME_TILES
    is_sprite, is_blank = codes >= FIRST_SPRITE, codes == BLANK
    nouns = torch.where(is_sprite, sprite // LOOKS, torch.where(is_blank, len(NOUNS) + 1, len(NOUNS)))
    looks = torch.where(is_sprite, sprite % LOOKS, torch.where(is_blank, LOOKS, 1 + frame))
    return nouns, looks


def state_scales(data: Data, count: int = 64) -> Tensor:
    """Factors [768] that even out the states of texts of the training data."""
    rng = random.Random(f"flow-scales-{data.seed}")
    states = states_of(data.writer, data.tokenizer, [tell(rng).text for _ in range(count)])
    return 1 / states.flatten(0, 1).square().mean(0).sqrt().clamp(min=1e-3)


def places(batch: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Position ids of the picture's cells and of the text, as the pipeline makes them."""
    pipeline = diffusers().Flux2KleinPipeline
    image: Tensor = pipeline._prepare_latent_ids(torch.empty(1, 1, GRID, GRID))
    text: Tensor = pipeline._prepare_text_ids(torch.empty(1, length, 1))
    return image.to(device), text.to(device)


def noise_of(seed: int, step: int, batch: int, width: int, early: float) -> tuple[Tensor, Tensor]:
    """Times [B] and noise [B, 64, 32] of a step."""
    generator = torch.Generator().manual_seed((seed << 32) + step)
    times = (early + torch.randn(batch, generator=generator)).sigmoid()
    return times, torch.randn(batch, TOKENS, width, generator=generator)


@torch.no_grad()
def endpoints(transformer: Flux2Transformer2DModel, states: Tensor, noise: Tensor, steps: int = STEPS) -> Tensor:
    """Where the flow leads noise [B, 64, 32] by Euler's method: what the pipeline draws without guidance."""
    image_ids, text_ids = places(len(noise), states.shape[1], noise.device)
    x = noise
    for step in range(steps):
        time_ = torch.full((len(x),), 1 - step / steps, device=x.device)
        x = x - transformer(x, states, time_, image_ids, text_ids, return_dict=False)[0].float() / steps
    return x


@torch.no_grad()
def look(transformer: Flux2Transformer2DModel, states: Tensor, tokens: Tensor, cells: Tensor) -> dict[str, float]:
    """Shares of what was drawn wrong, by the nearest tile: of the things' tiles, their nouns and looks; of blank paper;
    of whole pages."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(*tokens.shape, cells.shape[1], generator=generator).to(cells.device)
    drawn = torch.cdist(endpoints(transformer, states, noise), cells[None].expand(len(tokens), -1, -1)).argmin(-1)
    sprite, blank = tokens >= FIRST_SPRITE, tokens == BLANK
    nouns, looks = (one.to(tokens.device) for one in names())
    differs = drawn != tokens
    shares = (
        differs[sprite], (nouns[drawn] != nouns[tokens])[sprite], (looks[drawn] != looks[tokens])[sprite],
        differs[blank], differs.any(1),
    )  # fmt: skip
    return {name: float(share.float().mean()) for name, share in zip(LOOKED_FOR, shares, strict=True)}


def train_dit(
    autoencoder: Any,
    data: Data,
    examples: tuple[Tensor, Tensor],
    folder: Path,
    plan: FlowPlan,
    device: torch.device,
    report: Report,
    snapshot: Callable[[str, Flux2Transformer2DModel], None] = lambda name, transformer: None,
) -> Flux2Transformer2DModel:
    """Train, resuming from `folder`/flow.pt when it is there; returns the moving average, ready for the pipeline.

    `examples`: states and tokens of pages that are looked at on the way, and not trained on.
    """
    transformer = make_transformer(plan.size, plan.seed)
    scales = state_scales(data)
    for part in (transformer, data.writer):
        nn.Module.to(part, device)
    transformer.train()
    cells = normal_cells(autoencoder).to(device)
    matrices = [p for name, p in transformer.named_parameters() if p.dim() == 2 and "transformer_blocks" in name]
    chosen = {id(p) for p in matrices}
    others = [p for p in transformer.parameters() if id(p) not in chosen]
    optimizer = MuonAndAdamW(matrices, others, plan.muon_rate, plan.adam_rate)
    average = MovingAverage(transformer.parameters(), AVERAGE)
    start, seconds_before = 0, 0.0
    if state := resume(folder / STATE, transformer, optimizer, average):
        scales = state["scales"]
        start, seconds_before = int(state["step"]), float(state["seconds"])
    scales = scales.to(device)
    seen_states, seen_tokens = (one.to(device) for one in examples)
    began = time.monotonic()
    seen: dict[str, float] = state["seen"] if state else dict.fromkeys(LOOKED_FOR, 1.0)
    for step in range(start, plan.steps):
        states, tokens = (one.to(device) for one in data.batch(step))
        times, noise = (one.to(device) for one in noise_of(plan.seed, step, len(tokens), cells.shape[1], plan.early))
        pages = cells[tokens]
        mixed = torch.lerp(pages, noise, times[:, None, None])
        image_ids, text_ids = places(len(tokens), states.shape[1], device)
        with autocast(device):
            velocity = transformer(
                mixed, states.float() * scales, times, image_ids, text_ids, return_dict=False
            )[0].float()  # fmt: skip
        squares = (velocity - (noise - pages)).square().mean()
        squares.backward()
        optimizer.step(schedule(step, plan.steps, hold=plan.hold))
        average.update(step)
        if (step + 1) % LOOK_EVERY == 0 or step == plan.steps - 1:
            average.swap()
            seen = look(transformer, seen_states * scales, seen_tokens, cells)
            average.swap()
        if step % REPORT_EVERY == 0 or step == plan.steps - 1:
            elapsed = time.monotonic() - began
            rate = {"pages a second": (step + 1 - start) * plan.batch / elapsed}
            report(step, {"velocity": squares.item(), **rate, **seen})
        if (step + 1) % SAVE_EVERY == 0 or step == plan.steps - 1:
            save_state(
                folder / STATE,
                {
                    "model": transformer.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "average": average.average,
                    "scales": scales,
                    "seen": seen,
                    "step": step + 1,
                    "seconds": seconds_before + time.monotonic() - began,
                },
            )
        if (step + 1) % SNAPSHOT_EVERY == 0 and step + 1 < plan.steps:
            average.swap()
            _with_scales(transformer, scales)
            snapshot(f"step-{step + 1:06d}", transformer)
            _with_scales(transformer, 1 / scales)
            transformer.train()
            average.swap()
    average.swap()
    _with_scales(transformer, scales)
    transformer.eval().requires_grad_(False)
    return transformer


@torch.no_grad()
def _with_scales(transformer: Flux2Transformer2DModel, scales: Tensor) -> None:
    """Put the factors of the text's states into the weights that read them."""
    transformer.context_embedder.weight.mul_(scales)
