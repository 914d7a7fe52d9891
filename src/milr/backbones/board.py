"""Drafts side by side: buffers that never move, and one pass that chooses the next token of each of them.

    tokens out  <-  choice  <-  head, guidance  <-  layers over the cache  <-  embedding  <-  tokens in

A pass feeds one token of each draft (`advance`), or a window of them, guessed but for the first (`leap`). As a token is
a function of its logits and its own number, every choice up to the first wrong guess is the very token that would have
been chosen one by one; the choices after it are the next guess.

Nothing in a pass depends on a number that only the host knows: positions, lengths, temperatures and random numbers lie
on the device. So on a GPU the whole pass is captured once as a CUDA graph and replayed for every token, with Triton's
kernels where they are at hand (kernels.py); everywhere else the same pass runs in torch's own calls, with all that can
be prepared for many passes prepared at once. What to do next is decided above, in decoding.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from milr.backbones.decoder import Decoder
from milr.backbones.sampling import choose, guide

if TYPE_CHECKING:
    from milr.backbones.kernels import Kernels


@dataclass(frozen=True)
class Stage:
    """What the tokens of a stage (text or image) mean.

    `length` is the most tokens a draft can have; `table` [V, D] holds each token's input; `head` maps final hidden
    states [N, D] to logits [N, V] in the model's dtype; `end` is the token that ends a draft early; `above` says how
    far back the token lies that the next one is most like, where there is one (the one above it in a picture).
    """

    name: str
    length: int
    table: Tensor
    head: Callable[[Tensor], Tensor]
    end: int | None = None
    above: int | None = None


@dataclass(frozen=True)
class Shape:
    """What a board is made for: places (drafts), branches of each, tokens and slots of the cache, latents kept. Some
    tokens and slots are to spare, as an idle draft, or one whose end was not seen yet, may run over."""

    places: int
    branches: int
    length: int
    slots: int
    keep: int


# What a draft takes along when it moves; where it stands and stops is said anew for each pass.
STATE = ("tokens", "free", "known", "offset", "numbers", "temperatures", "scales", "latents", "health", "ended")


class Board:
    """The state of `shape.places` drafts. Row r of the cache is branch r // places of the draft at place r % places.

    tokens: [B, length], forced ones, those chosen so far, and guesses. free: [B, length], which are to be chosen. at:
    [B], the position whose token is chosen next. stop: [B], where a leap is over at the latest. known: [B], positions
    below have a token or a guess. offset: [B], where position 0 lies in the cache: the prompt's length - 1. numbers:
    [B, length] float64. latents: [B, keep + 1, branches, D] float32, of which the last takes what nobody asked for.
    health: [B], NaN once a logit was not finite. ended: [B], whether the stage's end was chosen.
    """

    def __init__(self, decoder: Decoder, stage: Stage, shape: Shape, memory: Tensor | None) -> None:
        device, places = decoder.weight.device, shape.places
        self.decoder, self.stage, self.shape = decoder, stage, shape
        self.cache = decoder.new_cache(places * shape.branches, shape.slots, memory)
        self.tokens = torch.zeros(places, shape.length, dtype=torch.long, device=device)
        self.free = torch.ones(places, shape.length, dtype=torch.bool, device=device)
        self.at = torch.ones(places, dtype=torch.long, device=device)
        self.stop = torch.ones(places, dtype=torch.long, device=device)
        self.known = torch.zeros(places, dtype=torch.long, device=device)
        self.offset = torch.zeros(places, dtype=torch.long, device=device)
        exact = "cpu" if device.type == "mps" else device  # Apple's knows no float64
        self.numbers = torch.zeros(places, shape.length, dtype=torch.float64, device=exact)
        self.temperatures = torch.ones(places, device=device)
        self.scales = torch.ones(places, 1, device=device)
        self.latents = torch.zeros(places, shape.keep + 1, shape.branches, decoder.hidden_size, device=device)
        self.health = torch.zeros(places, device=device)
        self.ended = torch.zeros(places, dtype=torch.bool, device=device)
        self.greedy = False  # whether the host knows that all temperatures are 0
        self._everyone = torch.arange(places, device=device)

    def advance(self, count: int, first: Sequence[int], is_greedy: bool) -> None:
        """Choose `count` tokens of every draft. `first`: where each stands in the cache, known to the host."""
        self.greedy = is_greedy
        highest = max(first)
        positions = (self.offset + self.at + torch.arange(count, device=self.at.device)[:, None]).repeat(
            1, self.shape.branches
        )
        cosine, sine = self.cache.cosine[positions][:, :, None], self.cache.sine[positions][:, :, None]
        apart = min(first) != highest
        slots = torch.arange(highest + count, device=self.at.device)
        for turn in range(count):
            seen = highest + turn + 1
            mask = (slots[:seen] <= positions[turn][:, None])[:, None, None] if apart else None
            hidden = self.decoder.step(
                self.embedded(), positions[turn], (cosine[turn], sine[turn]), self.cache, seen, mask
            )
            self.take(hidden)

    def embedded(self) -> Tensor:
        """The input of every row, [R, D]: the token before the one that is chosen now."""
        fed = self.tokens.gather(1, (self.at - 1)[:, None])[:, 0]
        inputs = F.embedding(fed, self.stage.table)
        return inputs.repeat(self.shape.branches, 1) if self.shape.branches > 1 else inputs

    def take(self, hidden: Tensor) -> None:
        """Keep the latents [R, D] that were asked for, choose every draft's token, and go on to the next."""
        at, everyone = self.at, self._everyone
        state = hidden.view(self.shape.branches, self.shape.places, -1)
        if self.shape.keep:
            self.latents[everyone, at.clamp(max=self.shape.keep)] = state.transpose(0, 1).float()
        self.choose_at(everyone, at, state, self.greedy)
        self.at += 1

    def leap(self, window: int, seen: int, is_greedy: bool) -> None:
        """Feed the next `window` tokens of every draft, guessed but for the first, and keep what is chosen up to the
        first wrong guess. `seen`: slots that any of them may look at."""
        self.greedy = is_greedy
        steps = torch.arange(window, device=self.at.device)
        span = self.at[:, None] + steps
        inside = span.clamp(max=self.shape.length - 1)  # where nobody's token lies
        guess = self._guessed(inside)
        fed = torch.cat([self.tokens.gather(1, (self.at - 1)[:, None]), guess[:, :-1]], 1)
        slots = (self.offset[:, None] + span).clamp(max=self.shape.slots - 1)
        hidden = self.windowed(fed, slots, seen)
        state = hidden.view(self.shape.branches, self.shape.places * window, -1)
        drafts = self._everyone.repeat_interleave(window)
        chosen, peaks = self.chosen(drafts, inside.flatten(), state, self.greedy)
        chosen = torch.where(self.free.gather(1, inside), chosen.view(-1, window), guess)
        right = (chosen == guess).long().cumprod(1)
        kept = (right[:, :-1].sum(1) + 1).minimum(self.stop - self.at)
        if self.stage.end is not None:
            ends = (chosen == self.stage.end) & (steps < kept[:, None])
            self.ended |= ends.any(1)
            kept = torch.where(ends.any(1), ends.long().argmax(1) + 1, kept)
        is_kept = steps < kept[:, None]
        self.health.index_add_(0, drafts, torch.where(is_kept.flatten(), peaks, 0.0))
        if self.shape.keep:
            to = torch.where(is_kept, inside, self.shape.keep).clamp(max=self.shape.keep)
            states = state.view(self.shape.branches, self.shape.places, window, -1).permute(1, 2, 0, 3)
            self.latents[self._everyone[:, None], to] = states.float()
        self.tokens.scatter_(1, inside, torch.where(span < self.stop[:, None], chosen, guess))
        torch.maximum(self.known, (self.at + window).minimum(self.stop), out=self.known)
        self.at += kept

    def windowed(self, fed: Tensor, slots: Tensor, seen: int) -> Tensor:
        """Final hidden states [R, W, D] of tokens [B, W] at these slots [B, W]."""
        branches = self.shape.branches
        inputs = F.embedding(fed, self.stage.table).repeat(branches, 1, 1)
        return self.decoder.forward(inputs, slots.repeat(branches, 1), self.cache, seen, uniform=False)

    def _guessed(self, positions: Tensor) -> Tensor:
        """What the tokens at ascending positions [B, W] may be: what was guessed before, or else the token that lies
        `above` (one above the other, down to one that is known)."""
        if self.stage.above is None:
            return self.tokens.gather(1, positions)
        known, above = torch.maximum(self.known, self.at)[:, None], self.stage.above
        rows = torch.div(positions - known, above, rounding_mode="floor") + 1  # how far above the known ones end
        source = torch.where(positions < known, positions, positions - rows * above)
        source = torch.where(source < 0, (self.at - 1)[:, None], source)
        return self.tokens.gather(1, source)

    def choose_at(self, places: Tensor, at: Tensor, state: Tensor, is_greedy: bool) -> None:
        """Choose the tokens at positions [n], where they are free, of the drafts at `places` [n] from `state`
        [branches, n, D]."""
        chosen, peaks = self.chosen(places, at, state, is_greedy)
        self.health.index_add_(0, places, peaks)
        tokens = torch.where(self.free[places, at], chosen, self.tokens[places, at])
        self.tokens[places, at] = tokens
        if self.stage.end is not None:
            self.ended[places] |= tokens == self.stage.end

    def chosen(self, places: Tensor, at: Tensor, state: Tensor, is_greedy: bool) -> tuple[Tensor, Tensor]:
        """What would be chosen there, [n], and the highest logits."""
        # Before guidance, which multiplies the rounding of bfloat16.
        logits = self.stage.head(state.flatten(0, 1)).float().view(*state.shape[:2], -1)
        logits = guide(logits[0], logits[1], self.scales[places]) if len(logits) == 2 else logits[0]
        numbers = self.numbers[places.to(self.numbers.device), at.to(self.numbers.device)]
        return choose(logits, self.temperatures[places], numbers, is_greedy), logits.amax(-1)

    def move_to(self, other: Board, places: Sequence[int]) -> None:
        """Put the drafts at `places` onto a smaller board, in this order. It may lie in the same memory."""
        chosen = torch.tensor(places, device=self.at.device)
        for name in STATE:
            mine = getattr(self, name)
            getattr(other, name)[: len(places)] = mine[chosen.to(mine.device)]
        branches = range(self.shape.branches)
        rows = torch.cat([chosen + branch * self.shape.places for branch in branches])
        seats = torch.arange(len(places), device=self.at.device)
        seats = torch.cat([seats + branch * other.shape.places for branch in branches])
        # From the first layer on: what is written overlies only what was read before.
        for mine, theirs in ((self.cache.keys, other.cache.keys), (self.cache.values, other.cache.values)):
            for old, new in zip(mine, theirs, strict=True):
                new[seats] = old[rows]


