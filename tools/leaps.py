"""Measures how far drafts leap: by window, kind of guess, rule of choosing, place, in pictures and in texts.

    python tools/leaps.py --measure                what docs/data/leaps.json lacks, eleven minutes of a busy core in all
    python tools/leaps.py --measure --part rules   only this part; --anew measures again what is there
    python tools/leaps.py                          the page from docs/data/leaps.json
    python tools/leaps.py --check                  exit 1 if the page does not say what its data say
    python tools/leaps.py --model NAME             windows and rules with a model of yours, to the screen

docs/leaps.md says `<!-- leaps NAME -->`; what stands from there to `<!-- end -->` is replaced. Each cell of the tables
is kept when it is measured, so that a command that was stopped goes on. Passes are the engine's own: its drafts,
boards, guesses and echoes, with a window that is said instead of reckoned, and another rule of choosing in the place of
sampling.py's. Counts of passes depend on no machine's speed. For a processor.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from milr.backbones import board, load
from milr.backbones.board import Board, Shape, Stage
from milr.backbones.decoder import Decoder
from milr.backbones.decoding import Decoded, Engine, Plan
from milr.backbones.leaping import WINDOWS, Lore
from milr.backbones.random_checkpoint import make_checkpoint, tiny
from milr.backbones.sampling import choose, uniforms
from milr.benchmarks import scenes
from milr.drafts import Ask, Order, Sample

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "leaps.md"
DATA = ROOT / "docs" / "data" / "leaps.json"
BLOCK = re.compile(r"<!-- leaps (\S+) -->\n.*?<!-- end -->", re.DOTALL)

SEED = 16_016  # of the lab's prompts; no other file uses it
IN_BLOCK, BLOCKS = 16, 2  # prompts are measured a block at a time, each of which stands for itself
OTHERS = 16_017  # prompts whose texts and pictures tell of the model's habits
TEMPERATURES = (1.0, 1.5, 2.0, 3.0)
TEXT_TEMPERATURES = (1.0, 1.5, 2.0)
TEXT_WINDOW = 16
AT_ONCE = 64  # tokens of a pass: with more a processor is no quicker, and drafts that are done wait for the others
BLUR = 0.5  # deviation of the noise on the blurred head's weights, in deviations of these
SHIPPED, GUMBEL = "codes in their order", "Gumbel noise"

Rule = Callable[..., Tensor]


# --- Rules of choosing ----------------------------------------------------------------------------------------------
# All of them draw from the same distribution, and from nothing but logits and the token's own number. They differ in
# which token the number means, and so in how often it stays the same when the logits change a little.


def in_order(order: Tensor) -> Rule:
    """The inverse CDF, with the codes in this order [V]."""

    def rule(logits: Tensor, temperatures: Tensor, numbers: Tensor, greedy: bool | None = None) -> Tensor:
        mine = order.to(logits.device)
        return mine[choose(logits[:, mine], temperatures, numbers, greedy)]

    return rule


def likeliest_first(logits: Tensor, temperatures: Tensor, numbers: Tensor, greedy: bool | None = None) -> Tensor:
    """The inverse CDF, with the codes in the order of their own chances."""
    order = logits.argsort(dim=-1, descending=True, stable=True)
    return order.gather(1, choose(logits.gather(1, order), temperatures, numbers, greedy)[:, None])[:, 0]


def gumbel(logits: Tensor, temperatures: Tensor, numbers: Tensor, greedy: bool | None = None) -> Tensor:
    """The highest sum of logit and noise, of which each code has its own: -log(-log(u)), u hashed from the number."""
    noise = -(-hashed(numbers, logits.shape[-1]).log()).log()
    sampled = (temperatures > 0)[:, None]
    scaled = logits.double() / torch.where(sampled, temperatures[:, None], 1.0)
    return torch.where(sampled, scaled + noise, logits.double()).argmax(-1)


def hashed(numbers: Tensor, count: int) -> Tensor:
    """`count` uniform numbers in (0, 1) for each of `numbers` [B]: splitmix64 of their 53 bits, [B, count]."""
    with np.errstate(over="ignore"):
        state = (numbers.cpu().numpy() * 2.0**53).astype(np.uint64)[:, None] * np.uint64(2**11)
        steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        bits = _mixed(_mixed(state) + steps) >> np.uint64(11)
    return torch.from_numpy((bits.astype(np.float64) + 0.5) / 2.0**53).to(numbers.device)


def _mixed(bits: Any) -> Any:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def along_principal(codebook: Tensor) -> Tensor:
    """Codes sorted along the first principal component of what they look like, [V, D]."""
    centred = (codebook - codebook.mean(0)).double()
    return (centred @ torch.linalg.eigh(centred.T @ centred)[1][:, -1]).argsort()


def tour(codebook: Tensor, first: int) -> Tensor:
    """Codes in the order of a walk that always goes on to the nearest code that it has not met."""
    apart = torch.cdist(codebook.double(), codebook.double())
    walk = [first]
    for _ in range(len(codebook) - 1):
        apart[:, walk[-1]] = torch.inf
        walk.append(int(apart[walk[-1]].argmin()))
    return torch.tensor(walk)


def rules_of(codebook: Tensor, first: int) -> dict[str, Rule]:
    """By name. `first`: where the tour begins, the commonest code."""
    return {
        SHIPPED: choose,
        "codes along their first principal component": in_order(along_principal(codebook)),
        "codes in a nearest-neighbour tour": in_order(tour(codebook, first)),
        "likeliest code first": likeliest_first,
        GUMBEL: gumbel,
    }


@contextmanager
def chosen_by(rule: Rule) -> Iterator[None]:
    """Boards choose by this rule."""
    with mock.patch.object(board, "choose", rule):
        yield


# --- The engine, watched --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fixed:
    """A pace that always says the same window; with `hints`, only where there is something to guess."""

    size: int
    hints: bool = False

    def window(self, chances: Any, rows: int) -> int:
        return self.size if not self.hints or chances[:, 0].any() else 1


@dataclass
class Tally:
    """What leaps fed, and by position how many guesses were right, of how many, when all before them was known."""

    length: int
    remembers: bool = True
    fed: int = 0
    right: Tensor = field(init=False)
    decided: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.right, self.decided = (torch.zeros(self.length + 2, dtype=torch.long) for _ in range(2))


class WatchedBoard(Board):
    """A board that tallies its leaps, and forgets the last pass's choices where the tally says so."""

    def __init__(self, decoder: Decoder, stage: Stage, shape: Shape, tally: Tally) -> None:
        super().__init__(decoder, stage, shape, None)
        self.tally = tally

    def _guessed(self, positions: Tensor) -> Tensor:
        self.guess = super()._guessed(positions)
        return self.guess

    def leap(self, window: int, seen: int, is_greedy: bool) -> None:
        at, tally = self.at.clone(), self.tally
        super().leap(window, seen, is_greedy)
        tally.fed += int((self.stop - at).clamp(0, window).sum())
        span = at[:, None] + torch.arange(window, device=at.device)
        decided, span = span < self.at[:, None], span.clamp(max=self.shape.length - 1)
        right = decided & (self.guess == self.tokens.gather(1, span))
        for total, these in ((tally.decided, decided), (tally.right, right)):
            total.index_add_(0, span.flatten().cpu(), these.flatten().long().cpu())
        if not tally.remembers:
            self.known.copy_(self.at)


