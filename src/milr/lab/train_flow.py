"""`milr lab train-flow`: the lab's flow model from scratch, resumable at any moment, with a training card.

Stages: autoencoder (train_kl.py), transformer (train_dit.py), assembly, card. The language model is the lab model's,
frozen. A folder holds

    model/            what Flux2KleinPipeline.from_pretrained loads, when all is done, and milr.json beside it
    card.md, card.json, curves.png, samples/*.png
    state/            what resuming needs; may be deleted afterwards
"""

from __future__ import annotations

import json
import os
import platform
import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from milr.hub import device_of
from milr.lab.codes import page_tokens
from milr.lab.curriculum import unseen_items
from milr.lab.detector import check, look_at
from milr.lab.flow_data import BLOCK, NOTHING_SAID, ONLY_PLAN, ONLY_PROMPT, USES, Data
from milr.lab.flow_model import (
    MAX_TEXT,
    STEPS,
    TEXT_LAYERS,
    FlowSize,
    diffusers,
    drawer_text,
    language_model,
    make_pipeline,
    save_pipeline,
    states_of,
)
from milr.lab.language import write_reading
from milr.lab.measure_flow import GUIDANCE, draw_readings, measure_flow, to_markdown, write_readings
from milr.lab.optimizers import load_state
from milr.lab.train import Log, Tell, begin, contact_sheet, curves
from milr.lab.train_dit import STATE as FLOW_STATE
from milr.lab.train_dit import FlowPlan, train_dit
from milr.lab.train_kl import PAGES_PER_STEP, train_kl
from milr.lab.train_kl import STATE as KL_STATE
from milr.lab.train_lm import RECALIBRATED
from milr.lab.world import PAGE, lay_out

if TYPE_CHECKING:
    from diffusers import Flux2KleinPipeline

LOOKED_AT = 64  # pages that are drawn on the way, to see what is learnt; as many as the card has prompts at most
SHEET = 32  # drafts of a sample sheet, likewise
# What diffusers' files have no place for; written beside model_index.json.
SETTINGS = {
    "image_size": PAGE,
    "steps": STEPS,
    "guidance": GUIDANCE,
    "text_tokens": MAX_TEXT,
    "text_layers": list(TEXT_LAYERS),
    "reasoning": "{prompt}",  # the template asks, in the lab model's own words
    "drawing": "{prompt}\n{reasoning}",
    "reasoning_tokens": 64,
}


@dataclass(frozen=True)
class FlowRecipe:
    """How the flow model is trained. Steps, not seconds: the same recipe gives the same data everywhere."""

    kl_steps: int = 1000
    flow_steps: int = 9000
    batch: int = 32
    size: FlowSize = field(default_factory=FlowSize)
    seed: int = 0
    threads: int = 0  # 0 = all cores

    def plan(self) -> FlowPlan:
        return FlowPlan(self.flow_steps, self.seed, self.batch, self.size)


# Two steps of everything: to see that it runs.
SMALL = FlowRecipe(kl_steps=2, flow_steps=2, batch=2, size=FlowSize(1, 1, 1, 1.0))


def train_flow(
    out: Path,
    recipe: FlowRecipe = FlowRecipe(),
    device: str = "auto",
    tell: Tell = print,
    prompts: int = 600,
    pages: int = 300,
) -> Path:
    """Train (or go on training) in `out`; returns the folder of the finished pipeline. The card is measured on
    `prompts` test prompts and, of the autoencoder, on `pages` pages.

    Raises UserError when `out` holds a training of another recipe or cannot be written, or diffusers is missing.
    """
    diffusers()
    where = device_of(device)
    state = begin(out, recipe)
    log = state / "losses.jsonl"
    vae = train_kl(state, recipe.kl_steps, recipe.seed, where, Log(log, "autoencoder", recipe.kl_steps, tell))
    writer, tokenizer = language_model()

    on_a_sheet = min(SHEET, prompts)

    def snapshot(name: str, transformer: Any) -> None:
        sheet(make_pipeline(vae, transformer.eval(), writer, tokenizer), out / "samples" / f"{name}.png", on_a_sheet)

    transformer = train_dit(
        vae,
        Data(recipe.seed, recipe.batch, writer, tokenizer),
        examples(writer, tokenizer, min(LOOKED_AT, prompts)),
        state,
        recipe.plan(),
        where,
        Log(log, "transformer", recipe.flow_steps, tell),
        snapshot,
    )
    pipeline = make_pipeline(vae, transformer, writer, tokenizer)
    save_pipeline(pipeline, out / "model", SETTINGS)
    sheet(pipeline, out / "samples" / "finished.png", on_a_sheet)
    write_card(out, recipe, str(where), prompts, pages, tell)
    tell(f"done: {out / 'model'}")
    return out / "model"


