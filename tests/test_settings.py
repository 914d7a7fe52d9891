"""Settings: ranges, choices, and reading them from `--set name=value`."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import pytest

from milr.drafts import UserError
from milr.searches.best_of_n import BestOfN
from milr.searches.latent import PRESETS, Milr
from milr.settings import find_preset, options, preset_name, settings_from


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("text_ratio", -0.1, "'text_ratio' must be a number from 0 to 1, not -0.1"),
        ("text_ratio", 1.5, "from 0 to 1"),
        ("image_ratio", math.nan, "finite"),
        ("learning_rate", -1, "'learning_rate'"),
        ("learning_rate", math.inf, "finite"),
        ("learning_rate", "fast", "finite number, not 'fast'"),
        ("learning_rate", True, "finite number"),
        ("variant", "jiont", "Did you mean 'joint'"),
        ("credit", None, "Unknown value for 'credit'"),
        ("image_temperature", 0.0, "from 0.01 to 10"),
        ("stop_above", 2, "'stop_above'"),
    ],
)
def test_bad_values_are_refused_in_words(name: str, value: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Milr(**{name: value})


def test_overrides_are_read_into_the_preset() -> None:
    given = {"learning_rate": " 0.1", "text-rest": "sampled", "stop_above": "none", "reward_offset": "-1"}
    found = settings_from(Milr, PRESETS["official"], given)
    assert found == replace(
        PRESETS["official"], learning_rate=0.1, text_rest="sampled", stop_above=None, reward_offset=-1.0
    )
    assert settings_from(Milr, None, {}) == Milr()
    assert settings_from(BestOfN, None, {"text": "greedy"}) == BestOfN(text="greedy")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("learning-rat", "0.1", "Unknown setting 'learning-rat'. Did you mean 'learning_rate'"),
        ("learning_rate", "fast", "'learning_rate' must be a number from 0 to 100, not 'fast'"),
        ("learning_rate", "nan", "finite"),
        ("learning_rate", "", "not ''"),
        ("variant", "text", "Did you mean 'text-only'"),
        ("text_ratio", "2", "from 0 to 1"),
    ],
)
def test_bad_overrides_are_refused_in_words(name: str, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        settings_from(Milr, None, {name: text})


def test_presets_by_name() -> None:
    assert find_preset(PRESETS, "paper") == Milr()
    with pytest.raises(UserError, match="Did you mean 'official'"):
        find_preset(PRESETS, "offical")
    assert preset_name(PRESETS, PRESETS["text-only"]) == "text-only"
    assert preset_name(PRESETS, Milr(learning_rate=0.5)) is None
    assert len({repr(preset) for preset in PRESETS.values()}) == len(PRESETS)


def test_a_form_learns_everything_from_the_declaration() -> None:
    found = {option.name: option for option in options(Milr)}
    assert list(found) == list(asdict(Milr()))
    assert found["credit"].choices == ("drawn", "arg-max")
    assert (found["text_ratio"].default, found["text_ratio"].low, found["text_ratio"].high) == (0.2, 0, 1)
    assert found["stop_above"].choices == ()


def test_the_papers_numbers() -> None:
    # arXiv 2509.22761: lambda_t 0.2, lambda_v 0.02, eta 0.03; no shift of the reward in the formula.
    paper = PRESETS["paper"]
    assert (paper.text_ratio, paper.image_ratio) == (0.2, 0.02)
    assert (paper.learning_rate, paper.reward_offset) == (0.03, 0)
    # The authors' code (d71fd71): rewards in [-1, 0], arg-max credit, int(k * n), last image, stop above -0.1.
    official = PRESETS["official"]
    assert (official.reward_offset, official.credit, official.rounding) == (-1, "arg-max", "down")
    assert (official.returned, official.stop_above) == ("last", 0.9)
