"""Why a search gains: wrong readings and wrong drawings before and after it, and what each kind of move brought.

    python -m milr.reports.diagnose repair --prompts 300 --seed 7
    python -m milr.reports.diagnose milr:repaired --prompts 300 --seed 7     with what its latents did

Only the lab world can tell a wrong reading from a wrong drawing; no search knows of it.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from milr.backbones.base import Backbone
from milr.critics.scene import SceneCritic
from milr.drafts import Draft, Latents, Trajectory, reaches
from milr.lab.curriculum import Item, tasks, unseen_items
from milr.lab.language import agrees, read_reading
from milr.lab.measure import share
from milr.runs.generate import Request, prepare
from milr.runs.methods import Method, choose_methods
from milr.searches.driver import drive

STATES = ("right", "wrong reading", "wrong drawing")


def state_of(draft: Draft, item: Item) -> str:
    """A draft that passes every check is right; else its reading is wrong, or the drawing of a right reading is."""
    if reaches(draft.reward):
        return "right"
    reading = read_reading(draft.drawn.reasoning)
    understood = reading is not None and reading.consistent and agrees(reading.meaning, item.meaning)
    return "wrong drawing" if understood else "wrong reading"


def diagnose(backbone: Backbone, method: Method, prompts: int, seed: int) -> dict[str, Any]:
    """Run the search on lab prompts with the oracle, and count."""
    plan = prepare(Request(method.search, method.preset, dict(method.settings)))
    walks: list[list[Latents]] = []

    def watched(problem: Any, settings: Any) -> Any:
        walks.append([])
        return plan.search(problem, settings, watch=walks[-1].append)

    run = watched if method.search == "milr" else plan.search
    items = unseen_items(prompts, seed)
    found = drive(backbone, SceneCritic(), tasks(prompts, seed), run, plan.settings, batch=64)
    report: dict[str, Any] = {
        "search": method.spec, "prompts": prompts, "seed": seed,
        "before_and_after": _before_and_after(found, items), "moves": _moves(found),
    }  # fmt: skip
    if walks:
        report["latents"] = {kind: _walk([[getattr(z, kind) for z in walk] for walk in walks])
                             for kind in ("text", "image")}  # fmt: skip
        report["gradient_norms"] = {
            kind: _quantiles([d.ask.note.get(f"{kind}_gradient") for t in found for d in t.drafts])
            for kind in ("text", "image")
        }
    return report


def _before_and_after(found: Sequence[Trajectory], items: Sequence[Item]) -> dict[str, Any]:
    pairs = Counter(
        (state_of(trajectory.drafts[0], item), state_of(trajectory.best_draft, item))
        for trajectory, item in zip(found, items, strict=True)
    )
    return {
        "first": {state: share([before == state for before, _ in pairs.elements()]) for state in STATES},
        "returned": {state: share([after == state for _, after in pairs.elements()]) for state in STATES},
        "from_to": {f"{before} -> {after}": count for (before, after), count in sorted(pairs.items())},
    }


def _moves(found: Sequence[Trajectory]) -> dict[str, Any]:
    """Of each kind of move: drafts, those above the best reward before, those that solved, mean decoded tokens."""
    rows: defaultdict[str, list[tuple[bool, bool, int]]] = defaultdict(list)
    for trajectory in found:
        best = trajectory.drafts[0].reward or 0.0
        for draft in trajectory.drafts[1:]:
            reward = draft.reward or 0.0
            move = str(draft.ask.note.get("move", "draft"))
            rows[move].append((reward > best, reaches(reward), draft.drawn.cost.decoded_tokens))
            best = max(best, reward)
    return {
        move: {
            "drafts": len(of),
            "better": share(better for better, _, _ in of),
            "solved": share(solved for _, solved, _ in of),
            "mean_tokens": round(float(np.mean([tokens for _, _, tokens in of])), 1),
        }
        for move, of in rows.items()
    }


def _walk(walks: Sequence[Sequence[torch.Tensor]]) -> dict[str, Any]:
    """How latents moved: length of a step against that of the latent, and the cosine between steps in a row."""
    sizes, cosines, straight = [], [], []
    for walk in walks:
        steps = [(b - a).flatten() for a, b in pairwise(walk) if a.numel()]
        sizes += [float(step.norm() / a.norm()) for step, a in zip(steps, walk, strict=False)]
        cosines += [float(torch.cosine_similarity(a, b, dim=0)) for a, b in pairwise(steps) if a.norm() * b.norm() > 0]
        path = sum(float(step.norm()) for step in steps)
        if path > 0:
            straight.append(float((walk[-1] - walk[0]).norm()) / path)
    return {
        "step_to_latent": _quantiles(sizes),
        "cosine_of_steps": _quantiles(cosines),
        "way_to_path": _quantiles(straight),
    }


def _quantiles(values: Sequence[float | None]) -> dict[str, Any]:
    kept = [value for value in values if value is not None]
    marks = np.quantile(kept, [0.05, 0.5, 0.95]).tolist() if kept else []
    return {"of": len(kept), "quantiles_.05_.5_.95": [float(f"{mark:.4g}") for mark in marks]}


def main() -> None:
    from milr.backbones import load

    parser = argparse.ArgumentParser(description="Why a search gains on the lab model.")
    parser.add_argument("search", metavar="SEARCH[:PRESET][,SETTING=VALUE]...")
    parser.add_argument("--model", default="lab")
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    (method,) = choose_methods([options.search])
    report = diagnose(load(options.model), method, options.prompts, options.seed)
    text = json.dumps(report, indent=2) + "\n"
    if options.out:
        options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
