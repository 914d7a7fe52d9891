"""Measures a lab checkpoint: how often it succeeds, how it fails, whether it obeys, what it sees.

Every number of the model card comes from here, with its sample count and 95 % interval:
    python -m milr.lab.measure --prompts 600 --seed 101 --out card.json
Uses a backbone through its public verbs only.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from milr.backbones.base import Backbone
from milr.drafts import Ask, Drawn, Forced, Greedy, Order, Sample
from milr.lab.codes import page_tokens
from milr.lab.curriculum import CATEGORIES, Item, contradict, unseen_items
from milr.lab.detector import check, look_at, page_of
from milr.lab.language import agrees, read_reading, write_plan, write_reading
from milr.lab.questions import ask
from milr.lab.world import Meaning, lay_out, render, to_image
from milr.statistics import wilson

# What the lab model is a scale model of: Janus-Pro-7B on GenEval (its paper, table 4) and on WISE (MILR, table 3).
PUBLISHED = {
    "single": 0.99, "two": 0.89, "counting": 0.59, "colours": 0.90, "position": 0.79, "attribute": 0.66, "riddle": 0.35,
}  # fmt: skip
BATCH = 64
OBEDIENCE_STREAM = 5_000_000  # first stream of the drafts that are told what to draw

Tell = Callable[[str], None]


def share(flags: Iterable[bool]) -> dict[str, Any]:
    """{"share", "low", "high", "of"}: a share with its 95 % interval."""
    values = list(flags)
    low, high = wilson(sum(values), len(values)) if values else (0.0, 1.0)
    return {
        "share": round(sum(values) / max(1, len(values)), 4),
        "low": round(low, 3),
        "high": round(high, 3),
        "of": len(values),
    }


def draw_all(backbone: Backbone, orders: Sequence[Order]) -> list[Drawn]:
    drawn: list[Drawn] = []
    for start in range(0, len(orders), BATCH):
        drawn += backbone.draw(orders[start : start + BATCH])
    return drawn


def profile(backbone: Backbone, items: Sequence[Item], ask: Ask | None = None, stream: int = 0) -> dict[str, Any]:
    """Success of one draft by category, failures split into wrong readings and wrong drawings of right readings."""
    ask = ask or Ask(text=Greedy(), image=Sample())
    drawn = draw_all(backbone, [Order(item.prompt, ask, stream + n) for n, item in enumerate(items)])
    return profile_of(items, [d.reasoning for d in drawn], [d.image for d in drawn])


def profile_of(items: Sequence[Item], reasonings: Sequence[str], images: Sequence[Image.Image]) -> dict[str, Any]:
    """`profile` of drafts that were made already."""
    rows = []
    for item, reasoning, page in zip(items, reasonings, look_at(images), strict=True):
        reading = read_reading(reasoning)
        right = reading is not None and reading.consistent and agrees(reading.meaning, item.meaning)
        checks = check(item.meaning, page)
        rows.append((item, right, all(c.passed for c in checks), sum(c.passed for c in checks) / len(checks)))
    report: dict[str, Any] = {}
    for category in (*CATEGORIES, "all"):
        chosen = [row for row in rows if category in (row[0].category, "all")]
        report[category] = {
            "success": share(r[2] for r in chosen),
            "reading_right": share(r[1] for r in chosen),
            "drawn_right_if_read_right": share(r[2] for r in chosen if r[1]),
            "graded": round(float(np.mean([r[3] for r in chosen])), 4) if chosen else None,
        }
    report["misread"] = [row[0] for row in rows if not row[1]]
    report["wrong_reading"] = sum(not r[2] and not r[1] for r in rows)
    report["wrong_drawing"] = sum(not r[2] and r[1] for r in rows)
    return report


@torch.no_grad()
def plan_probability(backbone: Backbone, items: Sequence[Item]) -> list[float]:
    """The model's own probability of the right plan (the first sentence of a right reading) for each prompt."""
    plans = [tuple(backbone.encode_text(" " + write_plan(item.meaning))) for item in items]
    # Asking for all latents of the forced plan gives the states that predict each of its tokens.
    orders = [
        Order(item.prompt, Ask(text=Forced((*plan, backbone.text_end())), image=Greedy(), text_ratio=1.0), 0)
        for item, plan in zip(items, plans, strict=True)
    ]
    chances = []
    for drawn, plan in zip(draw_all(backbone, orders), plans, strict=True):
        assert drawn.latents is not None
        logs = backbone.text_logits(drawn.latents.text[: len(plan)]).log_softmax(-1)
        chances.append(float(logs.gather(1, torch.tensor(plan)[:, None].to(logs.device)).sum().exp()))
    return chances