class WatchedEngine(Engine):
    """An engine with a window that is said, and that learns nothing from the pictures that it drew."""

    neighbours = property(lambda self: None, lambda self, value: None)

    def __init__(self, decoder: Decoder, pace: Any, tally: Tally) -> None:
        super().__init__(decoder)
        self.pace, self.tally = pace, tally

    def board(self, stage: Stage, shape: Shape) -> Board:
        return WatchedBoard(self.decoder, stage, shape, self.tally)


def decoded(
    decoder: Decoder, stage: Stage, plans: Sequence[Plan], window: int, rule: Rule = choose, remembers: bool = True
) -> tuple[list[Decoded], Tally]:
    """Pictures of these plans, so many tokens a pass (1: no leap), chosen by this rule."""
    tally = Tally(stage.length, remembers)
    engine, at_once = WatchedEngine(decoder, Fixed(window), tally), max(1, AT_ONCE // window)
    with chosen_by(rule):
        found = [engine.decode(stage, plans[start : start + at_once]) for start in range(0, len(plans), at_once)]
    return [one for some in found for one in some], tally


# --- What is drawn --------------------------------------------------------------------------------------------------


def blurred(backbone: Any, blur: float = BLUR) -> Any:
    """The same model with noise on the last weights of its image head, so that it is unsure of every picture in its own
    way. (To scale these weights down is to raise the temperature, guidance being linear: nothing new.)"""
    weight = backbone.model.model.generation_head.vision_head.weight
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(SEED))
    weight.data += blur * weight.std() * noise
    return backbone


