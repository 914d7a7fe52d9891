"""Drawing many orders in batches that fit: what every model does alike, whatever its pictures are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from milr.backbones.checkpoint import Memory, free_bytes
from milr.backbones.decoding import Engine, NotFinite
from milr.drafts import Choice, Drawn, Forced, Order, UserError
from milr.hub import other_dtype

if TYPE_CHECKING:
    from milr.backbones.base import BackboneInfo


class Batched:
    """A model that draws batches of at most `max_batch` orders. `_memory` is what a batch takes, until it was looked
    at: before the first draft, when critics have taken their part of the device."""

    info: BackboneInfo
    max_batch: int
    smaller = "a smaller model"  # what to choose where not even one image fits
    _memory: Memory | None
    _engine: Engine

    def draw(self, orders: Sequence[Order]) -> list[Drawn]:
        """Draw each order, in order; what is batched with what never changes a draft (up to float ties)."""
        for order in orders:
            self._check(order)
        if self._memory is not None:
            self.max_batch = min(self.max_batch, self._memory.places_in(free_bytes(torch.device(self.info.device))))
            self._memory = None
        waiting = sorted(range(len(orders)), key=lambda index: self._apart(orders[index]))
        drawn: dict[int, Drawn] = {}
        while waiting:
            kind = self._apart(orders[waiting[0]])
            batch = [index for index in waiting[: self.max_batch] if self._apart(orders[index]) == kind]
            try:
                drawn |= zip(batch, self._draw_batch([orders[index] for index in batch]), strict=True)
            except torch.OutOfMemoryError as error:
                if len(batch) == 1:
                    raise UserError(
                        f"One image of {self.info.name} does not fit into the memory of {self.info.device}; "
                        f"choose {self.smaller} or another --device."
                    ) from error
                self.max_batch = len(batch) // 2
                self._engine.forget()
                torch.cuda.empty_cache()
                continue
            except NotFinite as error:
                raise self._computes_nan(str(error)) from error
            waiting = waiting[len(batch) :]
        return [drawn[index] for index in range(len(orders))]

    def _check(self, order: Order) -> None:
        """Refuse what cannot be drawn, before anything is."""
        raise NotImplementedError

    def _check_numbers(self, order: Order, guidance: float) -> None:
        if not (math.isfinite(guidance) and guidance >= 0):
            raise UserError(f"The guidance scale is {guidance}; it must be a number >= 0 (1 is no guidance).")
        for choice in (order.ask.text, order.ask.image):
            temperature = getattr(getattr(choice, "then", choice), "temperature", 1.0)
            if not (math.isfinite(temperature) and temperature > 0):
                raise UserError(f"The temperature is {temperature}; it must be > 0 (use greedy choice for 0).")

    def _check_tokens(self, choice: Choice, size: int) -> None:
        if isinstance(choice, Forced) and not all(0 <= token < size for token in choice.tokens):
            raise UserError(
                f"A forced token lies outside the {size} that {self.info.name} knows; it is from another model."
            )

    def _draw_batch(self, orders: Sequence[Order]) -> list[Drawn]:
        raise NotImplementedError

    def _apart(self, order: Order) -> bool:
        """Orders of which this differs are drawn by themselves, those of False first."""
        return False

    def _computes_nan(self, what: str) -> UserError:
        return UserError(f"{self.info.name} computes NaN ({what}){other_dtype(self.info.dtype, '--dtype ')}.")
