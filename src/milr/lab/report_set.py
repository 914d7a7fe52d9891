"""A set of prompts for reports that shares no meaning with anything that was trained on, tuned on or looked at.

    python -m milr.lab.report_set --out FILE    make the set: the same lines every time
    python -m milr.lab.report_set --check FILE  list all that was met before, and count what the set shares with it

The world is small, so other words are not enough: two prompts are the same here where they *mean* the same, whatever
the wording and the order of things in it; a riddle means its clues too. What was met before is listed, not remembered:
the training's generator is seeded, so every prompt and every question of the checkpoint that is shipped can be made
again (two minutes); so can the prompts of every command in tools/results.sh, of the recipes and of the model's card.
Of a riddle that was tuned on, its noun and first clue count already: the first clue decides how a riddle is read
(`curriculum.misread`). What of the set stands between quotes in a file of the repository is counted, too.

Of three of the eight categories nothing is left (every single thing, number and colour was trained on), so the set has
five. Most of its prompts ask for a frame: what is rare in the world is what is new.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from milr.lab.curriculum import (
    CATEGORIES,
    Item,
    is_test_prompt,
    make_item,
    training_items,
    training_sample,
    unseen_items,
)
from milr.lab.language import parse
from milr.lab.questions import SHOWS
from milr.lab.world import OPPOSITE, Meaning

REPORTED = ("two", "position", "attribute", "riddle", "composition")
SEED, COUNT = 2, 600  # a first try, of which twelve prompts were read, was thrown away
DEVELOPMENT = ("riddle", "composition", "position", "attribute", "counting")

# (seed, prompts, categories) of every list that a command of the repository makes, and of the development seeds, of
# which a script that was not kept took an unknown number: 300 is the most that one command takes by default.
TUNED_ON = ((921, 120, DEVELOPMENT), (922, 120, DEVELOPMENT), (941, 200, CATEGORIES))
LOOKED_AT = (
    *((seed, 300, CATEGORIES) for seed in range(901, 1000)),
    *((seed, 600, CATEGORIES) for seed in (7, 101, 102, *range(31001, 31101))),
)
TRAINED_CRITIC = (2000, 1)  # prompts of the training side on whose drafts the critic 'learned' was fitted, seed

Key = tuple[Any, ...]


def words_of(prompt: str) -> str:
    """A prompt's words: what the split into training and test goes by."""
    return " ".join(re.findall(r"\w+", prompt.lower()))


def key_of(meaning: Meaning, lore: Iterable[Iterable[str]]) -> Key:
    """Equal for prompts that ask for the same: things in any order, 'a above b' as 'b below a', clues in any order."""
    groups = [
        (group.noun, group.colour or "", group.count, tuple(sorted(clues)))
        for group, clues in zip(meaning.groups, lore, strict=True)
    ]
    relation: Key = ()
    if meaning.relations:
        (found,) = meaning.relations
        first, second = groups[found.first], groups[found.second]
        relation = min((first, found.kind, second), (second, OPPOSITE[found.kind], first))
    return tuple(sorted(groups)), relation, meaning.frame


@dataclass
class Met:
    """What was met before: words, meanings, and (noun, first clue) of riddles."""

    words: set[str] = field(default_factory=set)
    meanings: set[Key] = field(default_factory=set)
    clues: set[tuple[str, str]] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, item: Item, *, with_clues: bool = False) -> None:
        self.words.add(words_of(item.prompt))
        self.meanings.add(key_of(item.meaning, item.lore))
        if with_clues:
            self.clues |= _first_clues(item)
        self.counts[kind] += 1

    def holds(self, item: Item) -> bool:
        """Whether the prompt shares its words, its meaning, or a riddle's first clue with anything here."""
        return (
            words_of(item.prompt) in self.words
            or key_of(item.meaning, item.lore) in self.meanings
            or bool(_first_clues(item) & self.clues)
        )


def _first_clues(item: Item) -> set[tuple[str, str]]:
    return {(group.noun, clues[0]) for group, clues in zip(item.meaning.groups, item.lore, strict=True) if clues}


