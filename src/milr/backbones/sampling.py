"""How a token is chosen: the numbers of a draft's stream, guidance, and the choice by them.

A token is a function of its logits and of the number that belongs to its draft and position, whatever it is batched
with and however it is computed. That is what makes a draft repeatable.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]


def prefix_length(ratio: float, length: int) -> int:
    """How many of `length` tokens a prefix ratio covers: ceil(ratio * length)."""
    return min(length, math.ceil(ratio * length - 1e-9))  # 0.07 * 100 is 7.000000000000001


def uniforms(stream: int, stage: int, count: int) -> Floats:
    """The first `count` uniform numbers of a draft's stream; number t chooses the token at position t."""
    key = np.array([stream % 2**64, stage], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def guide(conditional: Tensor, unconditional: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance u + w (c - u) on logits [B, V]; 1 is no guidance, 0 ignores the prompt."""
    return unconditional + scale * (conditional - unconditional)


def choose(logits: Tensor, temperatures: Tensor, numbers: Tensor, greedy: bool | None = None) -> Tensor:
    """One token a row: the most probable where the temperature is 0, else by inverse CDF of the full softmax.

    Args:
        logits: [B, V] float32.
        temperatures: [B].
        numbers: [B] float64, uniform in [0, 1), on a device that knows float64.
        greedy: what is known of the temperatures: all are 0, or not. None: look, which waits for the device.
    """
    best = logits.argmax(-1)
    sampled = temperatures > 0
    if not sampled.any() if greedy is None else greedy:
        return best
    # The maximum is taken off before dividing: a tiny temperature must not overflow.
    shifted = (logits - logits.gather(1, best[:, None])) / torch.where(sampled, temperatures, 1.0)[:, None]
    cumulative = shifted.softmax(-1).to(numbers.device).cumsum(-1, dtype=torch.float64)
    token = torch.searchsorted(cumulative, (numbers * cumulative[:, -1])[:, None], right=True)[:, 0]
    return torch.where(sampled, token.to(logits.device).clamp(max=logits.shape[-1] - 1), best)