def random(spread: float) -> Any:
    """A tiny model with random weights, whose codes all look like nothing. Its logits are nearly the same whatever was
    drawn before where the weights are small, and other ones after every other token where they are large."""
    with tempfile.TemporaryDirectory() as folder:
        config = tiny(grid=8, codes=1024)
        make_checkpoint(config, folder, 0, torch.float32, spread, templates=True, guidance=2.0, max_text_tokens=24)
        return load(folder, dtype="float32")


MODELS: dict[str, Callable[[], Any]] = {
    "lab": lambda: load("lab"),
    "blurred": lambda: blurred(load("lab")),
    "random, flat": lambda: random(0.1),
    "random, steep": lambda: random(0.25),
}
COLUMNS = (*[("lab", temperature) for temperature in TEMPERATURES], *[(model, 1.0) for model in [*MODELS][1:]])
TRAINED = COLUMNS[:-2]  # a guess from what is usual says nothing of random weights
HEADS = tuple(f"{model}, {temperature:g}" for model, temperature in COLUMNS)


class Study:
    """One model, some prompts, and the drafts that are asked of it."""

    def __init__(self, backbone: Any, tasks: Sequence[Any], first: int = 0) -> None:
        """`first`: the number of the first prompt, and of its draft's stream."""
        self.backbone, self.tasks, self.first = backbone, tasks, first
        self.length: int = backbone.info.image_tokens
        self.drawn, self.said = cache(self._drawn), cache(self._said)

    @cached_property
    def texts(self) -> list[str]:
        """What the model writes of each prompt, greedily."""
        return self._written([Order(task.prompt, Ask(), 0) for task in self.tasks])

    @cached_property
    def other_texts(self) -> list[str | None]:
        """A sampled text of each prompt in other words, where one of four is."""
        found: list[str | None] = [None] * len(self.tasks)
        for turn in range(4):
            missing = [index for index, text in enumerate(found) if text is None]
            orders = [
                Order(self.tasks[i].prompt, Ask(text=Sample()), self.first + 1000 * (turn + 1) + i) for i in missing
            ]
            for index, text in zip(missing, self._written(orders), strict=True):
                found[index] = text if text != self.texts[index] else None
        return found

    def _written(self, orders: Sequence[Order]) -> list[str]:
        texts = self.backbone._writer.write(orders, self.backbone.max_text_tokens) if orders else []
        return [self.backbone.decode_text(text.tokens).strip() for text in texts]

    def plan(self, index: int, text: str, temperature: float, stream: int, guess: Sequence[int] = ()) -> Plan:
        """A picture of a prompt."""
        drawing = self.backbone.prompts.drawing(self.tasks[index].prompt, text)
        scale, numbers = self.backbone.info.guidance, uniforms(self.first + stream, 1, self.length)
        return Plan(
            (drawing, self.backbone.prompts.undrawn(drawing)), (), range(self.length), 0, temperature, numbers, scale,
            guess,
        )  # fmt: skip

    def _drawn(self, temperature: float, rule: str, kind: str = "") -> list[tuple[int, ...]]:
        """Pictures, drawn one token a pass: of the texts with the numbers that all cells have, or of other ones. Where
        a prompt has no other words, an empty one."""
        words = self.other_texts if "words" in kind else self.texts
        base = 10_000 if "numbers" in kind else 0
        plans = [self.plan(i, text, temperature, base + i) for i, text in enumerate(words) if text is not None]
        found = iter(self._decoded(plans, 1, self.rules[rule])[0])
        return [() if text is None else next(found).tokens for text in words]

    def _decoded(
        self, plans: Sequence[Plan], window: int, rule: Rule, above: int | None = None, remembers: bool = True
    ) -> tuple[list[Decoded], Tally]:
        stage = self.backbone.image_stage
        stage = replace(stage, above=above or stage.above)
        return decoded(self.backbone._decoder, stage, plans, window, rule, remembers)

    @cached_property
    def rules(self) -> dict[str, Rule]:
        # The quantiser compares directions.
        codebook = F.normalize(self.backbone.model.model.vqmodel.quantize.embedding.weight.float().cpu(), dim=-1)
        return rules_of(codebook, self.blank)

    @cached_property
    def blank(self) -> int:
        """The commonest code: the background."""
        plans = [self.plan(index, text, 1.0, index) for index, text in enumerate(self.texts)]
        counts = Counter(token for one in self._decoded(plans, 1, choose)[0] for token in one.tokens)
        return counts.most_common(1)[0][0]

    def guesses(self, kind: str, temperature: float, rule: str) -> list[Sequence[int]] | None:
        """A guessed picture for each prompt, or None: the engine guesses."""
        if kind == "blank token":
            return [[self.blank] * self.length] * len(self.tasks)
        if kind == "commonest token of its place":
            pictures = np.array(self.drawn(temperature, rule))
            everyone = range(len(pictures))
            return [[_commonest(column) for column in pictures[[o for o in everyone if o != i]].T] for i in everyone]
        return list(self.drawn(temperature, rule, kind)) if kind in DRAFTS else None

    def cell(self, temperature: float, rule: str, guess: str, window: int) -> dict[str, Any]:
        """Passes of each picture, those for its prompt included, tokens fed, and how often guesses were right."""
        guesses = self.guesses(guess, temperature, rule)
        here = [i for i in range(len(self.tasks)) if guess not in DRAFTS or (guesses and guesses[i])]
        plans = [self.plan(i, self.texts[i], temperature, i, guesses[i] if guesses else ()) for i in here]
        above = 1 if guess == "token to the left" else None
        found, tally = self._decoded(plans, window, self.rules[rule], above, guess != UNREMEMBERED)
        expected = self.drawn(temperature, rule)
        return {
            "passes": [one.passes for one in found],
            "same": sum(one.tokens == expected[i] for i, one in zip(here, found, strict=True)),
            "fed": tally.fed,
            "right": tally.right[: self.length].tolist(),
            "decided": tally.decided[: self.length].tolist(),
        }

    def entropy(self, temperature: float) -> dict[str, Any]:
        """Bits at every place of what the rule as shipped draws, and how often the commonest code was drawn there: sums
        over the drafts."""
        bits = torch.zeros(self.length, dtype=torch.float64)
        pictures = self.drawn(temperature, SHIPPED)
        for index, tokens in enumerate(pictures):
            plan = replace(self.plan(index, self.texts[index], temperature, index), tokens=tokens, free=())
            (one,) = self.backbone._engine.decode(self.backbone.image_stage, [replace(plan, keep=self.length)])
            logits = self.backbone.image_logits(one.latents, self.backbone.info.guidance).double() / temperature
            bits += torch.distributions.Categorical(logits=logits).entropy() / np.log(2)
        blank = (np.array(pictures) == self.blank).sum(0)
        return {"drafts": len(pictures), "bits": [round(one, 4) for one in bits.tolist()], "blank": blank.tolist()}

    # Texts

    def _said(self, temperature: float, stream: int) -> list[tuple[int, ...]]:
        """A text of each prompt, its end included; temperature 0 is greedy."""
        texts = self._texts(temperature, stream, [()] * len(self.tasks), Fixed(1), Lore())[0]
        return [(*text.tokens, *[self.backbone.text_end()] * text.ended) for text in texts]

    def _texts(
        self, temperature: float, stream: int, guesses: Sequence[Sequence[int]], pace: Fixed, lore: Lore
    ) -> tuple[list[Decoded], Tally]:
        limit = self.backbone.max_text_tokens
        stage, tally = replace(self.backbone._text_stage(), length=limit), Tally(limit)
        engine = WatchedEngine(self.backbone._decoder, pace, tally)
        engine.lore = lore
        with mock.patch.object(lore, "learn"):  # what these texts teach is another question
            plans = [
                Plan((self.backbone._text_ids(task.prompt),), (), range(limit), 0, temperature,
                     uniforms(self.first + stream + index, 0, limit), guess=guess)
                for index, (task, guess) in enumerate(zip(self.tasks, guesses, strict=True))
            ]  # fmt: skip
            # One by one: beside others a text leaps where only they have something to guess.
            return [engine.decode(stage, [plan])[0] for plan in plans], tally

    def text_cell(self, temperature: float, kind: str, lore: Lore) -> dict[str, Any]:
        """Passes of each text, those for its prompt included."""
        nothing: list[Sequence[int]] = [()] * len(self.tasks)
        guesses = {
            SAMPLED: self.said(temperature, 20_000),
            BOTH: self.said(temperature, 20_000),
            GREEDY: self.said(0, 0),
        }
        pace = Fixed(1) if kind == NONE else Fixed(TEXT_WINDOW, hints=kind != JACOBI)
        known = lore if kind in (LORE, BOTH) else Lore()
        texts, tally = self._texts(temperature, 0, guesses.get(kind, nothing), pace, known)
        said = [(*text.tokens, *[self.backbone.text_end()] * text.ended) for text in texts]
        return {
            "passes": [text.passes for text in texts],
            "tokens": [len(text) for text in said],
            "same": sum(map(tuple.__eq__, said, self.said(temperature, 0))),
            "fed": tally.fed,
        }


