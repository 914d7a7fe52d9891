"""Measures the lab's flow model through its own pipeline, by the oracle, as measure.py measures the lab model.

Readings are the language model's greedy ones; a draft's noise depends on its number alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from milr.lab.codes import look_up, page_tokens
from milr.lab.curriculum import Item, unseen_items
from milr.lab.detector import check, look_at
from milr.lab.flow_model import draw, drawer_text, tile_latents
from milr.lab.measure import (
    BATCH,
    OBEDIENCE_STREAM,
    Tell,
    cell,
    contradicting_readings,
    guidance_line,
    obedience_line,
    obedience_of,
    profile_lines,
    profile_of,
    share,
)
from milr.lab.model import MAX_TEXT
from milr.lab.train_kl import decode
from milr.lab.world import lay_out, to_image

if TYPE_CHECKING:
    from diffusers import Flux2KleinPipeline

GUIDANCE = 1.0  # every other scale doubles the work of a draft
SCALES = (1.0, 1.5, 2.0, 3.0)
NOISES = 4  # drafts of one text, to see what the noise decides


@torch.no_grad()
def write_readings(pipeline: Flux2KleinPipeline, prompts: Sequence[str]) -> list[str]:
    """The language model's greedy reading of each prompt. Prompts of one length share a batch, so none is padded."""
    writer, tokenizer = pipeline.text_encoder, pipeline.tokenizer
    rows: list[list[int]] = [
        tokenizer(
            tokenizer.apply_chat_template([{"role": "user", "content": drawer_text(prompt, None)}], tokenize=False),
            add_special_tokens=False,
        ).input_ids
        for prompt in prompts
    ]
    readings = [""] * len(rows)
    for length in sorted({len(row) for row in rows}):
        alike = [number for number, row in enumerate(rows) if len(row) == length]
        for start in range(0, len(alike), BATCH):
            some = alike[start : start + BATCH]
            ids = torch.tensor([rows[number] for number in some], device=writer.device)
            written = writer.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=MAX_TEXT,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
            for number, row in zip(some, written[:, length:], strict=True):
                readings[number] = tokenizer.decode(row, skip_special_tokens=True).strip()
    return readings


def draw_readings(
    pipeline: Flux2KleinPipeline,
    items: Sequence[Item],
    readings: Sequence[str],
    first_seed: int = 0,
    guidance: float = GUIDANCE,
) -> list[Image.Image]:
    """One picture of each prompt and reading."""
    texts = [drawer_text(item.prompt, reading) for item, reading in zip(items, readings, strict=True)]
    pictures: list[Image.Image] = []
    for start in range(0, len(texts), BATCH):
        some = texts[start : start + BATCH]
        pictures += draw(pipeline, some, range(first_seed + start, first_seed + start + len(some)), guidance)
    return pictures


@torch.no_grad()
def autoencoder(pipeline: Flux2KleinPipeline, count: int = 300, seed: int = 0) -> dict[str, Any]:
    """Pages from their taught latents, and pages that the encoder saw: PSNR in dB, and the share that the oracle reads
    right; and the share of tiles whose latents the encoder names."""
    rng = random.Random(f"autoencoder-{seed}")
    items = unseen_items(count, 8_000 + seed)
    model = pipeline.vae
    tokens = torch.tensor([page_tokens(lay_out(item.meaning, rng)) for item in items])
    table = tile_latents().to(model.device, model.dtype)
    found: dict[str, Any] = {"tiles_read_back": []}
    for name in ("taught", "encoded"):
        errors, right = [], []
        for start in range(0, count, BATCH):
            some, true = tokens[start : start + BATCH], look_up(tokens[start : start + BATCH].numpy())
            cells = table[some.to(table.device)]
            if name == "encoded":
                pages = torch.from_numpy(true).permute(0, 3, 1, 2).to(table) * 2 - 1
                cells = pipeline._pack_latents(pipeline._patchify_latents(model.encode(pages).latent_dist.mode()))
                near = torch.cdist(cells.float(), table.float()[None].expand(len(cells), -1, -1)).argmin(-1).cpu()
                found["tiles_read_back"] += (near == some).flatten().tolist()
            drawn = decode(model, cells).permute(0, 2, 3, 1).cpu().numpy() / 2 + 0.5
            errors += [float(error) for error in ((drawn.clip(0, 1) - true) ** 2).mean((1, 2, 3))]
            judged = zip(items[start : start + BATCH], look_at([to_image(page) for page in drawn]), strict=True)
            right += [all(c.passed for c in check(item.meaning, page)) for item, page in judged]
        found[name] = {"psnr": round(-10 * math.log10(float(np.mean(errors))), 2), "exact": share(right)}
    found["tiles_read_back"] = share(found["tiles_read_back"])
    return found


