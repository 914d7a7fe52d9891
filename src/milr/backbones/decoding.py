"""The token loop: what each of many drafts feeds, chooses and keeps, from its prompt to its last token.

Knows plans, stops and places; a pass itself is in board.py and decoder.py. Knows no tokenizer, no prompt wording and
no pixel: what a token means comes in with the `Stage`.

A draft's way goes from stop to stop: a stop is a position whose token is chosen (or whose latent is asked for). All
that comes before the first one, prompt and forced tokens, is read in one pass. From then on all drafts take one token
a pass, side by side. Where a run of forced tokens lies before a draft's next stop, it is read in one pass too, unless
walking through it with the others costs less. A draft that is done leaves, and when many have left the others move
together.

Where a pass of several tokens costs little more than one of one, drafts *leap* (board.py): what may come is guessed and
fed all at once, and the tokens are the very same. How far they leap is reckoned from how often guesses were right, what
rows cost, and where tokens are forced (leaping.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from milr.backbones.board import Board, GraphBoard, Shape, Stage
from milr.backbones.decoder import Decoder, planless_attention
from milr.backbones.leaping import CONTEXT, LONGEST, WEIGHT, Echo, Lore, Neighbours, Pace, Sketch, Trust
from milr.backbones.sampling import Floats

if TYPE_CHECKING:
    from milr.backbones.kernels import Kernels

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# How often a guess is right, before anything is known: by whether a picture, and whether an earlier draft was given.
RIGHT = {(True, True): 0.95, (True, False): 0.88, (False, True): 0.85, (False, False): 0.55}
SLACK_OF_PROCESSOR = 28.0  # rows that cost as much as reading the weights of a small model
SLACK_OF_GPU = 700.0
SMALL = 2**28  # bytes of the layers of a small model: those of a larger one were not measured
FEW_CODES = 4096  # so that what stands around a token is met again
LOOK = 8  # passes on a GPU between two looks whether a text has ended
JUMP = 5  # what a pass over many tokens costs there, in captured passes of one
SURPLUS = 2  # tokens and slots that a draft may run over, and a capture does
READ_AT_ONCE = 8192  # tokens of one pass over prompts and forced runs, of all rows: what it holds stays below 1 GB
PLACES = (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64)  # of the boards on a GPU
BOARDS = 8  # that are kept with their graphs


@dataclass(frozen=True)
class Plan:
    """What one draft wants of a stage.

    `prompts`: text token ids, a sequence for each branch (conditional, then unconditional), equally long.
    `tokens`: the forced tokens; where a position is in `free` (ascending) the token is chosen instead, and the one
    given is a guess. `guess`: what the tokens may be; it changes speed, never a token. Of a picture it says what may
    lie where, of a text what may be said, at this place or another.
    `keep`: how many leading latents to return. `temperature`: 0 is greedy. `numbers`: one for each position.
    `guidance`: the scale, if there are two branches.
    """

    prompts: tuple[Sequence[int], ...]
    tokens: Sequence[int]
    free: Sequence[int]
    keep: int
    temperature: float
    numbers: Floats
    guidance: float = 1.0
    guess: Sequence[int] = ()


@dataclass(frozen=True)
class Decoded:
    """Tokens without the end token, whether it came, cost, and latents [keep, branches, D]: float32, on the device."""

    tokens: tuple[int, ...]
    ended: bool
    latents: Tensor
    sampled: int
    prefilled: int
    passes: int = 0


class NotFinite(ArithmeticError):
    """The model computed NaN or an overflow: what is drawn from that on is noise, whatever a critic says of it."""


class Engine:
    """Runs stages of a model. On a GPU it keeps its boards, each with its captured pass, and one memory for all."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.fixed_shapes = decoder.weight.is_cuda  # passes are captured
        self.pace = pace_of(decoder)  # None: one token a pass
        self.forget_guesses()
        self.kernels: Kernels | None = None
        self._boards: dict[tuple[str, Shape], GraphBoard] = {}
        self._memory: Tensor | None = None
        if self.fixed_shapes and find_spec("triton") is not None:
            from milr.backbones.kernels import kernels_for

            self.kernels = kernels_for(decoder)

    def decode(self, stage: Stage, plans: Sequence[Plan]) -> list[Decoded]:
        """Run one stage for a batch of plans, all with the same number of branches. Raises NotFinite.

        A plan without a free position and without latents to return costs nothing.
        """
        device = self.decoder.weight.device
        empty = torch.zeros(0, len(plans[0].prompts), self.decoder.hidden_size, device=device)
        results = {index: Decoded(tuple(plan.tokens), False, empty, 0, 0) for index, plan in enumerate(plans)}
        running = [index for index, plan in enumerate(plans) if len(plan.free) or plan.keep]
        if running:
            with torch.inference_mode(), planless_attention(device):
                try:
                    found = _Run(self, stage, [plans[index] for index in running]).finish()
                except NotFinite:
                    self.forget()  # what was NaN must not be read again
                    raise
            results |= zip(running, found, strict=True)
        return [results[index] for index in range(len(plans))]

    def board(self, stage: Stage, shape: Shape) -> Board:
        """An idle board of this shape: on a GPU one that was captured before, where there is one."""
        if not self.fixed_shapes:
            return Board(self.decoder, stage, shape, None)
        key = stage.name, shape
        board = self._boards.pop(key, None)
        if board is None:
            board = GraphBoard(self.decoder, stage, shape, self._room(shape), self.kernels)
        self._boards[key] = board
        while len(self._boards) > BOARDS:
            self._boards.pop(next(iter(self._boards)))
        return board

    def places(self, count: int) -> int:
        """How many places a board for `count` drafts has: on a GPU one of few numbers, so that few are captured."""
        return next(number for number in (*PLACES, count) if number >= count) if self.fixed_shapes else count

    def forget_guesses(self) -> None:
        """Know nothing of earlier texts and pictures, nor how often guesses were right."""
        self.lore = Lore()
        self.neighbours: Neighbours | None = None  # of a model with few codes, once it has drawn
        self.trusts = {kind: Trust(WEIGHT * rate) for kind, rate in RIGHT.items()}

    def forget(self) -> None:
        """Give back all memory."""
        self._boards.clear()
        self._memory = None

    def _room(self, shape: Shape) -> Tensor:
        """The memory of all caches: only one stage runs at a time."""
        needed = self.decoder.cache_size(shape.places * shape.branches, shape.slots)
        if self._memory is None or len(self._memory) < needed:
            self.forget()
            weight = self.decoder.weight
            self._memory = torch.zeros(needed, dtype=weight.dtype, device=weight.device)
        return self._memory