def _commonest(tokens: Any) -> int:
    return Counter(tokens.tolist()).most_common(1)[0][0]


# --- Measuring ------------------------------------------------------------------------------------------------------

ABOVE, UNREMEMBERED = "token above", "token above, always"
DRAFTS = ("a draft of the same text, other numbers", "a draft of other words, other numbers", "a draft of other words")
GUESSES = (ABOVE, UNREMEMBERED, "token to the left", "blank token", "commonest token of its place", *DRAFTS)
NONE, JACOBI, SAMPLED = "none: one token a pass", "the last pass's choices only", "another draft, sampled"
GREEDY, LORE, BOTH = (
    "another draft, greedy",
    "texts of other prompts",
    "another draft, sampled, and texts of other prompts",
)
TEXTS = (NONE, JACOBI, LORE, SAMPLED, GREEDY, BOTH)
RULES = tuple(rules_of(torch.eye(2), 0))
LONG, MIDDLE = 64, 16  # windows: of a whole picture, and what a processor takes at once

# What each part measures: (model, temperature, rule, guess, window); of texts and entropy (model, temperature, kind).
PARTS: dict[str, list[tuple[Any, ...]]] = {
    "rules": [(*column, rule, ABOVE, MIDDLE) for column in COLUMNS for rule in RULES],
    "greedy": [(model, 0.0, SHIPPED, ABOVE, window) for model in MODELS for window in (MIDDLE, LONG)],
    "places": [(*column, "entropy") for column in COLUMNS],
    "texts": [("lab", t, kind) for t in TEXT_TEMPERATURES for kind in TEXTS],
    "passes": [(*column, SHIPPED, ABOVE, window) for column in COLUMNS for window in WINDOWS],
    "guesses": [(*column, SHIPPED, guess, MIDDLE) for column in TRAINED for guess in GUESSES],
}


