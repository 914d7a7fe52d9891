"""Which window pays, how trust is learned, and how a text goes on as an earlier one did."""

from __future__ import annotations

import numpy as np
import pytest

from milr.backbones.leaping import LONGEST, MEMORY, REMEMBERED, WINDOWS, Echo, Lore, Neighbours, Pace, Sketch, Trust


def chances(rate: float, drafts: int = 1) -> np.ndarray:
    return np.full((drafts, LONGEST), rate)


def test_noise_is_drawn_one_token_a_pass() -> None:
    assert Pace(30.0).window(chances(0.05), rows=2) == 1
    assert Pace(1e9).window(chances(0.05), rows=2) == 1, "two passes cost more than they bring, however cheap rows are"


def test_sure_guesses_are_fed_as_far_as_rows_are_cheap() -> None:
    assert Pace(1e9).window(chances(0.99), rows=2) == WINDOWS[-1]
    assert Pace(30.0).window(chances(0.9), rows=2) in (8, 16, 32)
    assert Pace(700.0).window(chances(0.9), rows=2) > Pace(30.0).window(chances(0.9), rows=2)


@pytest.mark.parametrize("rate", [0.6, 0.8, 0.9, 0.99])
def test_drafts_and_windows_share_one_slack(rate: float) -> None:
    """The more drafts a pass has, the shorter their windows, down to none."""
    found = [Pace(30.0).window(chances(rate, drafts), rows=2 * drafts) for drafts in (1, 2, 4, 8, 16, 32, 64)]
    assert found == sorted(found, reverse=True)
    assert found[-1] == 1


def test_forced_tokens_are_sure_and_nothing_is_guessed_behind_the_end() -> None:
    """A repair of four places far apart: all between them is forced, so that one pass reaches the last of them."""
    row = np.ones((1, LONGEST))
    row[0, [5, 20]] = 0.9
    assert Pace(1e6).window(row, rows=2) == LONGEST
    row[0, 3:] = 0.0  # three tokens are left
    assert Pace(28.0).window(row, rows=2) == 4


def test_trust_follows_what_happens_and_forgets() -> None:
    trust = Trust(12 * 0.9)
    assert trust.rate == pytest.approx(0.9)
    for _ in range(40):
        trust.learn(0, is_wrong=True)
    assert trust.rate < 0.25
    for _ in range(100):
        trust.learn(20, is_wrong=False)
    assert trust.rate > 0.99
    assert trust.tried <= MEMORY


def test_an_echo_goes_on_after_the_same_words() -> None:
    earlier = [1, 2, 3, 4, 5, 6, 7, 8]
    echo = Echo(earlier, Lore())
    assert echo.goes_on([1, 2], at=2, count=3) == [3, 4, 5]
    assert echo.goes_on([9, 3, 4], at=9, count=10) == [5, 6, 7, 8], "a word was put in before, or it stands elsewhere"
    assert echo.goes_on([30, 31, 32], at=3, count=4) == [], "nothing of the kind was said"


def test_an_echo_prefers_long_agreement_then_the_nearest_place() -> None:
    earlier = [7, 1, 50, 7, 2, 60, 7, 1, 70]
    echo = Echo(earlier, Lore())
    assert echo.goes_on([7, 1], at=2, count=1) == [50]
    assert echo.goes_on([7, 1], at=8, count=1) == [70]
    assert echo.goes_on([2, 60, 7], at=1, count=1) == [1], "three words alike count more than being near"


def test_lore_is_what_other_texts_taught_and_the_own_text_goes_before_it() -> None:
    lore = Lore()
    lore.learn([1, 2, 3, 4])
    lore.learn([1, 2, 9])
    assert Echo((), lore).goes_on([1, 2], at=2, count=5) == [9], "what was learned last"
    assert Echo((), lore).goes_on([2, 3], at=2, count=5) == [4]
    assert Echo([1, 2, 5], lore).goes_on([1, 2], at=2, count=1) == [5]
    assert Echo((), lore).goes_on([], at=0, count=5) == []


def test_lore_does_not_grow_for_ever() -> None:
    lore = Lore()
    for start in range(0, REMEMBERED, 1000):
        lore.learn(list(range(start, start + 1000)))
    assert len(lore._next) <= REMEMBERED
    assert lore.after((REMEMBERED - 2,)) == REMEMBERED - 1
    assert lore.after((0,)) is None, "the oldest goes first"


def test_a_sketch_keeps_what_was_chosen_as_long_as_its_surroundings_stay() -> None:
    """A picture of 3 x 3: rows 1 2 3 / 4 5 6 / 7 8 9 were drawn before."""
    neighbours = Neighbours(3)
    neighbours.learn([1, 2, 3, 4, 5, 6, 7, 8, 9])
    sketch = Sketch(neighbours)
    free = [True] * 9
    tokens = [1] + [0] * 8
    sketch.draw_on(tokens, free, 1, 6)
    assert tokens[:6] == [1, 2, 3, 4, 5, 6], "as it was before, one from the other"
    tokens[2] = 33  # what the model chose instead, and behind it: 44
    tokens[3] = 44
    sketch.draw_on(tokens, free, 3, 6)
    assert tokens[3] == 44, "nothing is known of what stands beside 33"
    assert tokens[4] == 5, "this was chosen beside 4, above 1; nothing is known of what stands beside 44"
    tokens[3] = 4
    sketch.draw_on(tokens, [True] * 4 + [False] * 5, 4, 6)
    assert tokens[4:6] == [5, 6], "what is forced stays"


def test_a_sketch_of_nothing_known_repeats_the_row_above() -> None:
    sketch = Sketch(Neighbours(3), known=3)
    tokens = [7, 8, 9, 0, 0, 0, 0, 0, 0]
    sketch.draw_on(tokens, [True] * 9, 3, 9)
    assert tokens == [7, 8, 9] * 3