@dataclass
class _Way:
    """Where a draft is going: runs of stops (first, last), and its place on the board.

    Query q of a draft is the pass whose hidden state predicts its token q: it feeds token q - 1, and query 0 the last
    token of the prompt. `at` is the next query.
    """

    index: int
    plan: Plan
    runs: list[tuple[int, int]]
    at: int
    free: Bools = field(default_factory=lambda: np.zeros(0, dtype=bool))  # which tokens are to be chosen
    place: int = 0
    ended: bool = False
    passes: int = 0
    echo: Echo | None = None  # of a text
    sketch: Sketch | None = None  # of a picture
    coming: list[int] = field(default_factory=list)  # what it says next

    @property
    def is_over(self) -> bool:
        return self.ended or not self.runs

    def go_to(self, query: int, passes: int) -> None:
        """Note that all queries below this one are done, after so many passes more."""
        self.at = query
        self.passes += passes
        while self.runs and self.runs[0][1] < query:
            del self.runs[0]


class _Run:
    """One stage of a batch of plans."""

    def __init__(self, engine: Engine, stage: Stage, plans: Sequence[Plan]) -> None:
        self.engine, self.decoder, self.stage = engine, engine.decoder, stage
        self.device = self.decoder.weight.device
        self.branches = len(plans[0].prompts)
        self.ways = [_Way(index, plan, _runs(plan), 1 - len(plan.prompts[0])) for index, plan in enumerate(plans)]
        if engine.fixed_shapes and not _pays_to_jump(self.ways):
            for way in self.ways:
                way.runs = [(way.runs[0][0], way.runs[-1][1])]
        self.neighbours = self._neighbours()
        self.is_greedy = all(plan.temperature == 0 for plan in plans)
        self.results: dict[int, Decoded] = {}
        longest = max(len(plan.prompts[0]) for plan in plans) + stage.length + SURPLUS
        keep = max(plan.keep for plan in plans)
        if engine.fixed_shapes:  # few shapes, so that few graphs are captured
            longest = -(-longest // 128) * 128
            keep = min(stage.length, 1 << (keep - 1).bit_length()) if keep else 0
        shape = Shape(engine.places(len(plans)), self.branches, stage.length + SURPLUS, longest, keep)
        self.board = engine.board(stage, shape)

    def finish(self) -> list[Decoded]:
        self._seat()
        while self._leave():
            window = self._window()
            if jumping := [way for way in self.ways if way.runs[0][0] - way.at >= window]:
                self._read(jumping)
            elif window > 1:
                self._leap(window)
            else:
                self._walk()
        return [self.results[index] for index in range(len(self.results))]

    def _neighbours(self) -> Neighbours | None:
        """What is known of pictures, where that may help."""
        engine, above = self.engine, self.stage.above
        if above is None or engine.pace is None or len(self.stage.table) > FEW_CODES:
            return None
        engine.neighbours = engine.neighbours or Neighbours(above)
        return engine.neighbours

    # Places

    def _seat(self) -> None:
        """Put every draft onto the board, and read its prompt and forced tokens up to its first stop."""
        board, ways = self.board, self.ways
        length = self.stage.length
        tokens = np.zeros((len(ways), length), dtype=np.int64)
        free = np.zeros((len(ways), length), dtype=bool)
        numbers = np.zeros((len(ways), length))
        known = np.zeros(len(ways), dtype=np.int64)
        for way in ways:
            way.place = way.index
            guess = way.plan.guess[:length]
            if self.stage.above is None:
                way.echo = Echo(guess, self.engine.lore)
            else:
                tokens[way.place, : len(guess)] = guess
                known[way.place] = max(len(guess), len(way.plan.tokens))
                way.sketch = Sketch(self.neighbours, int(known[way.place])) if self.neighbours else None
            tokens[way.place, : len(way.plan.tokens)] = way.plan.tokens
            free[way.place, list(way.plan.free)] = True
            way.free = free[way.place]
            numbers[way.place, : len(way.plan.numbers)] = way.plan.numbers
        seated = len(ways)
        board.health.zero_()
        board.ended.zero_()
        for buffer, values in ((board.tokens, tokens), (board.free, free), (board.numbers, numbers)):
            buffer.zero_()
            buffer[:seated, :length] = torch.from_numpy(values).to(buffer.device)
        for row, numbers_of in (
            (board.known, known.tolist()),
            (board.offset, [len(way.plan.prompts[0]) - 1 for way in ways]),
            (board.temperatures, [way.plan.temperature for way in ways]),
            (board.scales[:, 0], [way.plan.guidance for way in ways]),
        ):
            row.zero_()
            row[:seated] = torch.tensor(numbers_of, dtype=row.dtype, device=self.device)
        # Those of like length together, so that little is padding, and not too many at once.
        ways = sorted(ways, key=lambda way: way.runs[0][0] - way.at)
        while ways:
            widest = ways[-1].runs[0][0] - ways[-1].at + 1
            at_once = max(1, READ_AT_ONCE // (widest * self.branches))
            self._read(ways[-at_once:])
            del ways[-at_once:]

    def _leave(self) -> bool:
        """Take the results of drafts that are done, and move the others together where many have left. Is any left?"""
        over = [way for way in self.ways if way.is_over]
        if over:
            self._take_results(over)
            self.ways = [way for way in self.ways if not way.is_over]
        places = self.engine.places(max(1, len(self.ways)))
        if self.ways and places <= self.board.shape.places * (0.5 if self.engine.fixed_shapes else 0.75):
            board = self.engine.board(self.stage, replace(self.board.shape, places=places))
            self.board.move_to(board, [way.place for way in self.ways])
            self.board = board
            for place, way in enumerate(self.ways):
                way.place = place
        return bool(self.ways)

    def _take_results(self, ways: Sequence[_Way]) -> None:
        places = torch.tensor([way.place for way in ways], device=self.device)
        keep = max(way.plan.keep for way in ways)
        latents = self.board.latents[places, :keep]
        if not bool(self.board.health[places].isfinite().all() & latents.isfinite().all()):
            raise NotFinite("logits or latents")
        for way, row, kept in zip(ways, self.board.tokens[places].tolist(), latents, strict=True):
            result = self.results[way.index] = _result(way, row, self.stage.end, kept)
            if self.stage.above is None:
                self.engine.lore.learn([*result.tokens, *[self.stage.end or 0] * result.ended])
            elif self.neighbours:
                self.neighbours.learn(result.tokens)

    # Passes

    def _walk(self) -> None:
        """One token a pass for all drafts, as far as nobody has to jump or to leave."""
        count = min(way.runs[0][1] - way.at + 1 for way in self.ways)
        if self.stage.end is not None:
            count = min(count, LOOK if self.engine.fixed_shapes else 1)
        self._place()
        first = [way.at + len(way.plan.prompts[0]) - 1 for way in self.ways]
        self.board.advance(count, first, self.is_greedy)
        for way in self.ways:
            way.go_to(way.at + count, count)
        self._look(self.ways)

    def _place(self) -> None:
        """Say where each draft stands, and stops. Whoever sits at an idle place begins again, and stays there when the
        others leap."""
        at = torch.ones(2, self.board.shape.places, dtype=torch.long)
        at[:, [way.place for way in self.ways]] = torch.tensor(
            [[way.at for way in self.ways], [way.runs[-1][1] + 1 for way in self.ways]]
        )
        self.board.at.copy_(at[0])
        self.board.stop.copy_(at[1])

    def _window(self) -> int:
        """How many tokens of each draft to feed in the next pass: 1 is no leap."""
        is_text = self.stage.above is None
        if self.engine.pace is None:
            return 1
        if is_text and not self._recall():
            return 1
        chances = np.zeros((len(self.ways), LONGEST))
        for way, row in zip(self.ways, chances, strict=True):
            free = way.free[way.at : way.runs[-1][1] + 1][:LONGEST]
            row[: len(free)] = np.where(free, self._trust(way).rate, 1.0)
            if is_text:
                row[len(way.coming) :] = 0.0
        window = self.engine.pace.window(chances, self.board.shape.places * self.branches)
        left = max(way.runs[-1][1] + 1 - way.at for way in self.ways)
        return window if self.engine.fixed_shapes else min(window, left)

    def _trust(self, way: _Way) -> Trust:
        return self.engine.trusts[self.stage.above is not None, bool(way.plan.guess)]

    def _recall(self) -> bool:
        """Find out how earlier texts went on after the last words of these, if any did. Waits for the device."""
        back = np.array([[max(0, way.at - step) for step in range(CONTEXT, 0, -1)] for way in self.ways])
        places = self._tensor(np.array([[way.place] for way in self.ways]))
        for way, last in zip(self.ways, self.board.tokens[places, self._tensor(back)].tolist(), strict=True):
            way.coming = way.echo.goes_on(last[max(0, CONTEXT - way.at) :], way.at) if way.echo else []
        return any(way.coming for way in self.ways)

    def _sketch(self, window: int) -> None:
        """Guess the next tokens of pictures from what stood between the like. Waits for the device."""
        board = self.board
        places = self._tensor(np.array([way.place for way in self.ways]))
        pictures = board.tokens[places].tolist()
        known = []
        for way, tokens in zip(self.ways, pictures, strict=True):
            assert way.sketch is not None
            way.sketch.draw_on(tokens, way.free.tolist(), way.at, min(way.at + window, way.runs[-1][1] + 1))
            known.append(way.sketch.known)
        board.tokens[places] = torch.tensor(pictures, device=self.device)
        board.known[places] = torch.tensor(known, device=self.device)

    def _leap(self, window: int) -> None:
        """Feed the tokens that may come next, and keep what is chosen up to the first wrong guess. Waits for the
        device."""
        board = self.board
        self._place()
        if self.neighbours:
            self._sketch(window)
        told = [
            (way.place, way.at + step, token)
            for way in self.ways
            for step, token in enumerate(way.coming[: min(window, way.runs[-1][1] + 1 - way.at)])
        ]
        if told:
            places, positions, tokens = self._tensor(np.array(told)).T
            board.tokens[places, positions] = tokens
        first = max(way.at + len(way.plan.prompts[0]) - 1 for way in self.ways)
        board.leap(window, min(first + window, board.shape.slots), self.is_greedy)
        at = board.at.tolist()
        self._look(self.ways)
        for way in self.ways:
            kept, was_at = at[way.place] - way.at, way.at
            way.go_to(at[way.place], 1)
            guesses = window - 1 if self.stage.above is not None else len(way.coming)
            right = way.free[was_at : was_at + min(kept - 1, guesses)]
            is_wrong = kept <= guesses and not way.is_over
            self._trust(way).learn(int(right.sum()), is_wrong)

    def _read(self, ways: Sequence[_Way]) -> None:
        """Feed each draft all that comes before its next stop in one pass, and choose its token there."""
        board = self.board
        first = np.array([way.at for way in ways])
        stop = np.array([way.runs[0][0] for way in ways])
        hidden, _ = self._fed(ways, first, stop)
        state = hidden[:, torch.arange(len(ways), device=self.device), self._tensor(stop - first)]
        places = np.array([way.place for way in ways])
        board.choose_at(self._tensor(places), self._tensor(stop), state, self.is_greedy)
        for way in ways:
            way.go_to(way.runs[0][0] + 1, 1)
        self._look(ways)

    def _fed(self, ways: Sequence[_Way], first: Ints, stop: Ints) -> tuple[Tensor, Ints]:
        """Feed these drafts from query `first` to query `stop` [n]: the final hidden states [branches, n, T, D] of T
        queries each, shorter ones padded, and the queries themselves [n, T]. Keeps the latents that were asked for."""
        board, branches = self.board, self.branches
        offset = np.array([len(way.plan.prompts[0]) - 1 for way in ways])
        places = np.array([way.place for way in ways])
        length = int((stop - first).max()) + 1
        span = first[:, None] + np.arange(length)
        slots = np.minimum(span + offset[:, None], board.shape.slots - 1)  # padding may run over
        rows = np.concatenate([places + branch * board.shape.places for branch in range(branches)])
        everyone = len(rows) == board.cache.rows and bool((rows == np.arange(len(rows))).all())
        hidden = self.decoder.forward(
            self._inputs(ways, span),
            self._tensor(slots).repeat(branches, 1),
            board.cache,
            seen=int((stop + offset).max()) + 1,
            uniform=False,
            rows=None if everyone else self._tensor(rows),
        ).view(branches, len(ways), length, -1)
        keeps = np.array([way.plan.keep for way in ways])
        wanted = (span >= 0) & (span <= stop[:, None]) & (span < keeps[:, None])
        if wanted.any():
            row, step = np.nonzero(wanted)
            state = hidden[:, self._tensor(row), self._tensor(step)].transpose(0, 1)
            board.latents[self._tensor(places[row]), self._tensor(span[row, step])] = state.float()
        return hidden, span

    def _inputs(self, ways: Sequence[_Way], span: Ints) -> Tensor:
        """What the queries of `span` feed, [branches * n, T, D]: the prompt up to query 0, then the tokens before."""
        places = self._tensor(np.array([way.place for way in ways]))
        fed = self.board.tokens[places].gather(1, self._tensor((span - 1).clip(0, self.board.shape.length - 1)))
        inputs = F.embedding(fed, self.stage.table).repeat(self.branches, 1, 1)
        if span[0, 0] < 1:
            for branch, rows in enumerate(inputs.chunk(self.branches)):
                for way, row in zip(ways, rows, strict=True):
                    prompt = torch.tensor(way.plan.prompts[branch], device=self.device)
                    row[: len(prompt)] = self.decoder.embed_tokens(prompt)
        return inputs

    def _look(self, ways: Sequence[_Way]) -> None:
        """Find out whose text has ended. Waits for the device."""
        if self.stage.end is not None:
            ended = self.board.ended.tolist()
            for way in ways:
                way.ended = ended[way.place]

    def _tensor(self, numbers: Ints) -> Tensor:
        return torch.from_numpy(numbers).to(self.device)


def pace_of(decoder: Decoder) -> Pace | None:
    """What passes over more rows cost this model on its device, where that was measured."""
    if decoder.weight.is_cuda:
        return Pace(SLACK_OF_GPU)
    is_small = decoder.weight.dtype == torch.float32 and decoder.layer_bytes < SMALL
    return Pace(SLACK_OF_PROCESSOR) if is_small and decoder.weight.device.type == "cpu" else None


def _runs(plan: Plan) -> list[tuple[int, int]]:
    """The stops of a plan, as runs of consecutive positions (first, last).

    Latents beyond the last free position need one more stop, without a choice.
    """
    stops = list(plan.free)
    if plan.keep - 1 > (stops[-1] if stops else -1):
        stops.append(plan.keep - 1)
    runs: list[tuple[int, int]] = []
    for stop in stops:
        if runs and runs[-1][1] == stop - 1:
            runs[-1] = runs[-1][0], stop
        else:
            runs.append((stop, stop))
    return runs


def _pays_to_jump(ways: Sequence[_Way]) -> bool:
    """Whether reading forced runs in passes of their own costs less than walking through them, all side by side."""
    jumps = sum(len(way.runs) - 1 for way in ways)
    walked = max(way.runs[-1][1] - way.runs[0][0] for way in ways)
    chosen = max(sum(last - first + 1 for first, last in way.runs) for way in ways)
    return chosen + JUMP * jumps < walked


def _result(way: _Way, row: Sequence[int], end: int | None, latents: Tensor) -> Decoded:
    """What became of a plan: the tokens in its row, up to `end` where it came (only a text ends, and its free positions
    are all that follow its forced tokens)."""
    plan, prompt = way.plan, len(way.plan.prompts[0])
    kept = latents[: plan.keep].clone()
    if way.ended and end is not None:
        start = plan.free[0]
        length = row.index(end, start)
        return Decoded(tuple(row[:length]), True, kept, length - start + 1, prompt + start, way.passes)
    length = max(len(plan.tokens), plan.free[-1] + 1 if plan.free else 0)
    fed = _runs(plan)[-1][1]
    prefilled = prompt + fed - sum(position < fed for position in plan.free)
    return Decoded(tuple(row[:length]), False, kept, len(plan.free), prefilled, way.passes)