def named(cell: Sequence[Any]) -> str:
    return " | ".join(f"{part:g}" if isinstance(part, float) else str(part) for part in cell)


def measure(
    parts: Sequence[str], block: int, known: Mapping[str, Any], say: Callable[[str], None]
) -> Iterator[tuple[str, Any]]:
    """Each cell of these parts that is not known of this block of prompts, as it is measured."""
    first = block * IN_BLOCK
    tasks = scenes.tasks(first + IN_BLOCK, SEED)[first:]
    studies, habits = cache(lambda model: Study(MODELS[model](), tasks, first)), cache(_habits)
    for cell in dict.fromkeys(cell for part in parts for cell in PARTS[part]):
        name, (model, temperature, *what) = named(cell), cell
        if name in known:
            continue
        say(f"block {block + 1}: {name}")
        study = studies(model)
        if what == ["entropy"]:
            yield name, study.entropy(temperature)
        elif len(what) == 1:
            yield name, study.text_cell(temperature, what[0], habits())
        else:
            yield name, study.cell(temperature, *what)


def look(backbone: Any, prompts: int) -> list[str]:
    """Passes of a picture with a model of whoever asks: by window and rule, at temperature 1."""
    study = Study(backbone, scenes.tasks(prompts, SEED))
    cells = {(w, rule): study.cell(1.0, rule, ABOVE, w) for w in (MIDDLE, LONG) for rule in (SHIPPED, GUMBEL)}
    rows = [
        [window, rule, _passes(cell), f"{cell['fed'] / prompts:.0f}", f"{cell['same']} of {prompts}"]
        for (window, rule), cell in cells.items()
    ]
    return _table(("window", "rule", f"passes for {study.length} tokens", "tokens fed", "the same tokens"), rows)


