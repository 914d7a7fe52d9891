"""Fits the critic `learned`: a logistic head on the frozen model's states, from the oracle's verdicts on its drafts.

Drafts of prompts of the training side are drawn, looked at and judged; the head is the one among several strengths of
weight decay that best ranks the drafts of prompts held back. Drawing is most of the work: it is kept in parts, so the
same command goes on where it was killed. Knows the lab world and the verbs of a model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from milr.backbones.base import Backbone
from milr.critics.scene import SceneCritic
from milr.critics.self_critic import question
from milr.drafts import Ask, Order, Sample, Task, UserError
from milr.lab.curriculum import training_items
from milr.statistics import auc

PART = 512  # drafts between two files
BATCH = 64
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)
HELD_BACK = 5  # every so many-th prompt chooses the decay


@dataclass(frozen=True)
class CriticRecipe:
    """What decides the head, but the model."""

    prompts: int = 2000
    drafts: int = 3
    seed: int = 1


def train_critic(
    backbone: Backbone, out: Path, recipe: CriticRecipe = CriticRecipe(), tell: Callable[[str], None] = print
) -> dict[str, Any]:
    """Write the head to `out` (.safetensors, with its card in the metadata) and return the card."""
    began = time.monotonic()
    parts = out.with_suffix(".parts")
    parts.mkdir(parents=True, exist_ok=True)
    _claim(parts, {**asdict(recipe), "model": backbone.info.name})
    states, right, prompts = _drafts(backbone, parts, recipe, tell)
    held_back = prompts % HELD_BACK == 0
    if len(right[held_back].unique()) < 2 or len(right[~held_back].unique()) < 2:
        raise UserError("All of these drafts are right, or all wrong, so nothing can be learned; take more --prompts.")
    ranks: dict[float, float] = {}
    for one in DECAYS:
        weight, bias = _fit(states[~held_back], right[~held_back], one)
        rank = auc((states[held_back] @ weight + bias).numpy(), right[held_back].numpy())
        assert rank is not None
        ranks[one] = rank
    decay = max(ranks, key=lambda one: ranks[one])
    weight, bias = _fit(states, right, decay)
    card = {
        **asdict(recipe),
        "model": backbone.info.name,
        "drafts_judged": len(right),
        "right": round(float(right.float().mean()), 4),
        "decay": decay,
        "auc_held_back": {str(one): round(rank, 4) for one, rank in ranks.items()},
        "seconds": round(time.monotonic() - began),
    }
    save_file({"weight": weight, "bias": bias}, out, metadata={"card": json.dumps(card)})
    return card


def _claim(parts: Path, settings: dict[str, Any]) -> None:
    """The parts belong to these settings. Raises UserError where they are those of others."""
    file = parts / "settings.json"
    if not file.exists():
        file.write_text(json.dumps(settings))
    elif json.loads(file.read_text()) != settings:
        raise UserError(
            f"{parts} holds drafts of other settings ({file.read_text()}); remove it or name another --out."
        )


def _drafts(
    backbone: Backbone, parts: Path, recipe: CriticRecipe, tell: Callable[[str], None]
) -> tuple[Tensor, Tensor, Tensor]:
    """States [N, D], verdicts [N] (bool) and numbers of the prompts [N] of all drafts."""
    items = training_items(recipe.prompts, recipe.seed)
    jobs = [(number, draft) for draft in range(recipe.drafts) for number in range(len(items))]
    found: list[dict[str, Tensor]] = []
    for start in range(0, len(jobs), PART):
        file = parts / f"{start:06d}.safetensors"
        some = jobs[start : start + PART]
        try:
            found.append(load_file(file))
        except (OSError, SafetensorError):  # not there yet, or cut off by a kill
            tell(f"{start} of {len(jobs)} drafts")
            found.append(_draw([(number, items[number].prompt, draft) for number, draft in some], backbone, recipe))
            save_file(found[-1], file)
    whole = {name: torch.cat([part[name] for part in found]) for name in found[0]}
    return whole["states"].float(), whole["right"].bool(), whole["prompts"]


def _draw(jobs: list[tuple[int, str, int]], backbone: Backbone, recipe: CriticRecipe) -> dict[str, Tensor]:
    oracle, states, right = SceneCritic(), [], []
    for start in range(0, len(jobs), BATCH):
        some = jobs[start : start + BATCH]
        streams = [(recipe.seed * 1_000_003 + number) * 1009 + draft for number, _, draft in some]
        orders = [
            Order(prompt, Ask(Sample(), Sample()), stream) for (_, prompt, _), stream in zip(some, streams, strict=True)
        ]
        images = [drawn.image for drawn in backbone.draw(orders)]
        scores = oracle.score(images, [Task(prompt) for _, prompt, _ in some])
        states.append(backbone.understand(images, [question(prompt) for _, prompt, _ in some]).cpu())
        right += [score.value == 1 for score in scores]
    return {
        "states": torch.cat(states).half(),
        "right": torch.tensor(right, dtype=torch.uint8),
        "prompts": torch.tensor([number for number, _, _ in jobs]),
    }


def _fit(states: Tensor, right: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """w [D] and b [] of the logistic regression with this decay on standardised states, in the states' own units."""
    mean, spread = states.double().mean(0), states.double().std(0) + 1e-3
    x, y = (states.double() - mean) / spread, right.double()
    weight = torch.zeros(x.shape[1], dtype=torch.double, requires_grad=True)
    bias = torch.zeros((), dtype=torch.double, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(x @ weight + bias, y)
        value = value + decay * (weight @ weight)
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    with torch.no_grad():
        scaled = weight / spread
        return scaled.float().clone(), (bias - scaled @ mean).float().clone()
