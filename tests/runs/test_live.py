import io

from rich.console import Console

from milr.runs.generate import Request, prepare, run, tasks_of
from milr.runs.live import Progressing
from runs_toy import draw
from toy_milr.backbone import ToyBackbone
from toy_milr.critic import Redness


def test_plain_lines_say_call_reward_and_changed_reasoning():
    out = io.StringIO()
    with Progressing(Console(file=out, width=200), 1, 4) as progress:
        draw("a slow \x1b[31mfox", budget=4, on_event=progress.hear, search="best-of-n")
    lines = out.getvalue().splitlines()
    assert [line.split(":")[0] for line in lines] == [f"call {number} of 4" for number in (1, 2, 3, 4)]
    assert "reward 0." in lines[0]
    assert "best 0." in lines[0]
    assert "s left" in lines[0]
    assert "\x1b" not in out.getvalue()


def test_a_terminal_shows_everything_in_place_and_leaves_nothing():
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True, legacy_windows=False)
    tasks = tasks_of(["a slow fox", "a slow car", "a fox"])
    plan = prepare(Request(search="best-of-n", reward=Redness(), budget=3))
    with Progressing(console, len(tasks), 3) as progress:
        for _ in run(ToyBackbone(), plan, tasks, {}, progress.hear):
            with progress.paused():
                assert not progress.live.is_started
    assert progress.seconds_left() == 0
    assert not progress.live.is_started
    shown = out.getvalue()
    assert "3 of 3 prompts done" in shown
    assert "missing: " in shown  # of whichever draft was last when the screen was drawn


def test_quiet_is_quiet():
    out = io.StringIO()
    with Progressing(Console(file=out, force_terminal=True), 1, 2, quiet=True) as progress:
        draw(budget=2, on_event=progress.hear)
    assert out.getvalue() == ""