def _habits() -> Lore:
    """What texts of other prompts taught: two of each, greedy and sampled."""
    study, lore = Study(load("lab"), scenes.tasks(IN_BLOCK, OTHERS)), Lore()
    for text in (*study.said(0, 0), *study.said(1.0, 0)):
        lore.learn(text)
    return lore


def joined(data: Mapping[str, Any]) -> dict[str, Any]:
    """The cells of all blocks as if they were one: what is said of each draft in a row, all else added up."""
    cells: dict[str, Any] = {}
    for block in data["blocks"]:
        for name, cell in block.items():
            cells[name] = {key: _added(key, cells[name][key], cell[key]) for key in cell} if name in cells else cell
    return cells


def _added(key: str, one: Any, two: Any) -> Any:
    if key in ("passes", "tokens"):
        return [*one, *two]
    return [a + b for a, b in zip(one, two, strict=True)] if isinstance(one, list) else one + two


def written(data: Mapping[str, Any]) -> str:
    """The data as JSON, a cell a line."""
    blocks = []
    for block in data["blocks"]:
        blocks.append(",\n".join(f"{json.dumps(name)}: {json.dumps(cell)}" for name, cell in block.items()))
    head = "".join(f"{json.dumps(key)}: {json.dumps(value)},\n" for key, value in data.items() if key != "blocks")
    return "{\n" + head + '"blocks": [\n{\n' + "\n},\n{\n".join(blocks) + "\n}\n]\n}\n"


# --- The page -------------------------------------------------------------------------------------------------------


def filled(page: str, data: Mapping[str, Any]) -> str:
    """The page with its tables. Raises KeyError for a name that is none."""
    cells = joined(data)

    def table(match: re.Match[str]) -> str:
        name, _, rest = match[1].partition("-")
        lines = TABLES[name](cells, *rest.split("-")) if rest else TABLES[name](cells)
        return "\n".join([f"<!-- leaps {match[1]} -->", *lines, "<!-- end -->"])

    return BLOCK.sub(table, page)


def _of(data: Mapping[str, Any], *cell: Any) -> dict[str, Any] | None:
    return data.get(named(cell))


def interval(values: Sequence[float], others: Sequence[float] | None = None) -> tuple[float, float, float]:
    """The mean over prompts, or its ratio to that of `others` (paired), with the 95 % interval of the bootstrap."""
    picked = np.random.default_rng(0).integers(0, len(values), (5000, len(values)))
    means = np.asarray(values, dtype=float)[picked].mean(1)
    mean = float(np.mean(values))
    if others is not None:
        means /= np.asarray(others, dtype=float)[picked].mean(1)
        mean /= float(np.mean(others))
    low, high = np.quantile(means, (0.025, 0.975))
    return mean, float(low), float(high)