def noise_decides(pipeline: Flux2KleinPipeline, items: Sequence[Item], readings: Sequence[str]) -> dict[str, Any]:
    """Several noises on one text: how often all, none, or some of the drafts succeed."""
    right = np.array(
        [
            [
                all(c.passed for c in check(item.meaning, page))
                for item, page in zip(
                    items, look_at(draw_readings(pipeline, items, readings, 7_000_000 + 10_000 * noise)), strict=True
                )
            ]
            for noise in range(NOISES)
        ]
    ).sum(0)
    return {
        "noises": NOISES,
        "always_right": share(right == NOISES),
        "never_right": share(right == 0),
        "sometimes": share((right > 0) & (right < NOISES)),
    }


def measure_flow(
    pipeline: Flux2KleinPipeline,
    prompts: int = 600,
    seed: int = 101,
    tell: Tell = lambda line: None,
    sweep: int = 240,
    pages: int = 300,
) -> dict[str, Any]:
    """The whole card of a flow model."""
    items = unseen_items(prompts, seed)
    report: dict[str, Any] = {"prompts": prompts, "seed": seed, "guidance": GUIDANCE}
    tell("autoencoder")
    report["autoencoder"] = autoencoder(pipeline, pages)
    tell(f"one draft of {prompts} prompts")
    readings = write_readings(pipeline, [item.prompt for item in items])
    report["profile"] = profile_of(items, readings, draw_readings(pipeline, items, readings))
    del report["profile"]["misread"]
    tell("obedience")
    told = items[: min(prompts, 400)]
    contradictions = contradicting_readings(told, 0)
    pictures = draw_readings(pipeline, told, [reading for _, reading in contradictions], OBEDIENCE_STREAM)
    report["obedience"] = obedience_of(told, [meaning for meaning, _ in contradictions], pictures)
    tell("what the noise decides")
    some = min(prompts, 160)
    report["noise"] = noise_decides(pipeline, items[:some], readings[:some])
    others = unseen_items(sweep, seed + 1)
    readings = write_readings(pipeline, [item.prompt for item in others])
    report["guidance_sweep"] = {}
    for scale in SCALES:
        tell(f"guidance {scale}")
        images = draw_readings(pipeline, others, readings, guidance=scale)
        report["guidance_sweep"][str(scale)] = profile_of(others, readings, images)["all"]["success"]
    return report


def to_markdown(report: dict[str, Any]) -> str:
    """The measured part of a flow model's card."""
    pages, noise = report["autoencoder"], report["noise"]
    return "\n".join(
        [
            *profile_lines(report),
            obedience_line(report),
            f"- Of {noise['always_right']['of']} texts drawn with {noise['noises']} noises each, all drafts are right "
            f"in {cell(noise['always_right'])}, none in {cell(noise['never_right'])}, some in "
            f"{cell(noise['sometimes'])}.",
            f"- Autoencoder: pages from their true latents pass every check in {cell(pages['taught']['exact'])} of "
            f"{pages['taught']['exact']['of']} (PSNR {pages['taught']['psnr']} dB), encoded and decoded in "
            f"{cell(pages['encoded']['exact'])} (PSNR {pages['encoded']['psnr']} dB); the encoder names "
            f"{pages['tiles_read_back']['share']:.4f} of the tiles.",
            guidance_line(report),
            "",
        ]
    )
