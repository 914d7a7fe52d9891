"""What all workers of a Ray cluster share: critics that need no model, and the till (see `milr.runs.cluster`).

Apart from the workers, so that such a process loads no torch: there are many.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milr.critics import naming
from milr.critics.base import Critic, Place, judge
from milr.critics.remote.purse import Kept, Purse, Till
from milr.drafts import Score, Task, UserError

if TYPE_CHECKING:
    from PIL.Image import Image

PATIENCE = 300.0  # seconds in which one worker must get a place, and one of a critic's processes come back
ANSWERED = 20.0  # seconds in which what listens there, or a critic, must say that it is there
CRITIC_LOSSES = 3  # critics that may be lost over the same pictures before these are tried alone, and then given up


def import_ray() -> Any:
    """Ray, told to keep its use to itself. Raises UserError where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report its use over the network
    try:
        import ray
    except ImportError as error:
        raise UserError("The executor 'ray' needs Ray: pip install 'milr[ray]'.") from error
    return ray


def result_of(reference: Any, **options: Any) -> Any:
    """What a call to an actor gives. Raises what went wrong in it as it was there."""
    ray = import_ray()
    try:
        return ray.get(reference, **options)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from error


class CriticActor:
    """Judges for all workers; has no model. `at_once` says whether the critic can be asked by several at a time."""

    def __init__(self, name: str, place: Place, at_once: bool) -> None:
        self.name, self.place = name, place
        self.critic: Critic | None = None
        self.making = threading.Lock()
        self.judging = contextlib.nullcontext() if at_once else threading.Lock()

    def prepare(self) -> None:
        """Make the critic. Raises what that raises."""
        with self.making:
            if self.critic is None:
                if isinstance(self.place.till, RemoteTill):
                    self.place.till.begin()
                self.critic = naming.make(self.name, None, self.place)

    def score(self, images: list[Image], tasks: list[Task]) -> list[Score]:
        try:
            self.prepare()  # again where this actor was lost and came back
        except UserError:
            raise
        except Exception as error:  # it went well on another machine, so it is this one's fault and not the pictures'
            raise UserError(
                f"The critic '{self.name}' cannot be made on {socket.gethostname()} ({type(error).__name__}: {error}); "
                "install the same on every machine."
            ) from error
        assert self.critic is not None
        with self.judging:
            return judge(self.critic, images, tasks)


class RemoteCritic:
    """A critic that lives in actors of its own: each gets a share of the pictures, and all judge at once. One that is
    lost is left out until Ray has started it again elsewhere; its share goes to another."""

    def __init__(self, name: str, actors: Sequence[Any]) -> None:
        self.name, self.actors = name, actors
        self.there = deque(range(len(actors)))
        self.there.rotate(os.getpid())  # not every worker begins with the same one
        self.away: dict[int, Any] = {}  # those that were lost, with the call that ends when they are back

    def prepare(self) -> None:
        """Raises what making the critic raises."""
        self._ask()

    def score(self, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
        first = self._one()
        shares = min(len(self.there), len(images))
        cuts = [len(images) * share // shares for share in range(shares + 1)]
        asked = []
        for start, end in itertools.pairwise(cuts):
            batch = list(images[start:end]), list(tasks[start:end])
            asked.append((first, self.actors[first].score.remote(*batch), batch))
            first = self._one()
        found: list[Score] = []
        for number, answer, batch in asked:
            try:
                found += result_of(answer)
            except import_ray().exceptions.RayActorError:
                self._miss(number)
                found += self._ask(*batch)
        return found

    def _ask(self, *batch: Any) -> Any:
        """Ask one that is there (for nothing but whether it is, without a batch), and another where that is lost. It is
        the pictures' fault only if it happens again and again with critics that had just answered."""
        exceptions = import_ray().exceptions
        losses = 0
        while losses < CRITIC_LOSSES:
            number = self._one()
            try:
                result_of(self.actors[number].prepare.remote(), timeout=ANSWERED)
            except (exceptions.RayActorError, exceptions.GetTimeoutError):
                self._miss(number)
                continue
            try:
                return result_of(self.actors[number].score.remote(*batch)) if batch else None
            except exceptions.RayActorError:
                self._miss(number)
                losses += 1
        raise RuntimeError(f"its process was lost {losses} times over the same pictures")

    def _miss(self, number: int) -> None:
        if number in self.there:
            self.there.remove(number)
            self.away[number] = self.actors[number].prepare.remote()

    def _one(self) -> int:
        """The next in turn of those that are there. That there is none is no picture's fault: UserError."""
        ends = time.monotonic() + PATIENCE
        while True:
            for number, back in list(self.away.items()):
                if import_ray().wait([back], timeout=0)[0]:
                    try:
                        result_of(back)
                        self.there.append(number)
                        del self.away[number]
                    except import_ray().exceptions.RayActorError:  # not yet
                        self.away[number] = self.actors[number].prepare.remote()
            if self.there:
                self.there.rotate(-1)
                return self.there[-1]
            if time.monotonic() > ends:
                raise UserError(
                    f"The processes of the critic '{self.name}' were lost and did not come back within {PATIENCE:g} "
                    "seconds; see Ray's logs for why, then run the same again: it goes on from what is on record."
                )
            time.sleep(0.2)


class TillActor(Till):
    """The till of a run. Stands on the head's machine, since it writes in the run's folder."""

    def __init__(self, folder: Path | None, spent_elsewhere: float) -> None:
        super().__init__(folder, Purse(spent_elsewhere))
        self.clients: dict[str, str] = {}  # ticket -> the actor that holds it

    def take_for(self, client: str, name: str, judge: str, limit: float | None, seconds: float) -> str | Kept | None:
        """`try_take` for that actor."""
        taken = self.try_take(name, judge, limit, seconds)
        if isinstance(taken, str):
            self.clients[taken] = client
        return taken

    def give_back(self, ticket: str, cost: float, name: str, reply: Kept | None) -> None:
        super().give_back(ticket, cost, name, reply)
        self.clients.pop(ticket, None)

    def lost(self, client: str) -> None:
        """That actor's process is gone, with what it had asked."""
        for ticket in [ticket for ticket, holder in list(self.clients.items()) if holder == client]:
            self._purse.lose(ticket)
            self.clients.pop(ticket, None)


class RemoteTill:
    """The `Cashier` of the actor that is called `client`."""

    def __init__(self, actor: Any, client: str) -> None:
        self.actor, self.client = actor, client

    def begin(self) -> None:
        """The client has no question under way: it may be one that was lost and is back."""
        result_of(self.actor.lost.remote(self.client))

    def recall(self, names: Sequence[str]) -> dict[str, Kept]:
        found: dict[str, Kept] = result_of(self.actor.recall.remote(list(names)))
        return found

    def forget(self, name: str) -> None:
        result_of(self.actor.forget.remote(name))

    def take(self, name: str, judge: str, limit: float | None, seconds: float) -> str | Kept:
        while (taken := result_of(self.actor.take_for.remote(self.client, name, judge, limit, seconds))) is None:
            time.sleep(0.1)  # here and not there: waiting calls would shut out the one that they wait for
        found: str | Kept = taken
        return found

    def give_back(self, ticket: str, cost: float, name: str, reply: Kept | None) -> None:
        result_of(self.actor.give_back.remote(ticket, cost, name, reply))
