"""How a flow model chooses its pictures: the noise that they are made of, as a search may move and change it.

The coarsest coefficients x of a picture's noise (noise.py) are normal numbers. A search moves their mean z:

    x = z + s e,   s = sqrt(1 - |z|^2 / m),   e standard normal, m coefficients

z = 0 is the model's own noise, and x stays as long as noise is, however far z goes: the picture never leaves what the
model was trained on. The score is s^2 times grad_z log p(x | z) = x - z, the natural gradient, so a step is a share of
the way to the noise of a good draft.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from milr.backbones.flow.noise import coarse_to_fine, gaussian
from milr.backbones.policies import ALTERNATIVES, Others
from milr.drafts import Choice, Draft, Drawn, Forced, Greedy, Noise, Repaint, Sample, UserError

PAPER_RATE, SHARE = 0.03, 0.4  # the paper's step of Adam; what it stands for here: this share of the way
COARSE = 4096  # coefficients that a neighbour changes, at most: what a record of it may hold
FARTHEST = 0.95  # of the length of noise, which z may have


@dataclass(frozen=True)
class Coefficients:
    """The policy of pictures that are made of noise, on a grid of so many cells a side."""

    channels: int  # numbers of a cell
    grid: int
    strength: float = 1.0  # of a repaint

    def latents(self, drawn: Drawn) -> Tensor:
        return torch.zeros_like(drawn.latents.image) if drawn.latents is not None else torch.empty(0)

    def count(self, drawn: Drawn) -> int:
        return self.channels * self.grid**2

    def drew(self, draft: Draft) -> tuple[float, ...]:
        """As many as were given, or else all of those that its keys name."""
        if isinstance(draft.ask.image, Noise):
            return draft.ask.image.values
        noise = gaussian(draft.drawn.image_tokens, self.channels, self.grid)
        return tuple(map(float, coarse_to_fine(noise).numpy()))

    def score(self, z: Tensor, values: Sequence[float]) -> Tensor:
        return z.new_tensor(values[: len(z)]) - z.detach()

    def entropy(self, z: Tensor) -> Tensor:
        """All are equally unsure: that of a normal number."""
        return torch.full((len(z),), 0.5 * math.log(2 * math.pi * math.e), dtype=torch.float64)

    def optimizer(self, z: Tensor, learning_rate: float) -> torch.optim.Optimizer:
        return _OnTheShell([z], lr=SHARE * learning_rate / PAPER_RATE)

    def values(self, z: Tensor, how: Literal["arg-max", "sampled"], rng: np.random.Generator) -> tuple[float, ...]:
        if how == "arg-max":
            raise UserError(
                "A picture that is made of noise has no most probable noise: choose image_prefix=sampled and "
                "credit=drawn, or the preset paper."
            )
        mean = z.detach().cpu().double().numpy()
        spread = math.sqrt(max(0.0, 1.0 - float(np.square(mean).mean())))
        return tuple((mean + spread * rng.standard_normal(len(mean))).astype(np.float32).tolist())

    def choice(self, values: Sequence[float], then: Greedy | Sample) -> Noise:
        return Noise(tuple(values), check_temperature(then))

    def others(self, drawn: Drawn, places: Iterable[int] | None = None) -> Others:
        """Fresh noise for each of the regions that are wrong, several times over. It is exactly as likely as the old:
        belief 1/2. Where nobody says what is wrong there is nothing to change but the whole picture."""
        firsts = [min(region) for region in regions(places or (), self.grid)]
        positions = np.repeat(np.array(firsts, dtype=np.int64), ALTERNATIVES)
        tokens = np.tile(np.arange(ALTERNATIVES, dtype=np.int64), len(firsts))
        return Others(positions, tokens, np.full(len(positions), 0.5))

    def kept(self, draft: Draft) -> Forced | Noise | Repaint:
        return resolved(draft.ask.image, draft.drawn.image_tokens)

    def change(self, draft: Draft, position: int, token: int, free: frozenset[int], then: Greedy | Sample) -> Repaint:
        """The picture stays but for these cells, which are drawn anew from fresh noise."""
        return Repaint(self.kept(draft), free | {position}, check_temperature(then), self.strength)

    def near(self, draft: Draft, step: float, rng: np.random.Generator, then: Greedy | Sample) -> Noise:
        """cos(step) x + sin(step) e on its coarsest coefficients; the finer ones stay."""
        x = np.array(self.drew(draft)[:COARSE])
        values = math.cos(step) * x + math.sin(step) * rng.standard_normal(len(x))
        return Noise(tuple(values.astype(np.float32).tolist()), check_temperature(then), draft.drawn.image_tokens)


def resolved(choice: Choice, keys: tuple[int, ...]) -> Forced | Noise | Repaint:
    """The choice that names the picture that came of this one, its keys being these: nothing is left to a stream."""
    if isinstance(choice, (Noise, Repaint)):
        return replace(choice, tokens=keys)
    if isinstance(choice, Forced) and choice.free:
        return Repaint(Forced(choice.tokens, free=frozenset()), choice.free, tokens=keys)
    return Forced(keys, free=frozenset())


def check_temperature(then: Greedy | Sample) -> Sample:
    """What the rest of a picture is made of: fresh noise, as it is."""
    if not isinstance(then, Sample) or then.temperature != 1:
        raise UserError("The noise that a flow model draws from has no temperature; set image_temperature to 1.")
    return then


class _OnTheShell(torch.optim.SGD):
    """Plain steps, after which z is shorter than noise is."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override, unused-ignore]
        super().step(closure)
        for group in self.param_groups:
            for z in group["params"]:
                longest = FARTHEST * math.sqrt(z.numel())
                z *= min(1.0, longest / max(float(z.norm()), 1e-30))


def regions(places: Iterable[int], grid: int) -> list[set[int]]:
    """Cells that touch, corners included, together; in raster order of their first cells."""
    left = set(places)
    found = []
    while left:
        region, edge = set(), {min(left)}
        while edge:
            left -= edge
            region |= edge
            edge = {cell for at in edge for cell in _around(at, grid)} & left
        found.append(region)
    return found


def _around(at: int, grid: int) -> set[int]:
    row, column = divmod(at, grid)
    return {
        r * grid + c
        for r in range(max(0, row - 1), min(grid, row + 2))
        for c in range(max(0, column - 1), min(grid, column + 2))
    }
