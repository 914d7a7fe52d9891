"""What could be won before anything is searched: is it the text or the picture that decides, and is the way smooth?

    python -m milr.reports.landscape lab --prompts 100 --seed 951
    python -m milr.reports.landscape FOLDER --reward clip --prompts 100 --out landscape.json

Two questions for each prompt, and means over prompts with 95 % intervals (bootstrap over prompts):

*Whose variance?* K texts and K pictures' numbers (noise, or the random numbers of tokens), every text with every
number: a K x K table of rewards, and of it the variance of texts, of pictures, and of what only both together decide
(two-way analysis of variance, one draft a cell). A search over what does not vary cannot win.

*How smooth?* A picture, and others near it, a step apart, with the same text: how far their rewards go together, 1 for
the same, 0 for strangers. Where even the nearest are strangers, no gradient and no neighbour helps, and drawing afresh
is the search.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from milr.backbones.base import Backbone
from milr.backbones.policies import image_policy, whole_text
from milr.critics.base import Critic, judge
from milr.drafts import Ask, Draft, Drawn, Forced, Order, Sample, Score, Task

Floats = npt.NDArray[np.float64]

STEPS = (0.3, 0.6, 0.9)
RESAMPLES = 2000
Say = Callable[[str], None]


def landscape(
    backbone: Backbone,
    critic: Critic,
    tasks: Sequence[Task],
    *,
    side: int = 4,
    steps: Sequence[float] = STEPS,
    batch: int = 32,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """The two answers, over these tasks. `side`: K, so that each prompt takes K * K + K * len(steps) drafts. Prompts of
    which the critic abstained once are left out, and counted."""
    tables, near, abstained = [], [], 0
    rng = np.random.default_rng(0)
    for number, task in enumerate(tasks):
        grid = _grid(backbone, critic, task, number, side, batch)
        ways = _near(backbone, critic, task, grid, steps, rng, batch)
        rewards = [[draft.reward for draft in row] for row in grid]
        if any(reward is None for row in (*rewards, *ways) for reward in row):
            abstained += 1
            continue
        tables.append(np.array(rewards, dtype=float))
        near.append(np.array(ways, dtype=float))
        say(f"{number + 1} of {len(tasks)} prompts")
    if not tables:
        return {"prompts": 0, "abstained": abstained}
    parts = np.array([components(table) for table in tables])
    names = ("texts", "pictures", "both together")
    total = parts.sum(1)
    return {
        "prompts": len(tables),
        "abstained": abstained,
        "side": side,
        "mean": _interval(np.array([table.mean() for table in tables])),
        "variance": {name: _interval(parts[:, at]) for at, name in enumerate(names)},
        "share": {name: _ratio(parts[:, at], total) for at, name in enumerate(names)},
        "together": {f"{step:g}": _together(tables, [of[:, at] for of in near]) for at, step in enumerate(steps)},
    }


def components(table: Floats) -> tuple[float, float, float]:
    """Variance of rows, of columns, and of what is left, of a square table with one value a cell. Unbiased, so that a
    part may come out below 0 where there is none."""
    side = len(table)
    rows, columns, mean = table.mean(1), table.mean(0), table.mean()
    left = table - rows[:, None] - columns + mean
    rest = float((left**2).sum()) / (side - 1) ** 2
    return float(rows.var(ddof=1)) - rest / side, float(columns.var(ddof=1)) - rest / side, rest


def _grid(backbone: Backbone, critic: Critic, task: Task, number: int, side: int, batch: int) -> list[list[Draft]]:
    """Drafts of every text with every stream: the stream gives a picture its numbers, whatever the text is."""
    base = 1_000_000 * (number + 1)
    written = _drawn(backbone, task, [(Ask(text=Sample()), base + at) for at in range(side)], batch)
    end = backbone.text_end()
    texts = [Forced(whole_text(one, end)) for one in written]
    asked = [(Ask(text=text), base + 1000 + stream) for text in texts for stream in range(side)]
    drafts = _judged(critic, task, asked, _drawn(backbone, task, asked, batch))
    return [drafts[row * side : (row + 1) * side] for row in range(side)]


def _near(
    backbone: Backbone,
    critic: Critic,
    task: Task,
    grid: Sequence[Sequence[Draft]],
    steps: Sequence[float],
    rng: np.random.Generator,
    batch: int,
) -> list[list[float | None]]:
    """Rewards of pictures near those of the diagonal, by step."""
    chosen = [row[at] for at, row in enumerate(grid)]
    asked = []
    for draft in chosen:
        near = image_policy(backbone, draft.drawn.guidance).near
        asked += [(Ask(draft.ask.text, near(draft, step, rng, Sample())), draft.stream + 500_000) for step in steps]
    found = _judged(critic, task, asked, _drawn(backbone, task, asked, batch))
    rewards = [draft.reward for draft in found]
    return [rewards[at * len(steps) : (at + 1) * len(steps)] for at in range(len(chosen))]


def _drawn(backbone: Backbone, task: Task, asked: Sequence[tuple[Ask, int]], batch: int) -> list[Drawn]:
    orders = [Order(task.prompt, ask, stream) for ask, stream in asked]
    return [one for at in range(0, len(orders), batch) for one in backbone.draw(orders[at : at + batch])]


def _judged(critic: Critic, task: Task, asked: Sequence[tuple[Ask, int]], drawn: Sequence[Drawn]) -> list[Draft]:
    scores: list[Score] = judge(critic, [one.image for one in drawn], [task] * len(drawn))
    return [
        Draft(number, ask, stream, one, score)
        for number, ((ask, stream), one, score) in enumerate(zip(asked, drawn, scores, strict=True))
    ]


# --- Numbers ------------------------------------------------------------------------------------------------------


def _interval(values: Floats) -> list[float]:
    """Mean and 95 % interval over prompts."""
    return _ratio(values, np.ones(len(values)))


def _ratio(above: Floats, below: Floats) -> list[float]:
    """sum(above) / sum(below) over prompts, with its 95 % interval; 0 where nothing varies at all."""
    picked = np.random.default_rng(0).integers(0, len(above), (RESAMPLES, len(above)))
    sums = above[picked].sum(1), below[picked].sum(1)
    again = np.divide(*sums, out=np.zeros(RESAMPLES), where=sums[1] != 0)
    low, high = np.quantile(again, [0.025, 0.975])
    whole = float(above.sum() / below.sum()) if below.sum() else 0.0
    return [whole, float(low), float(high)]


def _together(tables: Sequence[Floats], near: Sequence[Floats]) -> list[float]:
    """How far a draft and one near it go together: covariance over variance, of what departs from the mean of the
    drafts of the same text, which is what strangers have in common."""
    shared, own = [], []
    for table, moved in zip(tables, near, strict=True):
        side = len(table)
        others = [np.delete(table[at], at).mean() for at in range(side)]  # of the same text, other numbers
        here = np.array([table[at, at] - others[at] for at in range(side)])
        there = np.array([moved[at] - others[at] for at in range(side)])
        # The mean of the others varies too, and is taken from both.
        noise = np.mean([np.delete(table[at], at).var(ddof=1) / (side - 1) for at in range(side)])
        shared.append(float(np.mean(here * there)) - noise)
        own.append(float(np.mean(here**2)) - noise)
    return _ratio(np.array(shared), np.array(own))


def to_markdown(found: dict[str, Any]) -> str:
    """Tables for people."""
    if not found["prompts"]:
        return f"The critic abstained at each of the {found['abstained']} prompts.\n"

    def said(values: Sequence[float]) -> str:
        value, low, high = values
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"

    lines = [
        f"{found['prompts']} prompts, {found['side']} texts x {found['side']} pictures each; mean reward "
        f"{said(found['mean'])}; 95 % intervals over prompts.",
        "", "| what varies | variance of the reward | share |", "|---|---|---|",
        *[f"| {name} | {said(of)} | {said(found['share'][name])} |" for name, of in found["variance"].items()],
        "", "| a picture so near | goes together |", "|---|---|",
        *[f"| {step} | {said(of)} |" for step, of in found["together"].items()],
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    import sys

    from milr.backbones import load
    from milr.benchmarks import scenes
    from milr.critics import naming

    parser = argparse.ArgumentParser(description="Whose variance decides the reward, and how smooth it is.")
    parser.add_argument("model", nargs="?", default="lab")
    parser.add_argument("--reward", default="scene")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--seed", type=int, default=951)
    parser.add_argument("--side", type=int, default=4)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    backbone = load(options.model)
    critic = naming.make(options.reward, backbone)
    tasks = scenes.tasks(options.prompts, options.seed)
    found = landscape(
        backbone, critic, tasks, side=options.side, say=lambda text: print(text, file=sys.stderr, flush=True)
    )
    about = {"model": backbone.info.name, "critic": options.reward, "seed": options.seed}
    if options.out:
        options.out.write_text(json.dumps({**about, **found}, indent=1) + "\n")
    print(to_markdown(found), end="")


if __name__ == "__main__":
    main()
