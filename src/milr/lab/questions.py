"""Yes/no questions about pages, with their true answers: what teaches and measures the understanding path.

Knows meanings and pages. The question about a whole prompt has the words that the critic `self` asks.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from milr.lab.curriculum import contradict, is_test_prompt
from milr.lab.detector import Page, check
from milr.lab.language import plain_phrase, usual, write_prompt
from milr.lab.lexicon import with_article
from milr.lab.world import NO_FRAME, Group, Meaning, Relation, holds

SHOWS = "Does this picture show "


@dataclass(frozen=True)
class Question:
    """A question and what it asks: all of a meaning (`whole`), or its only group, relation or frame."""

    text: str
    asked: Meaning
    whole: bool = False

    def is_true_of(self, page: Page) -> bool:
        """The answer for this page. One of a thing asks for at least one; several ask for exactly so many."""
        if self.whole:
            return all(found.passed for found in check(self.asked, page))
        if self.asked.relations:
            (relation,) = self.asked.relations
            sides = [_members(self.asked.groups[side], page) for side in (relation.first, relation.second)]
            return all(sides) and all(holds(relation.kind, a, b) for a in sides[0] for b in sides[1])
        if self.asked.groups:
            (group,) = self.asked.groups
            number = len(_members(group, page))
            return number == group.count if group.count > 1 else number >= 1
        return page.frame == self.asked.frame


def _members(group: Group, page: Page) -> list[tuple[float, float]]:
    """Centres of what this group may mean on the page."""
    return [f.centre for f in page.found if f.noun == group.noun and group.colour in (None, *f.looks)]


def write_question(meaning: Meaning, rng: random.Random, prompt: str) -> Question:
    """A question whose answer is 'yes' for a picture of `meaning`: about a part of it, or about the whole prompt."""
    kinds = ["whole", "group"]
    if meaning.relations:
        kinds.append("relation")
    if meaning.frame not in (None, NO_FRAME):
        kinds.append("frame")
    kind = rng.choice(kinds)
    if kind == "whole":
        return Question(f"{SHOWS}{prompt.strip().rstrip('.?!')}?", meaning, whole=True)
    if kind == "frame":
        return Question(f"Is there {with_article(str(meaning.frame))} frame?", Meaning((), frame=meaning.frame))
    if kind == "relation":
        relation = meaning.relations[0]
        first, second = (
            Group(meaning.groups[side].noun, None, meaning.groups[side].count)
            for side in (relation.first, relation.second)
        )
        names = [f"the {usual(group.noun, group.count > 1)}" for group in (first, second)]
        text = f"{'Are' if first.count > 1 else 'Is'} {names[0]} {relation.kind} {names[1]}?"
        return Question(text, Meaning((first, second), (Relation(0, relation.kind, 1),)))
    group = rng.choice(meaning.groups)
    if group.count > 1:
        return Question(f"Are there {rng.choice(['', 'exactly '])}{plain_phrase(group)}?", Meaning((group,)))
    return Question(f"Is there {plain_phrase(group)}?", Meaning((group,)))


def ask(
    meaning: Meaning, prompt: str, page: Page, rng: random.Random, of_test_prompts: bool = False
) -> tuple[Question, bool]:
    """A question about a page that shows `meaning`, or tried to, and its true answer: 'yes' half of the time.

    A 'no' is about a meaning that differs in one thing, or about what went wrong on the page. No question asks for a
    whole test prompt, unless `of_test_prompts`: so it was when the checkpoint that is shipped was trained.
    """
    wanted = rng.random() < 0.5
    while True:
        asked, words = meaning, prompt
        if not wanted and rng.random() < 0.7:
            asked = contradict(meaning, rng)
            words = write_prompt(asked, rng)
            if is_test_prompt(words) and not of_test_prompts:
                continue
        question = write_question(asked, rng, words)
        if question.is_true_of(page) == wanted:
            return question, wanted
        if rng.random() < 0.1:  # nothing true is left to ask of a badly drawn page
            wanted = not wanted
