"""Stage one of training the lab model: the image tokenizer (JanusVQVAE) on the taught codebook.

The code of every tile is known (codes.py), so the two halves train apart: the decoder learns codes -> pixels, the
encoder learns pixels -> codes, and the code vectors themselves move with the decoder.
Two facts about transformers' class bind the recipe: its decoder sees L2-normalised code vectors while its encoder
compares raw distances, so the vectors must have unit length; and every channel count must be a multiple of 32.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import JanusVQVAE, JanusVQVAEConfig

from milr.lab.codes import CODE_WIDTH, CODES, GRID, TOKENS, look_up, page_tokens, starting_codebook
from milr.lab.optimizers import MuonAndAdamW, autocast, load_state, save_state, schedule
from milr.lab.world import CELLS, COLOUR_NAMES, SPRITES, Scene, Thing, sprite_name

PAGES_PER_STEP = 5  # few and dense: small batches with Muon reached 32 dB where AdamW with 16 stood at 18
ENCODER_EVERY = 4  # the encoder is only needed to look at pictures, and learns quickly
ENCODER_TEMPERATURE = 0.03  # sharpness of the cosine softmax over codes

Report = Callable[[int, dict[str, float]], None]


def vq_config(width: int) -> JanusVQVAEConfig:
    """Sixteen-fold down-sampling, 8-wide codes; `width` is the hidden size of the language model."""
    return JanusVQVAEConfig(
        embed_dim=CODE_WIDTH,
        num_embeddings=CODES,
        latent_channels=64,
        base_channels=32,
        channel_multiplier=[1, 1, 2, 2, 2],
        num_res_blocks=1,
        num_patches=GRID,
        projection_dim=width,
        num_hidden_layers=2,
        image_token_embed_dim=width,
    )


def random_scene(rng: random.Random) -> Scene:
    """A page for the tokenizer to learn from: mostly full, any sprite, often framed.

    Some are nearly empty: a decoder that never saw those draws ghosts on them.
    """
    count = rng.choice([1, 2, 4, 7, 9, 9])
    things = []
    for cell in rng.sample(range(CELLS * CELLS), count):
        noun, colour = sprite_name(rng.randrange(SPRITES))
        things.append(Thing(noun, colour, cell))
    return Scene(tuple(things), rng.choice([None, *COLOUR_NAMES]))


def batch(rng: random.Random, size: int) -> tuple[Tensor, Tensor]:
    """Codes [B, 64] and the pages they spell, [B, 3, 128, 128] in -1..1."""
    tokens = torch.tensor([page_tokens(random_scene(rng)) for _ in range(size)])
    pages = torch.from_numpy(look_up(tokens.numpy())).permute(0, 3, 1, 2)
    return tokens, pages * 2 - 1


def colour_difference(pictures: Tensor) -> Tensor:
    """R-G and B-(R+G)/2 of 4x4 blocks: without a loss on these, colours collapse to one axis."""
    red, green, blue = pictures.unbind(1)
    return F.avg_pool2d(torch.stack([red - green, blue - (red + green) / 2], 1), 4)


def picture_loss(drawn: Tensor, true: Tensor) -> Tensor:
    error = drawn - true
    colour = colour_difference(drawn) - colour_difference(true)
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return (
        error.abs().mean() + 2 * error.square().mean() + 0.3 * edges + colour.abs().mean() + 2 * colour.square().mean()
    )


def decode_codes(model: JanusVQVAE, tokens: Tensor) -> Tensor:
    """Codes [B, 64] -> pixels [B, 3, 128, 128], with gradients (the class's own decode has none)."""
    vectors = F.normalize(model.quantize.embedding.weight, dim=-1)[tokens]
    grid = vectors.view(-1, GRID, GRID, CODE_WIDTH).permute(0, 3, 1, 2)
    pixels: Tensor = model.decoder(model.post_quant_conv(grid)).float()
    return pixels


def encoder_loss(model: JanusVQVAE, pages: Tensor, tokens: Tensor) -> Tensor:
    seen = model.quant_conv(model.encoder(pages)).float().permute(0, 2, 3, 1).reshape(-1, CODE_WIDTH)
    codes = F.normalize(model.quantize.embedding.weight.detach().float(), dim=-1)
    return F.cross_entropy(F.normalize(seen, dim=-1) @ codes.T / ENCODER_TEMPERATURE, tokens.flatten())


def train_vq(folder: Path, steps: int, width: int, seed: int, device: torch.device, report: Report) -> JanusVQVAE:
    """Train, resuming from `folder`/vq.pt when it is there; returns the finished model in eval mode."""
    torch.manual_seed(seed)
    model = JanusVQVAE(vq_config(width))
    model.quantize.embedding.weight.data.copy_(starting_codebook())
    nn.Module.to(model, device)
    model.train()
    codebook = nn.Parameter(model.quantize.embedding.weight.detach())  # shares the memory of the model's own
    model.quantize.embedding.weight = codebook
    parameters = [p for p in model.parameters() if p is not codebook]
    kernels = [p for p in parameters if p.dim() == 4 and min(p.shape[:2]) >= 32]
    chosen = {id(p) for p in kernels}
    others = [p for p in parameters if id(p) not in chosen]
    optimizer = MuonAndAdamW(kernels, [*others, codebook], muon_rate=0.01, adam_rate=2e-3)
    start = 0
    if state := load_state(folder / "vq.pt"):
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = int(state["step"])
    began, seconds_before = time.monotonic(), float(state["seconds"]) if state else 0.0
    for step in range(start, steps):
        tokens, pages = (t.to(device) for t in batch(random.Random(f"vq-{seed}-{step}"), PAGES_PER_STEP))
        with autocast(device):
            drawn = decode_codes(model, tokens)
            loss = picture_loss(drawn, pages)
            total = loss
            if step % ENCODER_EVERY == 0:
                total = total + 0.1 * encoder_loss(model, pages, tokens)
        total.backward()
        optimizer.step(schedule(step, steps))
        with torch.no_grad():
            codebook.copy_(F.normalize(codebook, dim=-1))
        if step % 20 == 0 or step == steps - 1:
            error = ((drawn.detach() - pages) / 2).square().mean()
            report(step, {"loss": loss.item(), "psnr": -10 * torch.log10(error).item()})
        if (step + 1) % 100 == 0 or step == steps - 1:
            seconds = seconds_before + time.monotonic() - began
            save_state(
                folder / "vq.pt",
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                    "seconds": seconds,
                },
            )
    model.eval()
    return model


@torch.no_grad()
def measure(model: JanusVQVAE, pages_count: int = 64, seed: int = 5) -> dict[str, float]:
    """PSNR of decoded pages in dB, and the share of codes the encoder reads back, on random pages."""
    rng = random.Random(f"vq-measure-{seed}")
    tokens, pages = batch(rng, pages_count)
    drawn = torch.cat([decode_codes(model, part) for part in tokens.split(16)]).clamp(-1, 1)
    read = torch.cat([model.encode(part).image_tokens.view(-1, TOKENS) for part in pages.split(16)])
    error = ((drawn - pages) / 2).square().mean()
    return {"psnr": -10 * torch.log10(error).item(), "codes_read_back": (read == tokens).float().mean().item()}
