"""Variance of texts and pictures, and how smooth the way is, against rewards whose answer is known."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "searches"))

from toy import Toy, tasks

from milr.drafts import Score
from milr.reports import landscape as module
from milr.reports.landscape import components, landscape, to_markdown


class Says:
    """A critic of a toy's drawings: `of(drawn)` is the score."""

    name = "says"

    def __init__(self, of: Any, toy: Toy) -> None:
        self.of, self.toy = of, toy

    def score(self, images: Any, tasks: Any) -> list[Score]:
        return [Score(self.of(np.asarray(image))) for image in images]


def test_components_of_tables_that_are_known() -> None:
    rows, columns = np.arange(4.0)[:, None], np.arange(4.0)[None, :]
    assert components(rows + 0 * columns) == pytest.approx((np.var(range(4), ddof=1), 0, 0))
    assert components(2 * columns + 0 * rows) == pytest.approx((0, 4 * np.var(range(4), ddof=1), 0))
    rng = np.random.default_rng(0)
    found = np.mean(
        [
            components(2 * rng.normal(size=(5, 1)) + 1 * rng.normal(size=(1, 5)) + 3 * rng.normal(size=(5, 5)))
            for _ in range(4000)
        ],
        axis=0,
    )
    assert found == pytest.approx((4, 1, 9), rel=0.15), "unbiased"


def test_a_critic_of_the_picture_alone_leaves_nothing_to_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards that are made up, cell by cell: what a picture's number says, or what a text says."""
    rng = np.random.default_rng(1)

    def grid(kind: str) -> Any:
        def made(backbone: Any, critic: Any, task: Any, number: int, side: int, batch: int) -> Any:
            rows, columns = rng.random((side, 1)), rng.random((1, side))
            table = {"text": rows + 0 * columns, "picture": columns + 0 * rows}[kind]
            return [[FakeDraft(value) for value in row] for row in table]

        return made

    def the_same(backbone: Any, critic: Any, task: Any, drafts: Any, *rest: Any) -> Any:
        return [[row[at].reward] * 3 for at, row in enumerate(drafts)]

    class FakeDraft:
        def __init__(self, reward: float) -> None:
            self.reward = reward

    for kind, name, other in (("text", "texts", "pictures"), ("picture", "pictures", "texts")):
        monkeypatch.setattr(module, "_grid", grid(kind))
        monkeypatch.setattr(module, "_near", the_same)
        found = landscape(Toy(), None, tasks(40))  # type: ignore[arg-type]
        assert found["share"][name][0] == pytest.approx(1, abs=0.02)
        assert found["share"][other][0] == pytest.approx(0, abs=0.02)
        if kind == "picture":
            assert found["together"]["0.3"][0] == pytest.approx(1, abs=1e-6), "the same picture goes with itself"


def test_strangers_do_not_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    tables = [rng.normal(size=(4, 4)) for _ in range(800)]
    strangers = [rng.normal(size=4) for _ in tables]
    half = [0.5 * np.diag(table) + np.sqrt(0.75) * rng.normal(size=4) for table in tables]
    assert abs(module._together(tables, strangers)[0]) < 0.08
    assert module._together(tables, half)[0] == pytest.approx(0.5, abs=0.08)


def test_a_toy_is_asked_for_every_text_with_every_number(tmp_path: Path) -> None:
    toy = Toy()
    asked: list[Any] = []
    draw = toy.draw

    def watched(orders: Any) -> Any:
        asked.extend(orders)
        return draw(orders)

    toy.draw = watched  # type: ignore[method-assign]
    found = landscape(toy, Says(lambda pixels: float(pixels.mean()) / 255, toy), tasks(2), side=3)
    assert found["prompts"] == 2
    cells = asked[3:12]
    assert len({order.ask.text for order in cells}) <= 3
    assert len({order.stream for order in cells}) == 3
    assert len(asked) == 2 * (3 + 9 + 9)
    assert "| pictures |" in to_markdown(found)
    assert json.loads(json.dumps(found)) == found


def test_prompts_without_a_score_are_left_out() -> None:
    toy = Toy()
    found = landscape(toy, Says(lambda pixels: None, toy), tasks(2), side=2)
    assert found == {"prompts": 0, "abstained": 2}
    assert "abstained at each of the 2 prompts" in to_markdown(found)