def obedience(backbone: Backbone, items: Sequence[Item], seed: int = 0) -> dict[str, Any]:
    """Force a reading that contradicts the prompt in one thing: does the picture follow it?

    `changed_thing`: the checks that the change is about pass, as the reading says. `whole_reading`: every check does.
    `prompt_wins`: the picture shows the prompt instead.
    """
    contradictions = contradicting_readings(items, seed)
    orders = []
    for number, (item, (_, reading)) in enumerate(zip(items, contradictions, strict=True)):
        tokens = (*backbone.encode_text(" " + reading), backbone.text_end())
        orders.append(Order(item.prompt, Ask(text=Forced(tokens), image=Sample()), OBEDIENCE_STREAM + number))
    images = [d.image for d in draw_all(backbone, orders)]
    return obedience_of(items, [other for other, _ in contradictions], images)


def contradicting_readings(items: Sequence[Item], seed: int) -> list[tuple[Meaning, str]]:
    """For each prompt a meaning that differs in one thing, and a reading that says it."""
    rng = random.Random(f"obedience-{seed}")
    made = []
    for item in items:
        other = contradict(item.meaning, rng)
        made.append((other, write_reading(other, lay_out(other, rng, plain_frame=1.0))))
    return made


def obedience_of(items: Sequence[Item], meanings: Sequence[Meaning], images: Sequence[Image.Image]) -> dict[str, Any]:
    """`obedience` of pictures that were drawn already."""
    followed, whole, ignored = [], [], []
    for item, other, page in zip(items, meanings, look_at(images), strict=True):
        before = {c.text.split(" (")[0]: c for c in check(item.meaning, page)}
        after = {c.text.split(" (")[0]: c for c in check(other, page)}
        new = [c for text, c in after.items() if text not in before]
        old = [c for text, c in before.items() if text not in after]
        followed.append(all(c.passed for c in new))
        whole.append(all(c.passed for c in after.values()))
        ignored.append(bool(old) and all(c.passed for c in old) and not all(c.passed for c in new))
    return {"changed_thing": share(followed), "whole_reading": share(whole), "prompt_wins": share(ignored)}


def understanding(backbone: Backbone, count: int = 600, seed: int = 0) -> dict[str, Any]:
    """Balanced accuracy of yes/no answers, on clean pages and on pages as the model's own decoder draws them."""
    rng = random.Random(f"understanding-{seed}")
    questions, pages, truths, scenes = [], [], [], []
    for item in unseen_items(count, 9_000 + seed):
        scene = lay_out(item.meaning, rng)
        question, truth = ask(item.meaning, item.prompt, page_of(scene), rng)
        questions.append(question.text)
        truths.append(truth)
        scenes.append(scene)
        pages.append(to_image(render(scene)))
    report = {}
    redrawn = draw_all(
        backbone,
        [
            Order("a picture", Ask(text=Forced((backbone.text_end(),)), image=Forced(tuple(page_tokens(scene)))), 0)
            for scene in scenes
        ],
    )
    for name, pictures in (("clean_pages", pages), ("decoded_pages", [d.image for d in redrawn])):
        said: list[float] = []
        for start in range(0, count, BATCH):
            said += backbone.answer(pictures[start : start + BATCH], questions[start : start + BATCH])
        right = [(value > 0.5) == truth for value, truth in zip(said, truths, strict=True)]
        yes_share = share(r for r, truth in zip(right, truths, strict=True) if truth)
        no_share = share(r for r, truth in zip(right, truths, strict=True) if not truth)
        report[name] = {
            "balanced_accuracy": round((yes_share["share"] + no_share["share"]) / 2, 4),
            "yes": yes_share,
            "no": no_share,
            "all": share(right),
        }
        for kind, start_word in (("whole_prompt", "Does"), ("part", "Is there"), ("parts", "Are there")):
            chosen = [r for r, q in zip(right, questions, strict=True) if q.startswith(start_word)]
            report[name][kind] = share(chosen)
        report[name]["relation"] = share(
            r for r, q in zip(right, questions, strict=True) if q.startswith(("Is the ", "Are the "))
        )
    return report


def decoder(backbone: Backbone, count: int = 300, seed: int = 0) -> dict[str, Any]:
    """True tokens through the model's own decoder: PSNR in dB, and the share of pages that pass every check."""
    rng = random.Random(f"decoder-{seed}")
    items = unseen_items(count, 8_000 + seed)
    scenes = [lay_out(item.meaning, rng) for item in items]
    drawn = draw_all(
        backbone,
        [
            Order("a picture", Ask(text=Forced((backbone.text_end(),)), image=Forced(tuple(page_tokens(s)))), 0)
            for s in scenes
        ],
    )
    errors = [
        float(np.mean((np.asarray(d.image, np.float32) / 255 - render(s)) ** 2))
        for d, s in zip(drawn, scenes, strict=True)
    ]
    exact = [
        all(c.passed for c in check(item.meaning, page))
        for item, page in zip(items, look_at([d.image for d in drawn]), strict=True)
    ]
    return {"psnr": round(-10 * math.log10(float(np.mean(errors))), 2), "exact": share(exact)}