def met_in_training(met: Met) -> None:
    """Every prompt that the checkpoint that is shipped read, drew or was asked about, in all stages."""
    from milr.lab.train import Recipe, plans
    from milr.lab.train_lm import BUCKETS, asked_page, pool_rng

    for stage, plan in plans(Recipe()).items():
        for number in range(math.ceil(plan.steps / BUCKETS)):
            rng = pool_rng(plan, number)
            for _ in range(BUCKETS * (plan.diet.drawings + plan.diet.readings)):
                met.add(f"{stage}: read or drawn", training_sample(rng, plan.errors).item)
            for _ in range(BUCKETS * plan.diet.questions):
                shown = asked_page(rng, plan.even_pages, of_test_prompts=True)
                met.add(f"{stage}: pages asked about", shown.item)
                for question, _ in shown.questions:
                    if question.whole:
                        prompt = question.text.removeprefix(SHOWS).rstrip("?")
                        side = "test" if is_test_prompt(prompt) else "training"
                        met.add(f"{stage}: whole prompts asked, {side} side", _plain(prompt, question.asked))
    for item in training_items(*TRAINED_CRITIC):
        met.add("critic 'learned'", item)


def met_in_development(met: Met) -> None:
    """Every prompt of the lists that were tuned on or looked at."""
    for seed, count, categories in TUNED_ON:
        for item in unseen_items(count, seed, categories):
            met.add("tuned on", item, with_clues=True)
    for seed, count, categories in LOOKED_AT:
        for item in unseen_items(count, seed, categories):
            met.add("looked at or reported before", item)


def everything_met() -> Met:
    """All of it; two minutes."""
    met = Met()
    met_in_training(met)
    met_in_development(met)
    return met


def make_set(met: Met) -> Iterator[dict[str, str]]:
    """The lines of the set: prompts of the world's own generator but those that share anything; categories in turn."""
    rng, chosen = random.Random(f"milr-lab-report-{SEED}-unread"), Met()
    for number in range(COUNT):
        category = REPORTED[number % len(REPORTED)]
        item = make_item(category, rng)
        while (
            not is_test_prompt(item.prompt) or parse(item.prompt).meaning != item.meaning or _is_met(item, met, chosen)
        ):
            item = make_item(category, rng)
        chosen.add(category, item)
        yield {"id": f"lab-report-{SEED}-{number}", "prompt": item.prompt, "category": category}


def _is_met(item: Item, *where: Met) -> bool:
    return any(met.holds(item) for met in where)


def quoted_in(root: Path, lines: Sequence[Mapping[str, str]]) -> list[str]:
    """Prompts of the set whose words or meaning stand between quotes in a file of the repository."""
    met = Met()
    for pattern in ("*.md", "Makefile", "docs/**/*.md", "recipes/*", "tools/*", "tests/**/*.py", "src/**/*.py"):
        for file in sorted(root.glob(pattern)):
            for quoted in re.findall(r"[\"'“`]([^\"'“”`\n]{6,200})[\"'”`]", file.read_text(encoding="utf-8")):
                meaning = parse(quoted).meaning if " " in quoted else None
                if meaning is not None:
                    met.add("quoted", _plain(quoted, meaning))
    found = []
    for line in lines:
        meaning = parse(line["prompt"]).meaning
        assert meaning is not None
        # A riddle is not the name of its answer: only its words count.
        is_quoted = words_of(line["prompt"]) in met.words
        if is_quoted or (line["category"] != "riddle" and met.holds(_plain(line["prompt"], meaning))):
            found.append(line["prompt"])
    return found


def _plain(prompt: str, meaning: Meaning) -> Item:
    return Item("", prompt, meaning, ((),) * len(meaning.groups))


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Make or check the set of prompts that shares nothing with what was met."
    )
    parser.add_argument("--out", type=Path, help="write the set as JSON lines")
    parser.add_argument("--check", type=Path, help="exit 1 unless this file is the set")
    options = parser.parse_args()
    met = everything_met()
    for kind, count in met.counts.items():
        print(f"{count:8,} {kind}")
    print(f"{len(met.words):8,} wordings, {len(met.meanings):,} meanings in all")
    lines = list(make_set(met))
    content = "".join(json.dumps(line) + "\n" for line in lines)
    framed = sum(
        " frame" in line["prompt"] or " border" in line["prompt"] or "framed" in line["prompt"] for line in lines
    )
    print(f"the set: {len(lines)} prompts, {framed} of them with a frame; none shares words or meaning with these")
    quoted = quoted_in(Path(__file__).parents[3], lines)
    print(f"quoted in a file of the repository: {len(quoted)} {quoted[:3] or ''}")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(content, encoding="utf-8")
    if options.check is not None:
        same = options.check.read_text(encoding="utf-8") == content
        print(f"{options.check} is {'' if same else 'NOT '}the set")
        sys.exit(not same)


if __name__ == "__main__":
    main()