class GraphBoard(Board):
    """A board whose pass is one CUDA graph."""

    def __init__(
        self, decoder: Decoder, stage: Stage, shape: Shape, memory: Tensor | None, kernels: Kernels | None
    ) -> None:
        super().__init__(decoder, stage, shape, memory)
        self.kernels = kernels
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}  # by window

    def advance(self, count: int, first: Sequence[int], is_greedy: bool) -> None:
        run = self._replayed(1, self.step)
        for _ in range(count):
            run()

    def leap(self, window: int, seen: int, is_greedy: bool) -> None:
        # How far anybody looks, and who is greedy, is found on the device.
        self._replayed(window, lambda: super(GraphBoard, self).leap(window, self.shape.slots, False))()

    def step(self) -> None:
        """The pass itself, of fixed shape and without a word from the host."""
        if self.kernels is not None:
            self.kernels.step(self)
            return
        positions = (self.offset + self.at).repeat(self.shape.branches)
        turn = self.cache.cosine[positions][:, None], self.cache.sine[positions][:, None]
        slots = torch.arange(self.shape.slots, device=positions.device)
        mask = (slots <= positions[:, None])[:, None, None]
        self.take(self.decoder.step(self.embedded(), positions, turn, self.cache, self.shape.slots, mask))

    def windowed(self, fed: Tensor, slots: Tensor, seen: int) -> Tensor:
        if self.kernels is None:
            return super().windowed(fed, slots, seen)
        return self.kernels.windowed(self, fed)

    def _replayed(self, window: int, run: Callable[[], None]) -> Callable[[], None]:
        """The pass as a graph, where there is a GPU."""
        if not self.at.is_cuda:
            return run
        if window not in self._graphs:
            self._graphs[window] = self._captured(run)
        return self._graphs[window].replay

    def _captured(self, run: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """The graph. Warming up walks the drafts on, so that they are put back."""
        state = (self.tokens, self.at, self.known, self.latents, self.health, self.ended)
        before = [tensor.clone() for tensor in state]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
        return graph
