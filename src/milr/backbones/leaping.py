"""How far to leap: what guesses are worth, what a pass over more rows costs, and how a text may go on.

Knows numbers and tokens only. Nothing here changes a token; it changes how many passes they take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

WINDOWS = (4, 8, 16, 32, 64)  # tokens of one draft in a pass; few, so that few passes are captured
LONGEST = WINDOWS[-1]
MARGIN = 1.2  # by how much a leap must promise to be quicker than a pass of one token
NEARLY = 0.85  # of the best gain, which a longer window may have instead
WEIGHT = 12.0  # guesses that a prior counts for
MEMORY = 200.0  # guesses that are remembered
REMEMBERED = 100_000  # surroundings, and what stood between
ECHOED = 16  # tokens of a text that are guessed at most
CONTEXT = 3  # tokens of a text that are compared to find out where it stands


@dataclass
class Trust:
    """How often a guess was right, given that all before it were; what was long ago counts less and less."""

    right: float
    tried: float = WEIGHT

    @property
    def rate(self) -> float:
        return self.right / self.tried

    def learn(self, right: int, is_wrong: bool) -> None:
        """So many guesses in a row were right, and then one was wrong (or nobody knows)."""
        self.right += right
        self.tried += right + is_wrong
        if self.tried > MEMORY:
            self.right, self.tried = self.right * MEMORY / self.tried, MEMORY


@dataclass(frozen=True)
class Pace:
    """Which window is quickest. A pass of R rows takes 1 + R / slack times what an empty one would: reading the weights
    is shared, arithmetic is not. Drafts, their branches (guidance) and their windows are all rows, and share one slack.
    """

    slack: float

    def window(self, chances: Floats, rows: int) -> int:
        """Tokens to feed of each draft, 1 if a leap does not pay. `chances` [n, LONGEST]: how likely each guess is
        right, given those before it; 0 where there is nothing to guess. `rows`: of a pass of one token each."""
        brought = 1 + np.cumsum(np.cumprod(chances, 1).mean(0))  # by window, from 2 on
        gains = {window: brought[window - 2] * (self.slack + rows) / (self.slack + rows * window) for window in WINDOWS}
        best = max(gains.values())
        # Right guesses come in runs, so that a long window brings more than its mean chance says.
        return max(window for window in WINDOWS if gains[window] >= NEARLY * best) if best >= MARGIN else 1


def _forget_the_oldest(known: dict[tuple[int, ...], int]) -> None:
    while len(known) > REMEMBERED:
        del known[next(iter(known))]


class Lore:
    """What followed which tokens in the texts of before, of any prompt: how one model begins and ends its sentences."""

    def __init__(self) -> None:
        self._next: dict[tuple[int, ...], int] = {}

    def learn(self, text: Sequence[int]) -> None:
        for length in range(1, CONTEXT + 1):
            for end in range(length, len(text)):
                self._next[tuple(text[end - length : end])] = text[end]
        _forget_the_oldest(self._next)

    def after(self, words: tuple[int, ...]) -> int | None:
        return self._next.get(words)


class Neighbours:
    """What stood right of one token and below another in pictures of before, of any prompt. Worth asking where a model
    has so few codes that neighbourhoods repeat."""

    def __init__(self, above: int) -> None:
        self.above = above
        self._next: dict[tuple[int, ...], int] = {}

    def around(self, tokens: Sequence[int], at: int) -> tuple[int, ...]:
        """The tokens to the left, above, and above to the left; -1 where the picture ends."""
        above = at - self.above
        return tokens[at - 1], tokens[above] if above >= 0 else -1, tokens[above - 1] if above >= 1 else -1

    def learn(self, tokens: Sequence[int]) -> None:
        for at in range(1, len(tokens)):
            around = self.around(tokens, at)
            self._next[around] = self._next[around[:2]] = tokens[at]
        _forget_the_oldest(self._next)

    def between(self, around: tuple[int, ...]) -> int | None:
        found = self._next.get(around)
        return self._next.get(around[:2]) if found is None else found


class Sketch:
    """Guesses of one picture. What the last pass chose is the guess as long as what stands around it is the same;
    where that has changed, what stood there in other pictures."""

    def __init__(self, neighbours: Neighbours, known: int = 0) -> None:
        """`known`: positions below have a guess."""
        self._neighbours, self.known = neighbours, known
        self._around: dict[int, tuple[int, ...]] = {}  # what the last pass saw around a position

    def draw_on(self, tokens: list[int], free: Sequence[bool], at: int, stop: int) -> None:
        """Guess the tokens from `at` to before `stop`, in place."""
        for place in range(at, stop):
            around = self._neighbours.around(tokens, place)
            if free[place] and (place >= self.known or self._around.get(place, around) != around):
                told = self._neighbours.between(around)
                if told is not None:
                    tokens[place] = told
                elif place >= self.known:
                    tokens[place] = tokens[max(place - self._neighbours.above, 0)]
            self._around[place] = around
        self.known = max(self.known, stop)


class Echo:
    """Guesses that a text goes on as an earlier one of this prompt did after the same words, or else as others did."""

    def __init__(self, earlier: Sequence[int], lore: Lore) -> None:
        self._earlier, self._lore = list(earlier), lore
        self._ends: dict[tuple[int, ...], list[int]] = {}  # where the words before a position were these
        for length in range(1, CONTEXT + 1):
            for end in range(length, len(self._earlier)):
                self._ends.setdefault(tuple(self._earlier[end - length : end]), []).append(end)

    def goes_on(self, last: Sequence[int], at: int, count: int = ECHOED) -> list[int]:
        """Up to `count` tokens from position `at` on, after the `last` ones (CONTEXT of them, or all there are)."""
        said = list(last)
        while len(said) - len(last) < count:
            token = self._next(said, at + len(said) - len(last))
            if token is None:
                break
            said.append(token)
        return said[len(last) :]

    def _next(self, said: Sequence[int], at: int) -> int | None:
        """What came after as many of the last words as possible: in the earlier text, as near as possible to here."""
        endings = [tuple(said[-length:]) for length in range(min(CONTEXT, len(said)), 0, -1)]
        for words in endings:
            if ends := self._ends.get(words):
                return self._earlier[min(ends, key=lambda end: abs(end - at))]
        found = (token for words in endings if (token := self._lore.after(words)) is not None)
        return next(found, None)
