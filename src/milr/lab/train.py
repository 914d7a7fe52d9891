"""`milr lab train`: the shipped checkpoint from scratch, resumable at any moment, with a training card.

Stages: tokenizer, image tokenizer (train_vq.py), eye (train_eye.py), language model (train_lm.py), assembly, card.
A folder holds

    checkpoint/       the Hugging Face directory, when all is done
    card.md, card.json, curves.png, samples/step-*.png
    state/            what resuming needs; may be deleted afterwards
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import JanusForConditionalGeneration, PreTrainedTokenizerFast

from milr.drafts import UserError
from milr.hub import device_of
from milr.lab.curriculum import CONTRADICTED, LORE_TOLD_WRONG, MIX, unseen_items
from milr.lab.model import WIDTH, make_model, make_tokenizer, save_checkpoint
from milr.lab.optimizers import load_state
from milr.lab.train_eye import EYE_PAGES, train_eye
from milr.lab.train_lm import (
    ASKING,
    CALIBRATED,
    DRAWING,
    QUESTIONS_PER_PAGE,
    RECALIBRATED,
    LmPlan,
    train_lm,
)
from milr.lab.train_vq import PAGES_PER_STEP, train_vq
from milr.lab.train_vq import measure as measure_vq

Tell = Callable[[str], None]
STATES = {"image tokenizer": "vq.pt", "language model": "lm.pt", "drawing": "draw.pt", "asking": "ask.pt"}


@dataclass(frozen=True)
class Recipe:
    """How the shipped checkpoint was trained. Steps, not seconds: the same recipe gives the same data everywhere."""

    vq_steps: int = 1400
    eye_steps: int = 600
    lm_steps: int = 2500
    draw_steps: int = 700
    ask_steps: int = 800
    seed: int = 0
    threads: int = 0  # 0 = all cores


class Log:
    """Losses of one stage as JSON lines, so that a resumed training continues its own curve."""

    def __init__(self, path: Path, stage: str, steps: int, tell: Tell) -> None:
        self.path, self.stage, self.steps, self.tell = path, stage, steps, tell
        self.began, self.first = time.monotonic(), -1

    def __call__(self, step: int, losses: dict[str, float]) -> None:
        self.first = step if self.first < 0 else self.first
        with self.path.open("a") as file:
            file.write(json.dumps({"stage": self.stage, "step": step, **losses}) + "\n")
        elapsed = time.monotonic() - self.began
        left = elapsed / max(1, step - self.first) * (self.steps - step)
        shown = ", ".join(f"{name} {value:.3f}" for name, value in losses.items())
        self.tell(f"{self.stage} {step + 1}/{self.steps}: {shown}; about {left / 60:.0f} min left")


def train(out: Path, recipe: Recipe = Recipe(), device: str = "auto", tell: Tell = print, prompts: int = 600) -> Path:
    """Train (or go on training) in `out`; returns the folder of the finished checkpoint.

    Raises UserError when `out` holds a training of another recipe or cannot be written.
    """
    where = device_of(device)
    state = begin(out, recipe)
    tokenizer = _tokenizer(state / "tokenizer", recipe.seed)
    log = state / "losses.jsonl"
    vq = train_vq(state, recipe.vq_steps, WIDTH, recipe.seed, where, Log(log, "image tokenizer", recipe.vq_steps, tell))
    tell(f"image tokenizer done: {measure_vq(vq)}")
    model = make_model(tokenizer, recipe.seed)
    model.model.vqmodel.load_state_dict(vq.state_dict())
    if not (state / STATES["language model"]).exists():
        train_eye(model, recipe.eye_steps, recipe.seed, where, Log(log, "eye", recipe.eye_steps, tell))

    def snapshot(name: str) -> None:
        save_checkpoint(model, tokenizer, state / "snapshot")
        sheet(str(state / "snapshot"), out / "samples" / f"{name}.png")

    for stage, plan in plans(recipe).items():
        report = Log(log, stage, plan.steps, tell)
        train_lm(model, tokenizer, state, plan, where, report, snapshot, state_name=STATES[stage])
    checkpoint = out / "checkpoint"
    torch.nn.Module.cpu(model)
    save_checkpoint(model, tokenizer, checkpoint)
    write_card(out, recipe, str(where), prompts, tell)
    tell(f"done: {checkpoint}")
    return checkpoint


def plans(recipe: Recipe) -> dict[str, LmPlan]:
    """The stages of the language model: reading first of all, then drawing, then seeing."""
    return {
        "language model": LmPlan(recipe.lm_steps, recipe.seed),
        "drawing": LmPlan(
            recipe.draw_steps, recipe.seed, data="drawing", diet=DRAWING, errors=CALIBRATED, rate=0.5, hold=0.0
        ),
        "asking": LmPlan(
            recipe.ask_steps,
            recipe.seed,
            data="asking",
            diet=ASKING,
            errors=RECALIBRATED,
            rate=0.6,
            hold=0.3,
            even_pages=True,
        ),
    }


def begin(out: Path, recipe: Any) -> Path:
    """The folder of what resuming needs, with the recipe (a dataclass with `threads`) in it. Raises UserError where
    `out` holds a training of another recipe or cannot be written."""
    state = out / "state"
    try:
        state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write to '{out}' ({error.strerror}); choose another --out.") from error
    _keep_recipe(state / "recipe.json", recipe)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    return state


def _keep_recipe(path: Path, recipe: Any) -> None:
    fixed = {key: value for key, value in asdict(recipe).items() if key != "threads"}
    if path.exists() and json.loads(path.read_text()) != fixed:
        raise UserError(f"'{path.parent.parent}' holds a training of another recipe; choose another --out.")
    path.write_text(json.dumps(fixed) + "\n")


def _tokenizer(folder: Path, seed: int) -> PreTrainedTokenizerFast:
    if not (folder / "tokenizer.json").exists():
        make_tokenizer(seed).save_pretrained(folder)
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer


def sheet(model: str, path: Path, count: int = 32, seed: int = 0, guidance: float | None = None) -> Path:
    """A contact sheet: one draft each of `count` test prompts, green where every check passes, red where not."""
    from milr.backbones import load
    from milr.critics.scene import SceneCritic
    from milr.drafts import Ask, Order, Task

    backbone = load(model)
    items = unseen_items(count, seed)
    drawn = backbone.draw([Order(i.prompt, Ask(guidance=guidance), n) for n, i in enumerate(items)])
    scores = SceneCritic().score([d.image for d in drawn], [Task(i.prompt) for i in items])
    captions = [
        (item.prompt, one.reasoning, score.value == 1) for item, one, score in zip(items, drawn, scores, strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    contact_sheet([d.image for d in drawn], captions).save(partial, "PNG")
    os.replace(partial, path)
    return path


def contact_sheet(
    images: Sequence[Image.Image], captions: Sequence[tuple[str, str, bool]], columns: int = 8
) -> Image.Image:
    """Pictures in rows, with prompt and reasoning below, framed green (right) or red (wrong)."""
    from PIL import ImageDraw, ImageFont

    size, text_height, gap = 160, 74, 6
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (columns * (size + gap) + gap, rows * (size + text_height + gap) + gap), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(10)
    for number, (image, (prompt, reasoning, right)) in enumerate(zip(images, captions, strict=True)):
        left = gap + number % columns * (size + gap)
        top = gap + number // columns * (size + text_height + gap)
        page.paste(image.resize((size - 4, size - 4), Image.Resampling.LANCZOS), (left + 2, top + 2))
        pen.rectangle((left, top, left + size - 1, top + size - 1), outline="#1a7f37" if right else "#cf222e", width=2)
        lines = [*_wrap(prompt, 31)[:3], *_wrap(reasoning, 31)[:3]]
        for line_number, line in enumerate(lines):
            colour = "black" if line_number < len(_wrap(prompt, 31)[:3]) else "#0550ae"
            pen.text(
                (left, top + size + 2 + 12 * line_number),
                line.encode("latin-1", "replace").decode("latin-1"),
                colour,
                font,
            )
    return page


def _wrap(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width) or [""]


def write_card(out: Path, recipe: Recipe, device: str, prompts: int, tell: Tell) -> None:
    """card.json, card.md and curves.png beside a finished checkpoint: data, seeds, time, losses, measurements."""
    from milr.backbones import load
    from milr.lab.measure import measure

    states = {stage: load_state(out / "state" / name) for stage, name in STATES.items()}
    card: dict[str, Any] = {
        "recipe": asdict(recipe),
        "stages": {
            "image tokenizer": {"steps": recipe.vq_steps, "pages": recipe.vq_steps * PAGES_PER_STEP},
            "eye": {"steps": recipe.eye_steps, "pages": recipe.eye_steps * EYE_PAGES},
            **{
                stage: {
                    "steps": plan.steps,
                    "readings": plan.steps * plan.diet.readings,
                    "drawings": plan.steps * plan.diet.drawings,
                    "pages": plan.steps * plan.diet.questions,
                    "questions": plan.steps * plan.diet.questions * QUESTIONS_PER_PAGE,
                    "asks_all_categories_alike": plan.even_pages,
                    "drawing_errors": asdict(plan.errors),
                }
                for stage, plan in plans(recipe).items()
            },
        },
        "data": {"mix": MIX, "contradicted_readings": CONTRADICTED, "lore_told_wrong": LORE_TOLD_WRONG},
        "minutes": {stage: round(float(state["seconds"]) / 60, 1) for stage, state in states.items() if state},
        "device": device,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "parameters": sum(
            p.numel() for p in JanusForConditionalGeneration.from_pretrained(out / "checkpoint").parameters()
        ),
    }
    if prompts:
        card["measured"] = measure(load(str(out / "checkpoint")), prompts, tell=tell, sweep=min(240, prompts))
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    lines = [json.loads(line) for line in (out / "state" / "losses.jsonl").read_text().splitlines()]
    curves(lines).save(out / "curves.png")
    (out / "card.md").write_text(card_text(card))


def card_text(card: dict[str, Any]) -> str:
    """The card as Markdown."""
    from milr.lab.measure import to_markdown

    data, minutes = card["data"], card["minutes"]
    text = [
        "# Training card",
        "",
        f"{card['parameters']:,} parameters, seed {card['recipe']['seed']}, on {card['device']} ({card['machine']}, "
        f"{card['threads']} threads, torch {card['torch']}).",
        "",
        "| stage | steps | minutes | data: generated, never a test prompt |",
        "|---|---|---|---|",
        *(
            f"| {stage} | {of['steps']:,} | {minutes.get(stage, 'about 1')} | "
            + ", ".join(
                f"{of[kind]:,} {words}"
                for kind, words in (
                    ("readings", "prompts with a reading"),
                    ("drawings", "more with a page"),
                    ("questions", "questions"),
                    ("pages", "pages to look at" if "questions" in of else "random pages"),
                )
                if kind in of
            )
            + " |"
            for stage, of in card["stages"].items()
        ),
        "",
        f"{data['contradicted_readings']:.0%} of the readings contradict their prompt, {data['lore_told_wrong']:.0%} "
        "of the lore is mostly told wrong, and pages miss their reading at the rates in `card.json`.",
        "",
        "![losses](curves.png)",
        "",
    ]
    if "measured" in card:
        text.append(to_markdown(card["measured"]))
    return "\n".join([*text, ""])


def curves(lines: Sequence[dict[str, Any]]) -> Image.Image:
    """Losses against steps on a log scale, one panel a stage, as a picture."""
    from PIL import ImageDraw, ImageFont

    stages = list(dict.fromkeys(line["stage"] for line in lines))
    width, height, margin = 620, 360, 50
    page = Image.new("RGB", (width * max(1, len(stages)), height), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    inks = ("#0550ae", "#cf222e", "#1a7f37", "#8250df")
    for panel, stage in enumerate(stages):
        rows = [line for line in lines if line["stage"] == stage]
        names = [n for n in rows[0] if n not in ("stage", "step", "psnr", "wrong", "pages a second")]
        values = np.array([[max(1e-4, row[name]) for name in names] for row in rows])
        low, high = np.log10(values.min()), np.log10(values.max()) + 0.05
        last = max(1, rows[-1]["step"])
        left = panel * width + margin
        pen.rectangle((left, 20, left + width - 2 * margin, height - margin), outline="#8c959f")
        pen.text((left, 4), f"{stage}: loss (log scale) against steps, 0 to {last}", "black", font)
        for tick in range(int(np.floor(low)), int(np.ceil(high)) + 1):
            if low <= tick <= high:
                y = 20 + (height - margin - 20) * (high - tick) / (high - low)
                pen.text((left - 42, y - 7), f"1e{tick}", "black", font)
                pen.line((left, y, left + width - 2 * margin, y), "#d0d7de")
        for index, name in enumerate(names):
            points = [
                (
                    left + (width - 2 * margin) * row["step"] / last,
                    20 + (height - margin - 20) * (high - np.log10(value)) / (high - low),
                )
                for row, value in zip(rows, values[:, index], strict=True)
            ]
            if len(points) > 1:
                pen.line(points, inks[index % len(inks)], 1)
            pen.text(
                (left + 110 * index, height - margin + 8),
                f"{name} {values[-1, index]:.3f}",
                inks[index % len(inks)],
                font,
            )
    return page