def examples(writer: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int) -> tuple[Tensor, Tensor]:
    """States and tokens of pages that show their texts without an error, of the test side."""
    rng = random.Random("flow-examples")
    texts, tokens = [], []
    for item in unseen_items(count, 77):
        scene = lay_out(item.meaning, rng)
        texts.append(drawer_text(item.prompt, write_reading(item.meaning, scene)))
        tokens.append(page_tokens(scene))
    states: Tensor = states_of(writer, tokenizer, texts)
    return states, torch.tensor(tokens)


def sheet(pipeline: Flux2KleinPipeline, path: Path, count: int, seed: int = 0) -> Path:
    """A contact sheet: one draft each of `count` test prompts, green where every check passes, red where not."""
    items = unseen_items(count, seed)
    readings = write_readings(pipeline, [item.prompt for item in items])
    images = draw_readings(pipeline, items, readings)
    captions = [
        (item.prompt, reading, all(c.passed for c in check(item.meaning, page)))
        for item, reading, page in zip(items, readings, look_at(images), strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    contact_sheet(images, captions).save(partial, "PNG")
    os.replace(partial, path)
    return path


def load_pipeline(folder: Path, device: str = "cpu") -> Flux2KleinPipeline:
    """A saved pipeline in single precision."""
    made: Flux2KleinPipeline = diffusers().Flux2KleinPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    made.set_progress_bar_config(disable=True)
    return made.to(device, torch.float32)


def write_card(out: Path, recipe: FlowRecipe, device: str, prompts: int, pages: int, tell: Tell) -> None:
    """card.json, card.md and curves.png beside a finished pipeline: data, seeds, time, losses, measurements."""
    pipeline = load_pipeline(out / "model", device)
    states = {
        "autoencoder": load_state(out / "state" / KL_STATE),
        "transformer": load_state(out / "state" / FLOW_STATE),
    }
    card: dict[str, Any] = {
        "recipe": asdict(recipe),
        "stages": {
            "autoencoder": {"steps": recipe.kl_steps, "pages": recipe.kl_steps * PAGES_PER_STEP},
            "transformer": {
                "steps": recipe.flow_steps,
                "pages": recipe.flow_steps * recipe.batch,
                "texts": -(-recipe.flow_steps // (BLOCK * USES)) * BLOCK * recipe.batch,
            },
        },
        "data": {
            "nothing_said": NOTHING_SAID,
            "only_prompt": ONLY_PROMPT,
            "only_plan": ONLY_PLAN,
            "drawing_errors": asdict(RECALIBRATED),
        },
        "minutes": {stage: round(float(one["seconds"]) / 60, 1) for stage, one in states.items() if one},
        "device": device,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": diffusers().__version__,
        "parameters": {
            name: sum(p.numel() for p in getattr(pipeline, name).parameters())
            for name in ("transformer", "vae", "text_encoder")
        },
        "measured": measure_flow(pipeline, prompts, tell=tell, sweep=min(240, prompts), pages=pages),
    }
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    lines = [json.loads(line) for line in (out / "state" / "losses.jsonl").read_text().splitlines()]
    curves(lines).save(out / "curves.png")
    (out / "card.md").write_text(card_text(card))


def card_text(card: dict[str, Any]) -> str:
    """The card as Markdown."""
    data, minutes, parameters = card["data"], card["minutes"], card["parameters"]
    return "\n".join(
        [
            "# Training card of the flow model",
            "",
            f"{parameters['transformer']:,} parameters draw and {parameters['vae']:,} encode and decode, beside the "
            f"{parameters['text_encoder']:,} of the lab's language model, which stay as they are. Seed "
            f"{card['recipe']['seed']}, on {card['device']} ({card['machine']}, {card['threads']} threads, torch "
            f"{card['torch']}, diffusers {card['diffusers']}).",
            "",
            "| stage | steps | minutes | data: generated, never a test prompt |",
            "|---|---|---|---|",
            *(
                f"| {stage} | {of['steps']:,} | {minutes[stage]} | "
                + (
                    f"{of['texts']:,} texts, {of['pages']:,} pages"
                    if "texts" in of
                    else f"{of['pages']:,} random pages"
                )
                + " |"
                for stage, of in card["stages"].items()
            ),
            "",
            f"{data['nothing_said']:.0%} of the texts say nothing, {data['only_prompt'] + data['only_plan']:.0%} leave "
            "the places open, and pages miss their text at the rates in `card.json`.",
            "",
            "![losses](curves.png)",
            "",
            to_markdown(card["measured"]),
        ]
    )
