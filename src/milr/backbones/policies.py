"""How a model makes its choices from latents, as a search sees it: p(choices | z), whatever kind of model it is.

A draft is a chain of choices. Behind the first of them stand latents z, which a search moves; behind each, other
choices that the model might have made. What a choice is (a token; the noise that a picture is made of) is the policy's
affair:

    latents     z^0, what stands behind the choices of a draft
    drew        the choices of a draft, as values
    score       grad_z log p(values | z)
    values      choices from p(. | z)
    choice      what asks for a draft that begins with these values
    others      what else a draft could have chosen, and how much the model believes that it should have

Searches never ask what kind a model is. Knows drafts and heads; no model, no prompt, no search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from milr.backbones.sampling import choose
from milr.drafts import Choice, Draft, Drawn, Forced, Greedy, Sample

if TYPE_CHECKING:
    from milr.backbones.base import Backbone

ALTERNATIVES = 8  # of each choice: the most probable ones
LANES = 64  # numbers that any CPU works out together, or a multiple of that


class Others(NamedTuple):
    """What else could have been chosen: by position, then the likeliest first. One number each of `positions`, `tokens`
    (what to choose there) and `beliefs` q = p(other) / (p(other) + p(chosen)): the model's own belief that it should
    have been that, if this choice is to blame."""

    positions: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    beliefs: npt.NDArray[np.float64]

    def at(self, positions: Iterable[int]) -> Others:
        """Those at these positions."""
        chosen = np.isin(self.positions, list(positions))
        return Others(self.positions[chosen], self.tokens[chosen], self.beliefs[chosen])


class Policy(Protocol):
    """p(choices | z) of one kind of choices: a draft's text or its picture."""

    def latents(self, drawn: Drawn) -> Tensor:
        """z^0 [T, ...]: what stands behind the first choices of a draft; empty if they were not asked for."""
        ...

    def count(self, drawn: Drawn) -> int:
        """How many choices of this kind the draft has; ratios are shares of it."""
        ...

    def drew(self, draft: Draft) -> tuple[Any, ...]:
        """The values that the draft chose, as `score` takes them."""
        ...

    def score(self, z: Tensor, values: Sequence[Any]) -> Tensor:
        """grad_z log p(values | z), of the shape of z. Fewer values than latents: a text that ended early."""
        ...

    def entropy(self, z: Tensor) -> Tensor:
        """How unsure each choice is, [T] float64, in nats."""
        ...

    def optimizer(self, z: Tensor, learning_rate: float) -> torch.optim.Optimizer:
        """What moves z along `z.grad`, which points uphill when negated."""
        ...

    def values(self, z: Tensor, how: Literal["arg-max", "sampled"], rng: np.random.Generator) -> tuple[Any, ...]:
        """One choice a position from p(. | z), by one uniform number each."""
        ...

    def choice(self, values: Sequence[Any], then: Greedy | Sample) -> Choice:
        """What asks for a draft whose first choices are these and whose other ones the model makes."""
        ...

    def others(self, drawn: Drawn, places: Iterable[int] | None = None) -> Others:
        """What else the draft could have chosen; of a picture only at `places`, where they are given."""
        ...

    def kept(self, draft: Draft) -> Choice:
        """What asks for the same choices once more, with nothing left to a stream."""
        ...

    def change(self, draft: Draft, position: int, token: int, free: frozenset[int], then: Greedy | Sample) -> Choice:
        """What asks for this draft with another choice at `position`, and with those in `free` made anew."""
        ...

    def near(self, draft: Draft, step: float, rng: np.random.Generator, then: Greedy | Sample) -> Choice:
        """What asks for a draft whose choices are near this one's: the nearer, the smaller the step."""
        ...


