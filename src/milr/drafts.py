"""The nouns of milr: tasks, asks, drafts, scores, costs and trajectories.

Everything here is a plain frozen value that every other module may import. This file knows no model, no
critic and no search; it imports nothing of milr.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


class UserError(Exception):
    """Something the user can put right. The message is one sentence: what is wrong, and what to do."""


@dataclass(frozen=True)
class Task:
    """One prompt to draw, with what a benchmark knows about it.

    `id` names the task within a run and seeds its random streams; `metadata` is whatever the benchmark's own
    critic needs (JSON values only).
    """

    prompt: str
    id: str = "0"
    category: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


# --- How tokens are chosen ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Greedy:
    """Take the most probable token at every position."""


@dataclass(frozen=True)
class Sample:
    """Draw every token from the full softmax at this temperature (> 0): no top-k, no top-p."""

    temperature: float = 1.0


@dataclass(frozen=True)
class Forced:
    """Take these tokens as they are, then choose the rest by `then`.

    For text, `tokens` is a prefix. For an image it is a prefix too, or, with `free`, a whole picture
    (`len(tokens)` = tokens of an image) of which only the positions in `free` are drawn afresh. A flow model's picture
    has a token for each cell too: the key of its noise.
    Forced tokens are prefilled, not sampled, and not charged. A forced text that holds the backbone's `text_end()`
    is over there: nothing is drawn after it (this is how a search keeps a whole text).
    """

    tokens: tuple[int, ...]
    then: Greedy | Sample = Greedy()
    free: frozenset[int] | None = None


@dataclass(frozen=True)
class Noise:
    """The coarsest numbers of the noise that a flow model's picture is made of; the finer ones are the model's own.

    `values`: the first coefficients, coarse to fine (`milr.backbones.flow.noise.coarse_to_fine`). `tokens`: the keys
    that name the noise of the cells, from which the finer ones are; those of the draft's stream where none are given.
    """

    values: tuple[float, ...]
    then: Sample = Sample()
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class Repaint:
    """A flow model's finished picture, kept but for the cells in `free`, which are drawn anew from fresh noise.

    `of` names the picture that is kept, wholly: nothing in it is left to a stream. `strength`: how much noise the free
    cells start from, at most 1. `tokens`: the keys of all cells; those of the draft's stream in `free` where none are
    given. With nothing free it is the picture that `of` names.
    """

    of: Forced | Noise | Repaint
    free: frozenset[int]
    then: Sample = Sample()
    strength: float = 1.0
    tokens: tuple[int, ...] = ()


Choice = Greedy | Sample | Forced | Noise | Repaint


@dataclass(frozen=True)
class Ask:
    """The draft that a search wants next.

    `text_ratio` and `image_ratio` ask for the latents of the first ceil(ratio * length) tokens to come back with
    the draft (lambda_t and lambda_v of the paper; 0 = none). `guidance` is the classifier-free guidance scale of
    the image; None means the backbone's own default. `note` is for the record only (JSON values: how the search
    came to this ask); it changes nothing and does not count when two asks are compared.
    """

    text: Choice = Greedy()
    image: Choice = Sample()
    text_ratio: float = 0.0
    image_ratio: float = 0.0
    guidance: float | None = None
    note: Mapping[str, Any] = field(default_factory=dict, compare=False)


class Tokens(Protocol):
    """What was chosen in a draft: a `Drawn`, or what is on record of one."""

    @property
    def reasoning(self) -> str: ...

    @property
    def text_tokens(self) -> tuple[int, ...]: ...

    @property
    def image_tokens(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Order:
    """An ask on its way to a backbone: for which prompt, and with which random stream.

    `stream` is all that a draft's randomness depends on: the token at position t of the text (or image) is chosen
    by the t-th uniform number of that stream, so a draft is the same whatever it is batched with, and a forced
    prefix does not shift what follows it. `earlier`: other drafts of this prompt, the likeliest first. Tokens that are
    guessed from them are checked, so that they make drawing quicker and change no token.
    """

    prompt: str
    ask: Ask
    stream: int
    earlier: tuple[Tokens, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True)
class Latents:
    """Final hidden states (after the last norm, the inputs of the heads) behind the first tokens of a draft.

    text: [T_text, D]; image: [T_image, 2, D], conditional then unconditional (equal to the conditional ones when
    the guidance scale is 1 and no unconditional row was computed). float32, on the model's device as a rule.
    """

    text: torch.Tensor
    image: torch.Tensor


@dataclass(frozen=True)
class Cost:
    """What was spent. Only tokens that were really sampled count. Seconds are wall time, shared by a batch: `seconds`
    of drawing, `critic_seconds` of judging, `search_seconds` of what the search did with the draft (the driver measures
    these two). `text_passes` and `image_passes`: how often the model was run for the tokens, prompts included; several
    tokens may be chosen in one pass. Where time went, and in how many passes, does not count when two costs are
    compared. `evaluations`: forward passes of a flow model's drawing network, both of a guided step; `work`: floating
    point operations of drawing, the unit in which models of all kinds can be compared (0: nobody counted)."""

    reward_calls: int = 0
    text_tokens: int = 0
    image_tokens: int = 0
    prefilled_tokens: int = 0
    seconds: float = 0.0
    critic_seconds: float = field(default=0.0, compare=False)
    search_seconds: float = field(default=0.0, compare=False)
    text_passes: int = field(default=0, compare=False)
    image_passes: int = field(default=0, compare=False)
    evaluations: int = 0
    work: float = field(default=0.0, compare=False)

    @property
    def passes(self) -> int:
        return self.text_passes + self.image_passes

    @property
    def decoded_tokens(self) -> int:
        return self.text_tokens + self.image_tokens

    @property
    def all_seconds(self) -> float:
        """Of drawing, judging and searching."""
        return self.seconds + self.critic_seconds + self.search_seconds

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.reward_calls + other.reward_calls,
            self.text_tokens + other.text_tokens,
            self.image_tokens + other.image_tokens,
            self.prefilled_tokens + other.prefilled_tokens,
            self.seconds + other.seconds,
            self.critic_seconds + other.critic_seconds,
            self.search_seconds + other.search_seconds,
            self.text_passes + other.text_passes,
            self.image_passes + other.image_passes,
            self.evaluations + other.evaluations,
            self.work + other.work,
        )


@dataclass(frozen=True)
class Drawn:
    """What a backbone gives back for one order.

    `text_tokens` excludes the end-of-text token; `text_ended` says whether the model closed the text itself
    (False: the length limit cut it). `guidance` is the scale that was used.
    """

    reasoning: str
    text_tokens: tuple[int, ...]
    text_ended: bool
    image_tokens: tuple[int, ...]
    image: Image
    latents: Latents | None
    guidance: float
    cost: Cost


# --- Judging --------------------------------------------------------------------------------------------------

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


@dataclass(frozen=True)
class Check:
    """One thing a critic looked at, in words, e.g. 'two red foxes (found 1)'. `boxes` shows what is wrong."""

    text: str
    passed: bool
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Score:
    """What a critic says of one image: a value in [0, 1] (1 = satisfied), or None when it abstains.

    Abstaining is never 0: `reason` says why. `checks` is optional detail; a critic that only has a number leaves
    it empty. `outage`: it abstained because it could not be asked (no connection, a server that fails, a timeout, a
    rate limit), so the same picture may well be judged later; all other abstentions are about the picture or the task.
    """

    value: float | None
    checks: tuple[Check, ...] = ()
    reason: str = ""
    outage: bool = False

    @property
    def abstained(self) -> bool:
        return self.value is None


RIGHT = 1.0  # the score of a picture that lacks nothing
ROUNDING = 1e-9  # what a weighted mean of ones may lack of one, and far less than any two verdicts differ by


def reaches(value: float | None, threshold: float = RIGHT) -> bool:
    """Whether a score reaches the threshold, the one meaning of success in milr. Rounding does not decide: a mean of
    parts that are all 1 may come out as .9999999999999999. Where the critic abstained nothing is reached."""
    return value is not None and value >= threshold - ROUNDING


@dataclass(frozen=True)
class Draft:
    """One attempt: what was drawn, how it was scored, what it cost. Numbered from 0 within its trajectory."""

    number: int
    ask: Ask
    stream: int
    drawn: Drawn
    score: Score

    @property
    def reward(self) -> float | None:
        return self.score.value

    def without_latents(self) -> Draft:
        """The same draft to keep: latents are for the search that asked for them, and weigh megabytes."""
        return self if self.drawn.latents is None else replace(self, drawn=replace(self.drawn, latents=None))


@dataclass(frozen=True)
class Trajectory:
    """All drafts of one search on one task, in order, and how it ended.

    `stopped` is one of 'threshold', 'budget', 'search' (the strategy had nothing more to ask), 'abstained' (ten
    abstentions in a row), 'interrupted'. `best` is the index of the draft that the search returns: the earliest
    of highest reward unless the strategy says otherwise. `held_out` is what held-out critics say of it, by critic,
    `held_out_first` what they say of the first draft: a search that is fooled by its reward makes it worse.
    """

    task: Task
    search: str
    settings: Mapping[str, Any]
    critic: str
    model: str
    seed: int
    seed_index: int
    drafts: tuple[Draft, ...]
    best: int
    stopped: str
    held_out: Mapping[str, Score] = field(default_factory=dict)
    held_out_first: Mapping[str, Score] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def cost(self) -> Cost:
        total = Cost()
        for draft in self.drafts:
            total = total + draft.drawn.cost + Cost(reward_calls=1)
        return total

    @property
    def best_draft(self) -> Draft:
        return self.drafts[self.best]