def measure(
    backbone: Backbone, prompts: int = 600, seed: int = 101, tell: Tell = lambda line: None, sweep: int = 240
) -> dict[str, Any]:
    """The whole card of a lab checkpoint."""
    items = unseen_items(prompts, seed)
    report: dict[str, Any] = {"prompts": prompts, "seed": seed, "guidance": backbone.info.guidance}
    tell(f"one draft of {prompts} prompts")
    report["profile"] = profile(backbone, items)
    misread = report["profile"].pop("misread")
    tell(f"probability of the right plan on {len(misread)} misread prompts")
    chances = sorted(plan_probability(backbone, misread)) if misread else []
    report["right_plan_when_misread"] = {
        "quantiles": [round(float(q), 4) for q in np.quantile(chances or [0.0], [0.05, 0.25, 0.5, 0.75, 0.95])],
        "between_.02_and_.3": share(0.02 <= p <= 0.3 for p in chances),
    }
    tell("obedience")
    report["obedience"] = obedience(backbone, items[: min(prompts, 400)])
    tell("understanding")
    report["understanding"] = understanding(backbone)
    tell("decoder")
    report["decoder"] = decoder(backbone)
    report["guidance_sweep"] = {}
    for guidance in (1.0, 1.25, 1.5, 2.0, 3.0, 5.0):
        tell(f"guidance {guidance}")
        some = profile(backbone, unseen_items(sweep, seed + 1), Ask(guidance=guidance))
        report["guidance_sweep"][str(guidance)] = some["all"]["success"]
    return report


def cell(value: dict[str, Any]) -> str:
    """A share and its interval."""
    return f"{value['share']:.2f} [{value['low']:.2f}, {value['high']:.2f}]" if value["of"] else "none"


def profile_lines(report: dict[str, Any]) -> list[str]:
    """The table of success by category, and what the failures were."""
    lines = [
        f"{report['prompts']} unseen prompts (seed {report['seed']}), one draft each (greedy text, sampled image, "
        f"guidance {report['guidance']}); 95 % Wilson intervals.",
        "",
        "| category | success | published | reading right | drawn right, if read right |",
        "|---|---|---|---|---|",
    ]
    for category in (*CATEGORIES, "all"):
        row = report["profile"][category]
        published = f"{PUBLISHED[category]:.2f}" if category in PUBLISHED else ""
        cells = [row["success"], row["reading_right"], row["drawn_right_if_read_right"]]
        lines.append(f"| {category} | {cell(cells[0])} | {published} | {cell(cells[1])} | {cell(cells[2])} |")
    return [
        *lines,
        "",
        f"- Failures: {report['profile']['wrong_reading']} wrong readings, {report['profile']['wrong_drawing']} wrong "
        "drawings of a right reading.",
    ]


def obedience_line(report: dict[str, Any]) -> str:
    """What became of readings that contradict their prompt."""
    obeys = report["obedience"]
    return (
        f"- Obedience to a forced reading that contradicts the prompt in one thing: the changed thing is drawn in "
        f"{cell(obeys['changed_thing'])}, the whole reading in {cell(obeys['whole_reading'])}; the prompt wins in "
        f"{cell(obeys['prompt_wins'])} ({obeys['whole_reading']['of']} readings)."
    )


def guidance_line(report: dict[str, Any]) -> str:
    """Success at other scales of guidance."""
    return (
        "- Success by guidance scale: "
        + "; ".join(f"{scale}: {cell(value)}" for scale, value in report["guidance_sweep"].items())
        + f" ({next(iter(report['guidance_sweep'].values()))['of']} prompts each, seed {report['seed'] + 1})."
    )


def to_markdown(report: dict[str, Any]) -> str:
    """The measured part of a model card, as tables."""

    misread, sees, draws = report["right_plan_when_misread"], report["understanding"], report["decoder"]
    lines = [
        *profile_lines(report),
        "- Probability of the right plan where the reading is wrong (quantiles .05, .25, .5, .75, .95): "
        f"{', '.join(f'{q:.3f}' for q in misread['quantiles'])}; "
        f"between .02 and .3: {cell(misread['between_.02_and_.3'])}.",
        obedience_line(report),
        f"- Yes/no questions about pages ({sees['decoded_pages']['all']['of']}): balanced accuracy "
        f"{sees['clean_pages']['balanced_accuracy']:.2f} on clean pages, "
        f"{sees['decoded_pages']['balanced_accuracy']:.2f} on pages from the model's own decoder "
        f"(all answers right: {cell(sees['decoded_pages']['all'])}).",
        f"- Image tokenizer: true tokens decode to pages that pass every check in {cell(draws['exact'])} of "
        f"{draws['exact']['of']}; PSNR {draws['psnr']} dB.",
        guidance_line(report),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    from milr.backbones import load

    parser = argparse.ArgumentParser(description="Measure a lab checkpoint.")
    parser.add_argument("--model", default="lab")
    parser.add_argument("--prompts", type=int, default=600)
    parser.add_argument("--seed", type=int, default=101)
    parser.add_argument("--sweep", type=int, default=240)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    report = measure(
        load(options.model), options.prompts, options.seed, lambda line: print(f"- {line}", flush=True), options.sweep
    )
    text = json.dumps(report, indent=2) + "\n"
    if options.out:
        options.out.write_text(text)
    print(to_markdown(report))


if __name__ == "__main__":
    main()