@dataclass(frozen=True)
class Tokens:
    """Token by token: p(. | z_i) = softmax(head(z_i)). `logits`: [T, ...] -> [T, V], differentiable, on any device."""

    logits: Callable[[Tensor], Tensor]

    def score(self, z: Tensor, values: Sequence[int]) -> Tensor:
        with torch.enable_grad():
            # float64: of a token of probability 0.999999, float32 leaves the gradient 1 - p little but rounding,
            # which Adam then scales up to whole steps.
            log_probs = torch.log_softmax(self.logits(z)[: len(values)].double(), dim=-1)
            chosen = torch.tensor(values, dtype=torch.long, device=log_probs.device)[:, None]
            (gradient,) = torch.autograd.grad(log_probs.gather(-1, chosen).sum(), z)
        return gradient

    @torch.no_grad()
    def entropy(self, z: Tensor) -> Tensor:
        return cast(Tensor, torch.distributions.Categorical(logits=self.logits(z.float())).entropy().double())

    def optimizer(self, z: Tensor, learning_rate: float) -> torch.optim.Optimizer:
        return torch.optim.Adam([z], lr=learning_rate)

    @torch.no_grad()
    def values(self, z: Tensor, how: Literal["arg-max", "sampled"], rng: np.random.Generator) -> tuple[int, ...]:
        """Chosen as the engine chooses."""
        logits = self.logits(z)
        if how == "arg-max":
            return tuple(logits.argmax(dim=-1).tolist())
        temperatures = logits.new_ones(len(logits))  # `logits` already has it
        uniforms = torch.from_numpy(rng.random(len(logits))).to(logits.device)
        return tuple(choose(logits, temperatures, uniforms).tolist())

    def choice(self, values: Sequence[int], then: Greedy | Sample) -> Forced:
        return Forced(tuple(values), then)

    def likeliest(self, latents: Tensor, chosen: Sequence[int]) -> Others:
        """The most probable tokens that were not chosen; at most T of `chosen` count.

        q = p_a / (p_a + p_x) = sigmoid(l_a - l_x) grows with l_a, so the logits say which tokens these are: the most
        probable ones are found first, where the logits are, and only theirs is worked out and brought here.
        """
        logits = self.logits(latents)
        if len(logits) == 0:
            return Others(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
        kept = torch.tensor(chosen[: len(logits)], device=logits.device)[:, None]
        values, tokens = logits.topk(min(ALTERNATIVES + 1, logits.shape[1]), dim=1)
        ahead = (values - logits.gather(1, kept)).flatten()
        # In whole vectors: torch rounds the last few numbers of a tensor otherwise; what is equally likely must tie.
        whole = torch.nn.functional.pad(ahead, (0, -len(ahead) % LANES)).sigmoid()
        beliefs = whole[: len(ahead)].reshape(values.shape)
        is_other = tokens != kept
        is_other[:, -1] &= ~is_other.all(1)  # where the chosen one is not among them, the last is one too many
        positions = torch.arange(len(logits), device=logits.device)[:, None].expand_as(tokens)
        return Others(*(column[is_other].cpu().numpy() for column in (positions, tokens, beliefs.double())))


def whole_text(drawn: Drawn, end: int) -> tuple[int, ...]:
    """The forced tokens that keep a draft's text as it is, its end included where the model wrote it."""
    return drawn.text_tokens + ((end,) if drawn.text_ended else ())


@dataclass(frozen=True)
class TextTokens(Tokens):
    """The words of a reasoning. `end` is the token that ends it."""

    end: int = 0

    def latents(self, drawn: Drawn) -> Tensor:
        return drawn.latents.text if drawn.latents is not None else torch.empty(0)

    def count(self, drawn: Drawn) -> int:
        return len(drawn.text_tokens)

    def drew(self, draft: Draft) -> tuple[int, ...]:
        return whole_text(draft.drawn, self.end)

    def choice(self, values: Sequence[int], then: Greedy | Sample) -> Forced:
        """What follows an end is no part of the text."""
        values = tuple(values)
        return Forced(values[: values.index(self.end) + 1] if self.end in values else values, then)

    @torch.no_grad()
    def others(self, drawn: Drawn, places: Iterable[int] | None = None) -> Others:
        return self.likeliest(self.latents(drawn), whole_text(drawn, self.end))

    def kept(self, draft: Draft) -> Forced:
        return Forced(self.drew(draft))

    def change(self, draft: Draft, position: int, token: int, free: frozenset[int], then: Greedy | Sample) -> Forced:
        """The words before it stay; the model writes on."""
        return Forced((*draft.drawn.text_tokens[:position], token), then)

    def near(self, draft: Draft, step: float, rng: np.random.Generator, then: Greedy | Sample) -> Forced:
        """Its first words: each is the first that is written anew with a chance of `step`."""
        words = self.drew(draft)
        return Forced(words[: min(len(words), int(rng.geometric(min(1.0, step))) - 1)], then)


@dataclass(frozen=True)
class ImageTokens(Tokens):
    """The codes of a picture, at one guidance scale and temperature (both are in `logits`)."""

    def latents(self, drawn: Drawn) -> Tensor:
        return drawn.latents.image if drawn.latents is not None else torch.empty(0)

    def count(self, drawn: Drawn) -> int:
        return len(drawn.image_tokens)

    def drew(self, draft: Draft) -> tuple[int, ...]:
        return draft.drawn.image_tokens

    @torch.no_grad()
    def others(self, drawn: Drawn, places: Iterable[int] | None = None) -> Others:
        found = self.likeliest(self.latents(drawn), drawn.image_tokens)
        return found if places is None else found.at(places)

    def kept(self, draft: Draft) -> Forced:
        return Forced(draft.drawn.image_tokens, free=frozenset())

    def change(self, draft: Draft, position: int, token: int, free: frozenset[int], then: Greedy | Sample) -> Forced:
        """All of the picture stays but this token and those in `free`."""
        picture = list(draft.drawn.image_tokens)
        picture[position] = token
        return Forced(tuple(picture), then=then, free=free)

    def near(self, draft: Draft, step: float, rng: np.random.Generator, then: Greedy | Sample) -> Forced:
        """Each token is drawn afresh with a chance of `step`, and one at least."""
        tokens = draft.drawn.image_tokens
        free = set(np.flatnonzero(rng.random(len(tokens)) < step).tolist()) or {int(rng.integers(len(tokens)))}
        return Forced(tokens, then=then, free=frozenset(free))


def text_policy(backbone: Backbone) -> TextTokens:
    """How this model writes."""
    return TextTokens(backbone.text_logits, backbone.text_end())


def image_policy(backbone: Backbone, guidance: float, temperature: float = 1.0) -> Policy:
    """How this model draws at a guidance scale and a temperature: token by token, unless it says otherwise."""
    own = getattr(backbone, "image_policy", None)
    if own is not None:
        found: Policy = own(guidance, temperature)
        return found
    return ImageTokens(lambda latents: backbone.image_logits(latents, guidance) / temperature)