def _passes(cell: Mapping[str, Any] | None) -> str:
    return "not measured" if cell is None else "{:.1f} [{:.1f}, {:.1f}]".format(*interval(cell["passes"]))


def _median(cell: Mapping[str, Any] | None) -> str:
    return "not measured" if cell is None else f"{np.median(cell['passes']):.0f} ({max(cell['passes'])})"


def _fed(cell: Mapping[str, Any] | None) -> str:
    return "not measured" if cell is None else f"{cell['fed'] / len(cell['passes']):.0f}"


def _change(cell: Mapping[str, Any] | None, base: Mapping[str, Any] | None) -> str:
    if cell is None or base is None:
        return "not measured"
    ratio, low, high = (100 * (share - 1) for share in interval(cell["passes"], base["passes"]))
    return f"{_passes(cell)}, {ratio:+.0f} % [{low:+.0f}, {high:+.0f}]"


def _by_window(data: Mapping[str, Any]) -> list[str]:
    return _windows(data, "window: passes", _passes)


def _most(data: Mapping[str, Any]) -> list[str]:
    return _windows(data, "window: median (most)", _median)


def _work(data: Mapping[str, Any]) -> list[str]:
    return _windows(data, "window: tokens fed", _fed)


def _windows(data: Mapping[str, Any], head: str, shown: Callable[[Any], str]) -> list[str]:
    rows = [[window, *(shown(_of(data, *column, SHIPPED, ABOVE, window)) for column in COLUMNS)] for window in WINDOWS]
    return _table((head, *HEADS), rows)


def _by_guess(data: Mapping[str, Any]) -> list[str]:
    rows = [[guess, *(_passes(_of(data, *c, SHIPPED, guess, MIDDLE)) for c in TRAINED)] for guess in GUESSES]
    return _table((f"guess (windows of {MIDDLE})", *HEADS[: len(TRAINED)]), rows)


def _by_rule(data: Mapping[str, Any]) -> list[str]:
    def cell(column: tuple[str, float], rule: str) -> str:
        found, base = (_of(data, *column, one, ABOVE, MIDDLE) for one in (rule, SHIPPED))
        return _passes(found) if rule == SHIPPED else _change(found, base)

    rows = [[rule, *(cell(column, rule) for column in COLUMNS)] for rule in RULES]
    return _table((f"rule (windows of {MIDDLE})", *HEADS), rows)


def _greedy(data: Mapping[str, Any]) -> list[str]:
    rows = [
        [model, *(_passes(_of(data, model, 0.0, SHIPPED, ABOVE, window)) for window in (MIDDLE, LONG))]
        for model in MODELS
    ]
    return _table(("greedy", f"windows of {MIDDLE}", f"of {LONG}"), rows)


def _entropy(data: Mapping[str, Any]) -> list[str]:
    rows = []
    for (model, temperature), head in zip(COLUMNS, HEADS, strict=True):
        found, cell = _of(data, model, temperature, "entropy"), _of(data, model, temperature, SHIPPED, ABOVE, LONG)
        if found is None or cell is None:
            rows.append([head, *["not measured"] * 5])
            continue
        right = sum(cell["right"]) / sum(cell["decided"])
        bits, blank = (np.array(found[key]) / found["drafts"] for key in ("bits", "blank"))
        rows.append(
            [head, f"{bits.mean():.2f}", f"{bits.max():.2f}", _share(blank.mean()), _share(right),
             f"{LONG / np.mean(cell['passes']):.1f}"]
        )  # fmt: skip
    return _table(("", "bits a token", "most bits of a place", "blank tokens", "guesses right", "tokens a pass"), rows)


def _places(data: Mapping[str, Any], what: str, model: str, temperature: str) -> list[str]:
    cell = _of(data, model, float(temperature), *(("entropy",) if what == "bits" else (SHIPPED, ABOVE, LONG)))
    if cell is None:
        return ["not measured"]
    if what == "bits":
        shown = [f"{bits / cell['drafts']:.2f}".removeprefix("0") for bits in cell["bits"]]
    else:  # place 0 is chosen with the prompt, and never guessed
        pairs = zip(cell["right"], cell["decided"], strict=True)
        shown = [_share(right / decided) if decided else "" for right, decided in pairs]
    side = round(len(shown) ** 0.5)
    rows = [[row + 1, *shown[row * side : (row + 1) * side]] for row in range(side)]
    return _table(("row", *map(str, range(1, side + 1))), rows)


