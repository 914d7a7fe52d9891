"""What judges over HTTP have cost, and the replies that were paid for.

A `Till` stands where the judges of one run pay and look up what was said before; the money of all tills of a process
lies in one `Purse`. A run's folder keeps both, so that the next start goes on with them:

    replies/HASH.json   one reply, named by all that it depends on
    spent.jsonl         {"asked": ID, "dollars": estimate} before a request, {"paid": ID, "dollars": cost} after it

A request of which nobody knows how it ended (a process was killed) counts as paid at its estimate. Many processes share
one till by calling it in the one that owns it (`milr.runs.cluster`); `try_take` never waits for that reason.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
import uuid
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from milr.disk import make_folder, sync, sync_folder, write_whole
from milr.drafts import UserError

Kept = Mapping[str, Any]  # a reply as JSON; what stands in it is the client's affair

SLACK = 30.0  # seconds after which a request that should have ended is taken to be lost with its process


class Cashier(Protocol):
    """What a client needs of a till, here or in another process."""

    def recall(self, names: Sequence[str]) -> dict[str, Kept]:
        """Those replies of these names that are kept."""
        ...

    def forget(self, name: str) -> None:
        """This kept reply is broken."""
        ...

    def take(self, name: str, judge: str, limit: float | None, seconds: float) -> str | Kept:
        """Wait until the request fits into the limit, and return its ticket; or the reply, where another client
        got it since. Raises UserError where it will never fit.

        Args:
            name: of the reply. judge: whose dearest reply so far is the estimate. seconds: that a request may last.
        """
        ...

    def give_back(self, ticket: str, cost: float, name: str, reply: Kept | None) -> None:
        """The request has ended, cost that, and brought this. Raises UserError where it cannot be kept."""
        ...


@dataclass
class _Request:
    name: str
    judge: str
    reckoned: float
    book: Path | None
    lost_at: float


class Purse:
    """What judges have spent together, in US dollars. Every method may be called from any thread."""

    def __init__(self, spent: float = 0.0) -> None:
        self.spent = spent
        self.changed = threading.Condition(threading.RLock())
        self._counted: dict[Path, float] = {}  # what of `spent` stands in which folder
        self._dearest: dict[str, float] = {}  # the most that a reply of a judge has cost
        self._asked: dict[str, _Request] = {}

    def open(self, folder: Path) -> None:
        """Count what earlier starts of this run, or other processes, have spent; what is counted is not counted twice.
        Raises UserError where it cannot be read."""
        book = _book(folder)
        with self.changed:
            spent, dearest = _read(book, besides=self._asked)
            self.spent += spent - self._counted.get(book, 0.0)
            self._counted[book] = spent
            for judge, cost in dearest.items():
                self._dearest[judge] = max(cost, self._dearest.get(judge, 0.0))

    def spent_elsewhere(self, folder: Path) -> float:
        """What does not stand in this folder."""
        with self.changed:
            return self.spent - self._counted.get(_book(folder), 0.0)

    def try_take(self, name: str, judge: str, limit: float | None, seconds: float, folder: Path | None) -> str | None:
        """A ticket, or None while others must end first: the same question, or more money than is left.

        As long as nobody knows what a reply of a judge costs, its requests go one at a time under a limit.
        """
        with self.changed:
            self._lose_the_late()
            if any(other.name == name for other in self._asked.values()):
                return None
            dearest = self._dearest.get(judge)
            reckoned = dearest or 0.0
            if limit is not None:
                if self.spent >= limit or self.spent + reckoned > limit:
                    raise UserError(
                        f"Judges have spent {self.spent:.4g} of {limit:.4g} dollars, and the next reply may cost "
                        f"{reckoned:.4g}; give more with --max-judge-cost (replies so far are kept)."
                    )
                in_flight = sum(other.reckoned for other in self._asked.values())
                if (dearest is None and self._asked) or self.spent + in_flight + reckoned > limit:
                    return None
            ticket = uuid.uuid4().hex[:16]
            book = None if folder is None else _book(folder)
            if book is not None and reckoned:
                _append(book, {"asked": ticket, "dollars": reckoned})
            self._asked[ticket] = _Request(name, judge, reckoned, book, time.monotonic() + 2 * seconds + SLACK)
            return ticket

    def pay(self, ticket: str, cost: float) -> None:
        """A request has ended and cost that; its money is free for others, its question only after `release`."""
        with self.changed:
            request = self._asked.get(ticket)
            if request is None:  # it counts as lost, so it has been paid for
                return
            if request.book is not None and (cost or request.reckoned):
                _append(request.book, {"paid": ticket, "judge": request.judge, "dollars": cost})
            self._count(request, cost)
            request.reckoned = 0.0
            if cost:
                self._dearest[request.judge] = max(cost, self._dearest.get(request.judge, 0.0))

    def release(self, ticket: str) -> None:
        """Whoever asks the same may go on."""
        with self.changed:
            self._asked.pop(ticket, None)
            self.changed.notify_all()

    def _count(self, request: _Request, dollars: float) -> None:
        self.spent += dollars
        if request.book is not None:
            self._counted[request.book] = self._counted.get(request.book, 0.0) + dollars

    def lose(self, ticket: str) -> None:
        """Nobody knows how this request ended: it counts as paid at its estimate."""
        with self.changed:
            request = self._asked.pop(ticket, None)
            if request is not None:
                self._count(request, request.reckoned)
                self.changed.notify_all()

    def _lose_the_late(self) -> None:
        now = time.monotonic()
        for ticket in [ticket for ticket, request in self._asked.items() if request.lost_at < now]:
            self.lose(ticket)


class Till:
    """Where the judges of one run pay, and where its replies lie: in its folder, or in memory where it has none."""

    def __init__(self, folder: Path | None, purse: Purse) -> None:
        self._folder, self._purse = folder, purse
        self._kept: dict[str, Kept] = {}
        if folder is not None:
            purse.open(folder)

    def recall(self, names: Sequence[str]) -> dict[str, Kept]:
        """See `Cashier`."""
        return {name: kept for name in names if (kept := self._recall(name)) is not None}

    def forget(self, name: str) -> None:
        """See `Cashier`."""
        self._kept.pop(name, None)
        if self._folder is not None:
            with contextlib.suppress(OSError):
                (self._folder / "replies" / f"{name}.json").unlink()

    def try_take(self, name: str, judge: str, limit: float | None, seconds: float) -> str | Kept | None:
        """`take` without waiting: None for "not now"."""
        with self._purse.changed:  # no reply can come between the two
            kept = self._recall(name)
            return self._purse.try_take(name, judge, limit, seconds, self._folder) if kept is None else kept

    def take(self, name: str, judge: str, limit: float | None, seconds: float) -> str | Kept:
        """See `Cashier`."""
        with self._purse.changed:
            while (taken := self.try_take(name, judge, limit, seconds)) is None:
                self._purse.changed.wait(1.0)  # and look: a request may have been lost
            return taken

    def give_back(self, ticket: str, cost: float, name: str, reply: Kept | None) -> None:
        """See `Cashier`. The cost is written first: a process that is killed in between has still spent it."""
        try:
            self._purse.pay(ticket, cost)
            if reply is not None:
                self._keep(name, reply)
        finally:
            self._purse.release(ticket)

    def _recall(self, name: str) -> Kept | None:
        if self._folder is None:
            return self._kept.get(name)
        try:
            kept = json.loads((self._folder / "replies" / f"{name}.json").read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        return kept if isinstance(kept, dict) else None

    def _keep(self, name: str, reply: Kept) -> None:
        if self._folder is None:
            self._kept[name] = reply
            return
        folder = self._folder / "replies"
        try:
            for changed in write_whole(folder / f"{name}.json", json.dumps(reply).encode()):
                sync_folder(changed)
        except OSError as error:
            raise UserError(f"Cannot keep the judge's reply in {folder} ({error.strerror}); make room.") from error


def _book(folder: Path) -> Path:
    return folder.resolve() / "spent.jsonl"


def _append(book: Path, line: Mapping[str, Any]) -> None:
    """Add a line in one write, so that a kill leaves it whole or torn at the end, never mixed with another."""
    try:
        new = make_folder(book.parent) | (set() if book.exists() else {book.parent})
        with open(book, "ab", buffering=0) as stream:
            stream.write(json.dumps(line).encode() + b"\n")
            sync(stream.fileno())
        for folder in new:
            sync_folder(folder)
    except OSError as error:
        raise UserError(f"Cannot note in {book} what a judge costs ({error.strerror}); make room.") from error


def _read(book: Path, besides: Container[str]) -> tuple[float, dict[str, float]]:
    """Dollars in a book, and the dearest reply of each judge. `besides`: requests that are under way here. What is no
    line of a book (one that a kill has torn) says nothing."""
    try:
        lines = book.read_bytes().split(b"\n")
    except FileNotFoundError:
        return 0.0, {}
    except OSError as error:
        raise UserError(f"Cannot read {book} ({error.strerror}): it says what judges have cost; restore it.") from error
    if lines[-1]:  # torn: what comes next begins a line of its own
        with contextlib.suppress(OSError), open(book, "ab", buffering=0) as stream:
            stream.write(b"\n")
    spent: dict[str, float] = {}
    dearest: dict[str, float] = {}
    for raw in lines:
        try:
            line = json.loads(raw)
            ticket, dollars = line.get("paid") or line["asked"], float(line["dollars"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
        if not isinstance(ticket, str) or not 0 <= dollars < math.inf or ticket in besides:
            continue
        spent[ticket] = dollars
        if (judge := line.get("judge")) is not None:
            dearest[str(judge)] = max(dollars, dearest.get(str(judge), 0.0))
    return math.fsum(spent.values()), dearest
