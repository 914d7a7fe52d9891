"""What a search is: a generator that yields the drafts it wants and receives them scored.

A strategy is written for one prompt. It sees a `Problem`, never a model: the driver batches many strategies,
charges the budget, keeps the best draft and stops at the threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from milr.backbones.policies import Policy, TextTokens
from milr.drafts import Ask, Task

# A round: yields an ask and receives its draft, or yields a sequence of asks and receives the list of their drafts, in
# order, drawn and judged together. Every draft comes scored, those of the last round too. What the budget has no call
# left for is cut off the end of a round, so its list may be shorter than what was asked for: the first k drafts are
# then what a budget of k draws, also where a round is cut. May return the number of the draft to hand to the user
# instead of the best one (the `official` preset returns its last image); a search that yields once more when the
# budget is spent, or the threshold reached, is closed.
Search = Generator[Ask | Sequence[Ask], Any, int | None]

WIDEST = 256  # drafts that a search may ask for in one round

# What a search module's optional `looks_at_budget(settings)` says. A search with a budget of 20 that has made k calls
# stands where one with a budget of k would end, and reports read success after k calls from it; unless the drafts that
# it asks for depend on the budget ("always"), or it chooses at the end which draft to return, and not by the reward
# alone, where the critic gives no checks ("without checks").
LooksAtBudget = Literal["", "always", "without checks"]


@dataclass(frozen=True)
class Problem:
    """What a search may know of its task and of the frozen model.

    `task` comes without its metadata, which is for critics: it may hold the answer.
    `text` says how the model chooses words from latents, `image` how it chooses what its pictures are made of, at a
    guidance scale and a temperature (1 by default). `rng` is the search's own random stream (the drafts have theirs),
    derived from run seed, task id and seed index. `budget` is the number of reward calls, the first draft included.
    `grid` is the number of cells of a picture a side, each of which is one choice.
    """

    task: Task
    text: TextTokens
    image: Callable[..., Policy]
    rng: np.random.Generator
    budget: int
    threshold: float
    grid: int