def _by_text(data: Mapping[str, Any]) -> list[str]:
    def cell(temperature: float, kind: str) -> str:
        found = _of(data, "lab", temperature, kind)
        if found is None:
            return "not measured"
        return f"{_passes(found)}, {sum(found['tokens']) / sum(found['passes']):.1f} a pass"

    rows = [[kind, *(cell(t, kind) for t in TEXT_TEMPERATURES)] for kind in TEXTS]
    return _table(("guess", *(f"temperature {t:g}" for t in TEXT_TEMPERATURES)), rows)


def _same(data: Mapping[str, Any]) -> list[str]:
    """How many drafts came out as without a leap."""
    cells = [cell for cell in data.values() if "same" in cell]
    drafts, same = sum(len(cell["passes"]) for cell in cells), sum(cell["same"] for cell in cells)
    prompts = max((len(cell["passes"]) for cell in cells), default=0)
    return [
        f"{prompts} prompts of `scenes`, seed {SEED}, a draft of each in each cell, float32 on a processor. {same:,} "
        f"of {drafts:,} drafts with leaps have the very tokens of the same draft without."
    ]


TABLES: dict[str, Callable[..., list[str]]] = {
    "same": _same, "windows": _by_window, "median": _most, "fed": _work, "guesses": _by_guess, "rules": _by_rule,
    "greedy": _greedy, "entropy": _entropy, "places": _places, "texts": _by_text,
}  # fmt: skip


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, *rows)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


def _share(share: float) -> str:
    return f"{share:.2f}".removeprefix("0")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--measure", action="store_true", help="measure first what the data lack")
    parser.add_argument("--part", action="append", choices=sorted(PARTS), help="only this part (may be repeated)")
    parser.add_argument("--anew", action="store_true", help="measure also what the data have")
    parser.add_argument("--blocks", type=int, default=BLOCKS, help=f"how many times {IN_BLOCK} prompts ({BLOCKS})")
    parser.add_argument("--check", action="store_true", help="only say whether the page says what its data say")
    parser.add_argument("--model", help="look at this model instead: a name, or the folder of a checkpoint")
    parser.add_argument("--prompts", type=int, default=8, help="how many with --model (8)")
    options = parser.parse_args(arguments)
    if options.model:
        print("\n".join(look(load(options.model), options.prompts)))
        return 0
    if options.measure:
        keep(options.part or list(PARTS), options.blocks, options.anew)
    before = PAGE.read_text()
    after = filled(before, json.loads(DATA.read_text()))
    if options.check:
        if after != before:
            print("docs/leaps.md does not say what its data say; run python tools/leaps.py", file=sys.stderr)
        return int(after != before)
    PAGE.write_text(after)
    return 0


def keep(parts: Sequence[str], blocks: int, anew: bool) -> None:
    """Measure these parts into the data, a cell at a time."""
    head, began = {"seed": SEED, "prompts in a block": IN_BLOCK, "blur": BLUR}, time.process_time()
    data = json.loads(DATA.read_text()) if DATA.exists() else {}
    found = data["blocks"] if {key: data.get(key) for key in head} == head else []
    found += [{} for _ in range(len(found), blocks)]
    if anew:
        gone = {named(cell) for part in parts for cell in PARTS[part]}
        found[:blocks] = [{name: cell for name, cell in one.items() if name not in gone} for one in found[:blocks]]

    def say(name: str) -> None:
        print(f"{time.process_time() - began:4.0f} s of CPU: {name}", file=sys.stderr, flush=True)

    for block in range(blocks):
        for name, cell in measure(parts, block, found[block], say):
            found[block][name] = cell
            partial = DATA.with_suffix(".json.tmp")
            partial.write_text(written({**head, "blocks": found}))
            os.replace(partial, DATA)
    print(f"{time.process_time() - began:4.0f} s of CPU in all", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
