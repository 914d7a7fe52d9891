"""Progress while a search runs, on stderr: a live display on a terminal, plain lines anywhere else.

Shows what a waiting person wants to know: call n of N, the best reward so far, the reasoning as it changes, and how
long it may still take. This file hears the driver's events and knows nothing else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from milr.registry import shorten
from milr.runs.page import word_changes
from milr.searches.driver import DraftScored, Event, Finished, Started

if TYPE_CHECKING:
    from milr.drafts import Draft
    from milr.runs.bench import Progress  # not at run time: it brings scipy, which 'milr generate' does not need

STYLES = {"same": "", "new": "bold green", "gone": "strike dim"}


class Progressing:
    """Context manager whose `hear` is the driver's `on_event`. `searches` is how many prompts are to come."""

    def __init__(self, console: Console, searches: int, budget: int, quiet: bool = False) -> None:
        self.console, self.searches, self.budget, self.quiet = console, searches, budget, quiet
        self.live_wanted = console.is_terminal and not quiet
        self.began = time.monotonic()
        self.calls = 0
        self.calls_saved = 0  # of searches that ended early
        self.finished = 0
        self.reasonings: dict[str, str] = {}
        self.bests: dict[str, float | None] = {}
        self.reasoning = Text("")
        self.verdict = Text("")
        self.bar = Bars(
            TextColumn("[bold]{task.fields[label]}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[state]}"),
            console=console,
        )
        self.row = self.bar.add_task("", total=searches * budget, label="drawing the first draft", state="")
        self.live = Live(console=console, transient=True, refresh_per_second=8, get_renderable=self._render)

    def __enter__(self) -> Progressing:
        if self.live_wanted:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The live display steps aside, so that results can be printed on the same terminal."""
        self.live.stop()
        yield
        if self.live_wanted:
            self.live.start()

    def say(self, line: str) -> None:
        """One line that stays."""
        self.console.print(Text(line), soft_wrap=True)

    def hear(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, DraftScored):
            self._draft_scored(event)
        elif isinstance(event, Finished):
            self.finished += 1
            self.calls_saved += self.budget - len(event.trajectory.drafts)
            self._refresh()
        elif isinstance(event, Started):
            if not self.bests:
                self.began = time.monotonic()  # loading is over
            self.bests[event.task.id] = None

    def seconds_left(self) -> float | None:
        """At most this long, at the pace so far; None before the first draft."""
        if not self.calls:
            return None
        elapsed = time.monotonic() - self.began
        left = self.searches * self.budget - self.calls - self.calls_saved
        return elapsed / self.calls * max(0, left)

    def _draft_scored(self, event: DraftScored) -> None:
        self.calls += 1
        self.bests[event.task.id] = event.best_reward
        draft, before = event.draft, self.reasonings.get(event.task.id, "")
        if self.quiet:
            return
        if not self.live_wanted:
            self._plain_line(event, before)
        self.reasonings[event.task.id] = draft.drawn.reasoning
        self.reasoning = Text("  ").append_text(_highlighted(before, draft.drawn.reasoning))
        self.verdict = Text("  " + _verdict(draft), style="dim")
        self._refresh()

    def _refresh(self) -> None:
        known = [best for best in self.bests.values() if best is not None]
        mean = sum(known) / len(known) if known else None
        label, best = f"call {self.calls} of {self.budget}", f"best {_number(mean)}"
        if self.searches > 1:
            label, best = f"{self.finished} of {self.searches} prompts done, {self.calls} calls", f"mean {best}"
        state = f"{best} · {_duration(self.seconds_left())}"
        self.bar.update(self.row, completed=self.calls + self.calls_saved, label=label, state=state)

    def _plain_line(self, event: DraftScored, before: str) -> None:
        draft = event.draft
        line = (
            f"call {draft.number + 1} of {event.budget}: reward {_number(draft.reward)}, "
            f"best {_number(event.best_reward)}, {_duration(self.seconds_left())}"
        )
        if self.searches > 1:
            line = f"[{shorten(event.task.prompt, 40)}] {line}"
        if draft.drawn.reasoning != before:
            line += f": {shorten(draft.drawn.reasoning, 160)}"
        self.say(line)

    def _render(self) -> Group:
        return Group(self.bar, self.reasoning, self.verdict)


def _highlighted(before: str, after: str) -> Text:
    text = Text(overflow="fold")
    for words in word_changes(before, after):
        if words.change != "gone":
            text.append(shorten(words.text, 400) + " ", style=STYLES[words.change])
    return text


def _verdict(draft: Draft) -> str:
    if draft.score.abstained:
        return f"not scored: {shorten(draft.score.reason, 160)}"
    failed = [check.text for check in draft.score.checks if not check.passed]
    return "missing: " + shorten("; ".join(failed), 160) if failed else ""


def _number(reward: float | None) -> str:
    return "none" if reward is None else f"{reward:.2f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 90:
        return f"at most {seconds:.0f} s left"
    return f"at most {seconds / 60:.0f} min left" if seconds < 5400 else f"at most {seconds / 3600:.1f} h left"


class Pace:
    """Plain lines of a long run: searches done, those at the threshold, drafts a second, time left. At most one in five
    seconds."""

    SECONDS_BETWEEN = 5.0

    def __init__(self, console: Console) -> None:
        self.console = console
        self.method = ""
        self.began = self.last = 0.0
        self.done_before = 0

    def hear(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.method != self.method:
            self.method, self.began, self.last, self.done_before = progress.method, now, -math.inf, progress.done
        is_over = progress.done == progress.searches
        if now - self.last < self.SECONDS_BETWEEN and not is_over:
            return
        if is_over and self.last == math.inf:
            return
        self.last = math.inf if is_over else now
        line = f"{progress.method}: {progress.done} of {progress.searches} searches, {progress.solved} at the threshold"
        seconds, done = now - self.began, progress.done - self.done_before
        if progress.drafts:
            line += f", {progress.drafts} drafts ({progress.drafts / max(seconds, 1e-3):.1f} a second)"
        if done and not is_over:
            line += f", {_duration(seconds / done * (progress.searches - progress.done)).replace('at most', 'about')}"
        self.console.print(Text(line), soft_wrap=True)
