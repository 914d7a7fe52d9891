"""How far two right computations of the same numbers may lie apart, and what that means for tokens chosen from them.

No tolerance in the tests is read off one machine: a processor with other vector registers, other threads or another
batch adds the same numbers up in another order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from milr.backbones.sampling import uniforms
from milr.drafts import Ask, Choice, Drawn, Forced, Order, Sample

EPS = float(np.finfo(np.float32).eps)


def rounding(values: Any, products: int, sums: int = 1, guidance: float = 1.0) -> float:
    """The absolute difference that is rounding alone, between two float32 computations of `values`.

    Float32 rounds each result by up to u = eps / 2 of its size. A sum of n products rounds n times, up as often as
    down, so it is off by sqrt(n) u of its size (Higham & Mary 2019; the worst case, n u, does not come up). Two
    computations that add in different orders thus differ by 2 sqrt(n) u = sqrt(n) eps. Of `sums` such sums one behind
    the other each passes on the error before it, and adds its own: norms keep the numbers' sizes, so errors add up to
    `sums` times as much. Guidance w multiplies the errors of two rows: |w| + |1 - w| times one row's.

    Args:
        values: what is compared: the largest of it is the size that errors are relative to.
        products: the longest sum on the way, e.g. the width of the MLP.
        sums: how many matrix products lie between the inputs and these values, one behind the other.
        guidance: the scale of classifier-free guidance in these values, if any.
    """
    largest = max((float(part.detach().abs().max()) for part in _tensors(values) if part.numel()), default=0.0)
    return EPS * math.sqrt(products) * sums * max(largest, EPS) * (abs(guidance) + abs(1 - guidance))


def _tensors(values: Any) -> list[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        return [values]
    return [torch.as_tensor(np.asarray(values, dtype=np.float64))]


def of_model(backbone: Any, values: Any, guidance: float = 1.0) -> float:
    """`rounding` of a Janus's latents or logits: six products a layer (queries and keys, their scores, the weighted
    values, the output, the two of the MLP), two before them (image tokens are aligned) and two behind (the head)."""
    text = backbone.model.config.text_config
    widest = max(text.intermediate_size, text.hidden_size)
    return rounding(values, products=widest, sums=6 * text.num_hidden_layers + 4, guidance=guidance)


def of_critic(values: Any) -> float:
    """`rounding` of what the small models of the critics' tests say: none is wider than 256 or deeper than 4 layers."""
    return rounding(values, products=256, sums=6 * 4 + 8)


# --- Tokens ---------------------------------------------------------------------------------------------------


def ties(backbone: Any, order: Order) -> tuple[list[bool], list[bool]]:
    """For each text and each image token of a draft, drawn alone: can rounding make it another one?

    A greedy one, where the second best logit is nearer than twice the rounding of one; a sampled one, where its random
    number is that near to an edge of the summed probabilities, which move by no more than the logits do, over the
    temperature. A text's end counts as a token.
    """
    (drawn,) = backbone.draw([replace(order, ask=replace(order.ask, text_ratio=1.0, image_ratio=1.0))])
    assert drawn.latents is not None
    text = backbone.text_logits(_states(backbone, order, drawn)).detach()
    image = backbone.image_logits(drawn.latents.image, drawn.guidance).detach()
    return (
        _ties(text, order.ask.text, order.stream, 0, of_model(backbone, text)),
        _ties(image, order.ask.image, order.stream, 1, of_model(backbone, image, drawn.guidance)),
    )


def _states(backbone: Any, order: Order, drawn: Drawn) -> torch.Tensor:
    """The states behind a text's tokens and its end. That one is no latent, so a word is forced in its place."""
    assert drawn.latents is not None
    if not drawn.text_ended:
        return drawn.latents.text
    word = 1 if backbone.text_end() == 0 else 0
    (longer,) = backbone.draw(
        [Order(order.prompt, Ask(Forced((*drawn.text_tokens, word)), text_ratio=1.0), order.stream)]
    )
    assert longer.latents is not None
    return longer.latents.text[: len(drawn.text_tokens) + 1]


def _ties(logits: torch.Tensor, choice: Choice, stream: int, stage: int, rounding: float) -> list[bool]:
    if not len(logits):
        return []
    then = choice.then if isinstance(choice, Forced) else choice
    if isinstance(then, Sample):
        edges = (logits.double() / then.temperature).softmax(-1).cumsum(-1)
        numbers = torch.from_numpy(uniforms(stream, stage, len(edges)))
        margins = (edges - numbers[:, None]).abs().min(-1).values
        least = rounding / then.temperature
    else:
        best, second = logits.double().topk(2, -1).values.unbind(-1)
        margins, least = best - second, 2 * rounding
    forced = choice.tokens if isinstance(choice, Forced) else ()
    free = choice.free if isinstance(choice, Forced) else None
    chosen = [at >= len(forced) or (free is not None and at in free) for at in range(len(logits))]
    return [mine and bool(margin < least) for mine, margin in zip(chosen, margins, strict=True)]


def has_tie(backbone: Any, order: Order) -> bool:
    """Whether some token of this draft, drawn alone, may rightly be another one on another machine."""
    return any(any(found) for found in ties(backbone, order))


def tokens(drawn: Drawn) -> tuple[Any, ...]:
    return drawn.text_tokens, drawn.text_ended, drawn.image_tokens


def assert_same_tokens(backbone: Any, order: Order, one: Drawn, other: Drawn) -> bool:
    """Two drafts of one order have the same tokens, but for what follows a tie. Returns whether all are the same.

    Behind a token that rounding turned round everything may be another, so nothing is asked there; before it, and where
    nothing is tied, one token that differs is a fault.
    """
    if tokens(one) == tokens(other):
        assert one.reasoning == other.reasoning
        return True
    in_text, in_image = ties(backbone, order)
    ends = [(*drawn.text_tokens, *["end"] * drawn.text_ended) for drawn in (one, other)]
    if ends[0] != ends[1]:
        assert_tied_where_they_part(*ends, in_text)
    else:
        assert_tied_where_they_part(one.image_tokens, other.image_tokens, in_image)
    return False


def assert_tied_where_they_part(one: Sequence[Any], other: Sequence[Any], tied: Sequence[bool]) -> None:
    """The first token in which two sequences differ was a tie."""
    at = next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    assert at < len(tied), "one is longer than what was drawn alone"
    assert tied[at], f"token {at} differs and was no tie: {one[at : at + 1]} and {other[at : at + 1]}"
