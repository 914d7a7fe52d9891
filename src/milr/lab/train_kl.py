"""Stage one of training the lab's flow model: the autoencoder (AutoencoderKLFlux2) on taught latents.

What every tile's numbers are is fixed (flow_model.tile_latents), so the two halves train apart: the decoder learns
numbers with noise on them -> pixels, the encoder learns pixels -> those numbers, and how sure it is of each. So the
latents of any page are known without the encoder, and training the transformer needs none.
The class scales latents by the statistics of its batch norm: they are set once, from what pages hold.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from milr.lab.codes import page_tokens
from milr.lab.curriculum import DrawingErrors, training_sample
from milr.lab.flow_model import cells_of, grid_of, make_autoencoder, tile_latents
from milr.lab.optimizers import MuonAndAdamW, autocast, load_state, save_state, schedule
from milr.lab.train_vq import Report, batch, picture_loss

if TYPE_CHECKING:
    from diffusers import AutoencoderKLFlux2

PAGES_PER_STEP = 5
NOISE = 0.6  # at most, in standard deviations of the latents: what the transformer draws is never exact
SURE = -6.0  # least logarithm of the encoder's variance
STATISTICS_PAGES = 4000
REPORT_EVERY, SAVE_EVERY = 20, 50  # steps
STATE = "kl.pt"


def statistics(seed: int = 0, pages: int = 0) -> tuple[Tensor, Tensor]:
    """Mean and variance of each of a cell's 32 numbers over pages of the training data."""
    rng = random.Random(f"flow-statistics-{seed}")
    tokens = [page_tokens(training_sample(rng, DrawingErrors()).scene) for _ in range(pages or STATISTICS_PAGES)]
    cells = tile_latents()[torch.tensor(tokens).flatten()]
    return cells.mean(0), cells.var(0)


def decode(model: AutoencoderKLFlux2, cells: Tensor) -> Tensor:
    """Cells [B, 64, 32] as the encoder says them -> pixels [B, 3, 128, 128] in -1..1, with gradients."""
    pixels: Tensor = model.decode(grid_of(cells), return_dict=False)[0].float()
    return pixels


def encoder_loss(model: AutoencoderKLFlux2, pages: Tensor, tokens: Tensor, table: Tensor, variance: Tensor) -> Tensor:
    """How far the encoder's means are from the taught cells, how hard it is to tell from them which tile is meant, and
    how badly its variances say how far they are; all in units of the latents' own spread.

    Naming tiles is learnt in half the steps that distances alone need. The variances get no say in how much a mean
    weighs: a likelihood of both would let the encoder give up what is hard.
    """
    mean, log_variance = model._encode(pages).float().chunk(2, dim=1)
    spread = variance.sqrt()
    seen, tiles = cells_of(mean) / spread, table / spread
    error = (seen - tiles[tokens]).square()
    sure = SURE + nn.functional.softplus(cells_of(log_variance) - variance.log() - SURE)
    named = nn.functional.cross_entropy(-torch.cdist(seen.flatten(0, 1), tiles).square() / 8, tokens.flatten())
    return error.mean() + 0.5 * named + 0.1 * (error.detach() * (-sure).exp() + sure - SURE).mean()


def train_kl(folder: Path, steps: int, seed: int, device: torch.device, report: Report) -> AutoencoderKLFlux2:
    """Train, resuming from `folder`/kl.pt when it is there; returns the finished model in eval mode."""
    model = make_autoencoder(seed)
    mean, variance = statistics(seed)
    model.bn.running_mean.copy_(mean)
    model.bn.running_var.copy_(variance)
    nn.Module.to(model, device)
    model.train()
    model.bn.eval()
    kernels = [p for p in model.parameters() if p.dim() == 4 and min(p.shape[:2]) >= 16]
    chosen = {id(p) for p in kernels}
    others = [p for p in model.parameters() if id(p) not in chosen]
    optimizer = MuonAndAdamW(kernels, others, muon_rate=0.01, adam_rate=2e-3)
    start, seconds_before = 0, 0.0
    if state := load_state(folder / STATE):
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start, seconds_before = int(state["step"]), float(state["seconds"])
    table, spread, variance = tile_latents().to(device), variance.sqrt().to(device), variance.to(device)
    began = time.monotonic()
    for step in range(start, steps):
        tokens, pages = (t.to(device) for t in batch(random.Random(f"kl-{seed}-{step}"), PAGES_PER_STEP))
        cells = table[tokens]
        noise = _noise(cells.shape, seed, step).to(device) * spread
        with autocast(device):
            drawn = decode(model, cells + noise)
            picture, seen = picture_loss(drawn, pages), encoder_loss(model, pages, tokens, table, variance)
        (picture + seen).backward()
        optimizer.step(schedule(step, steps))
        if step % REPORT_EVERY == 0 or step == steps - 1:
            error = ((drawn.detach() - pages) / 2).square().mean()
            psnr = -10 * torch.log10(error).item()
            report(step, {"decoder": picture.item(), "encoder": seen.item(), "psnr": psnr})
        if (step + 1) % SAVE_EVERY == 0 or step == steps - 1:
            save_state(
                folder / STATE,
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                    "seconds": seconds_before + time.monotonic() - began,
                },
            )
    model.eval().requires_grad_(False)
    return model


def _noise(shape: torch.Size, seed: int, step: int) -> Tensor:
    """Noise of another strength for every page."""
    generator = torch.Generator().manual_seed((seed << 32) + step)
    strength = NOISE * torch.rand(shape[0], 1, 1, generator=generator)
    return strength * torch.randn(shape, generator=generator)
