"""Stage two of training the lab model: the eye (vision tower and aligner) learns to tell the tiles apart.

As SigLIP is trained before Janus sees through it, this eye is taught before the language model uses it: a patch that
shows a tile becomes the sum of its noun, its look and its quadrant. From there on the eye stays as it is. Taught by
answers and captions alone, with the language model, patches came in as one large constant with little beside it.
"""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import JanusForConditionalGeneration

from milr.lab.codes import starting_head
from milr.lab.optimizers import MuonAndAdamW, autocast, schedule
from milr.lab.train_vq import Report, batch, decode_codes

EYE_PAGES = 8  # a step
DECODED = 0.5  # share of the pages that come from the model's own hand, with its blur
NOISE = 0.05
FEATURE_SCALE = 0.5  # of the numbers that the language model gets for a patch


def tile_features(width: int) -> Tensor:
    """What the language model gets for each tile, [1217, width]: sums of noun, look and quadrant directions."""
    return starting_head(width, FEATURE_SCALE / 3**0.5)


def see(model: JanusForConditionalGeneration, pages: Tensor) -> Tensor:
    """Pages [B, 3, 128, 128] in -1..1 -> features [B, 64, D], as the language model gets them."""
    features: Tensor = model.model.aligner(model.model.vision_model(pages).last_hidden_state)
    return features


def with_noise(pages: Tensor, seed: int) -> Tensor:
    """The pages with a little grain, more on some than on others."""
    noise = torch.Generator().manual_seed(seed)
    amount = NOISE * torch.rand(len(pages), 1, 1, 1, generator=noise)
    return pages + (amount * torch.randn(pages.shape, generator=noise)).to(pages.device)


def train_eye(
    model: JanusForConditionalGeneration, steps: int, seed: int, device: torch.device, report: Report
) -> None:
    """Train vision tower and aligner in place; about a minute, so it starts again when killed."""
    inner = model.model
    torch.nn.Module.to(model, device)
    model.requires_grad_(False)
    model.train()
    parts = torch.nn.ModuleList([inner.vision_model, inner.aligner]).requires_grad_(True)
    matrices = [p for p in parts.parameters() if p.dim() == 2 and min(p.shape) > 64]
    chosen = {id(p) for p in matrices}
    optimizer = MuonAndAdamW(matrices, [p for p in parts.parameters() if id(p) not in chosen], 0.01, 2e-3)
    features = tile_features(inner.language_model.config.hidden_size).to(device)
    for step in range(steps):
        tokens, pages = (t.to(device) for t in batch(random.Random(f"eye-{seed}-{step}"), EYE_PAGES))
        own = round(DECODED * EYE_PAGES)
        with torch.no_grad(), autocast(device):
            pages[:own] = decode_codes(inner.vqmodel, tokens[:own])
        seen = see(model, with_noise(pages, step))
        loss = F.mse_loss(seen, features[tokens]) / FEATURE_SCALE**2
        loss.backward()
        optimizer.step(schedule(step, steps))
        if step % 20 == 0 or step == steps - 1:
            named = (seen.detach().flatten(0, 1) @ F.normalize(features, dim=1).T).argmax(1)
            report(step, {"loss": loss.item(), "wrong": 1 - (named == tokens.flatten()).float().mean().item()})
    model.requires_grad_(False)
