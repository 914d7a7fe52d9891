"""Sampling without replacement: the next beginning of a text, none of those that were there before.

A trie of the beginnings so far. Where the model was seen to choose, the probabilities of all next tokens are known, and
with them the share of a node's texts that is left:

    left(a beginning that was used) = 0      left(node) = 1 - sum over tokens a of p(a) (1 - left(a))

The next beginning walks down from the root with p(a) left(a), until it takes a token that nobody took there: from then
on whatever the model writes is new. That is an exact draw from the model's texts, given that they begin with none of
the beginnings so far (Shi, Bieber and Sutton 2020, "Incremental sampling without replacement for sequence models"), up
to tokens outside the `KEPT` most probable. Knows probabilities and tokens, no model and no search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

KEPT = 4096  # next tokens a node remembers: all of a small vocabulary; of a large one all but some millionths
LEAST = 1e-6  # share of all texts that must be left: below it, rounding in the logits decides


@dataclass
class _Node:
    """What may follow a beginning: the most probable tokens with their chances, and the nodes that were gone to."""

    tokens: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    chances: np.ndarray = field(default_factory=lambda: np.empty(0))
    children: dict[int, _Node] = field(default_factory=dict)
    is_used: bool = False

    def open_chances(self) -> np.ndarray:
        """p(a) left(a) of each token."""
        chances = self.chances.copy()
        for token, child in self.children.items():
            chances[self.tokens == token] *= child.left()
        return chances

    def left(self) -> float:
        return 0.0 if self.is_used else float(self.open_chances().sum())


class Untried:
    """The beginnings that were used, and how to draw another one."""

    def __init__(self) -> None:
        self._root = _Node()

    def use(self, tokens: Sequence[int], logits: Tensor) -> None:
        """No text that begins so is drawn again. logits: [len(tokens), V], behind each token, over the temperature."""
        values, names = torch.softmax(logits.detach().double(), dim=-1).topk(min(KEPT, logits.shape[-1]), dim=-1)
        node = self._root
        for token, chances, allowed in zip(tokens, values.cpu().numpy(), names.cpu().numpy(), strict=True):
            if len(node.tokens) == 0:
                node.tokens, node.chances = allowed, chances
            node = node.children.setdefault(token, _Node())
            if node.is_used:
                return
        node.is_used = True
        node.children.clear()

    def draw(self, rng: np.random.Generator) -> tuple[int, ...] | None:
        """The first tokens of the next text; what the model writes after them is new. None where nothing is left."""
        words: list[int] = []
        node: _Node | None = self._root
        if self._root.left() < LEAST:
            return None
        while node is not None:
            cumulative = node.open_chances().cumsum()
            token = int(node.tokens[np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")])
            words.append(token)
            node = node.children.get(token)
        return tuple(words)

    def draw_apart(self, count: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
        """The first tokens of so many next texts, of which none begins as another does; fewer where no more is left.

        The first is drawn as `draw` draws. What follows a beginning is not known yet, so two texts that begin alike
        might become the same plan: each takes all that begin so for itself, among these.
        """
        held: list[tuple[_Node, int]] = []
        found: list[tuple[int, ...]] = []
        while len(found) < count and (words := self.draw(rng)) is not None:
            found.append(words)
            node = self._root
            for token in words[:-1]:
                node = node.children[token]
            node.children[words[-1]] = _Node(is_used=True)
            held.append((node, words[-1]))
        for node, token in held:
            del node.children[token]
        return found
