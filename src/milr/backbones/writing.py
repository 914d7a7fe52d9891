"""The text stage: a model writes its reasoning, token by token, from where a search lets it begin.

Knows the engine and what a request is in tokens; no model and no picture.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from milr.backbones.board import Stage
from milr.backbones.decoding import Decoded, Engine, Plan
from milr.backbones.sampling import prefix_length, uniforms
from milr.drafts import Choice, Forced, Order, Sample, Tokens, UserError

# What a model is asked for that was not made to write reasonings.
REASONING = (
    "Picture the image that this prompt asks for: {prompt}\n"
    "Describe what is to be seen: every object, the attributes that the prompt gives, and how the objects "
    "relate to each other. Use at most 50 words and add nothing that the prompt does not ask for."
)


class Controls:
    """The control tokens of a tokenizer: a prompt that holds one is refused, a reasoning that spells one loses it."""

    def __init__(self, tokenizer: Any) -> None:
        added = tokenizer.added_tokens_decoder.values()
        control = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
        self._pattern = re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))))

    def clean(self, reasoning: str) -> str:
        """A reasoning as it goes into a prompt: nothing in it may be read as a control token."""
        while self._pattern.search(reasoning):
            reasoning = self._pattern.sub("", reasoning)
        return reasoning.strip()

    def check(self, text: str) -> None:
        """Refuse what a prompt must not hold."""
        if not text.strip():
            raise UserError("The prompt is empty; say what to draw.")
        found = self._pattern.search(text)
        if found:
            raise UserError(f"The prompt holds {found[0]!r}, a control token of this model; write it in other words.")


def readable(text: str) -> str:
    """Without lone surrogates (an undecodable byte of a command line), which have no UTF-8 form."""
    return text.encode("utf-8", "replace").decode("utf-8")


class Writer:
    """Writes texts. `request` makes a prompt the tokens that ask for a reasoning; `stage` ends with the text's end."""

    def __init__(self, engine: Engine, stage: Stage, request: Callable[[str], Sequence[int]]) -> None:
        assert stage.end is not None
        self._engine, self._stage, self._request, self.end = engine, stage, request, stage.end

    def write(self, orders: Sequence[Order], limit: int) -> list[Decoded]:
        """The text of each order, of at most `limit` tokens, with the latents that were asked for. A text that is
        forced to its end only runs where its latents are."""
        plans, closed = [], []
        for order in orders:
            choice = order.ask.text
            tokens = choice.tokens[: limit + 1] if isinstance(choice, Forced) else ()
            closed.append(self.end in tokens)
            tokens = tokens[: tokens.index(self.end)] if closed[-1] else tokens[:limit]
            free = range(0) if closed[-1] else range(len(tokens), limit)
            keep = prefix_length(order.ask.text_ratio, limit if free else len(tokens))
            numbers = uniforms(order.stream, 0, limit)
            guess = self._guess(order.earlier, tokens)
            prompts = (self._request(order.prompt),)
            plans.append(Plan(prompts, tokens, free, keep, temperature_of(choice), numbers, guess=guess))
        texts = []
        decoded = self._engine.decode(replace(self._stage, length=limit), plans)
        for order, was_closed, text in zip(orders, closed, decoded, strict=True):
            keep = prefix_length(order.ask.text_ratio, len(text.tokens))
            texts.append(replace(text, ended=text.ended or was_closed, latents=text.latents[:keep]))
        return texts

    def work(self, text: Decoded) -> int:
        """Floating point operations of a text: it is read once, and the head chose some of its tokens."""
        read = self._engine.decoder.work(text.sampled + text.prefilled)
        return read + 2 * self._stage.table.numel() * text.sampled

    def _guess(self, earlier: Sequence[Tokens], tokens: Sequence[int]) -> tuple[int, ...]:
        """The earlier text that begins most like these tokens."""
        said = [(*drawn.text_tokens, self.end) for drawn in earlier]
        return max(said, key=lambda text: _alike(text, tokens), default=())


def temperature_of(choice: Choice) -> float:
    """The softmax temperature of what a choice leaves to the model; 0 is greedy."""
    then = getattr(choice, "then", choice)
    return then.temperature if isinstance(then, Sample) else 0.0


def _alike(some: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    pairs = zip(some, others, strict=False)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(some), len(others)))
